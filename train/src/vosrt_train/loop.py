"""The training loop."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from torch import nn
from torch.optim import Adam

from vosrt_train.branches import Correspondence, compute_losses
from vosrt_train.checkpoint import Checkpoint, Training, save_checkpoint
from vosrt_train.clustering.updates import MaskUpdates
from vosrt_train.config import TrainConfig
from vosrt_train.data.cache import Cache
from vosrt_train.data.clips import ClipBatch, ClipSampler, make_loader
from vosrt_train.data.views import View, apply_to_frames
from vosrt_train.distributed import World
from vosrt_train.losses import pseudo_labels
from vosrt_train.model import Encoder, MaskEmbedding
from vosrt_train.monitor import Means, Monitor
from vosrt_train.network import TrainedNetwork, memory_format
from vosrt_train.optimiser import build_optimiser, learning_rate_at, set_learning_rate
from vosrt_train.pictures import nearest_neighbour_picture, pseudo_label_picture
from vosrt_train.segmentation import SegmentationNetwork
from vosrt_train.state import Progress, State, fingerprint, load_state, save_state
from vosrt_train.validate import AnnotatedSequence, runtime_model, validate

STATE_NAME = "state.pt"
BEST_NAME = "best.safetensors"
LAST_NAME = "last.safetensors"

_PICTURED_CLIPS = 2


@dataclass(frozen=True)
class Task:
    """What is to be done.

    Attributes:
        config: all choices.
        cache: the videos.
        run: directory for checkpoints, state and log; exists.
        resume: go on from the run's state, exactly as if the training had not been interrupted.
        sequences: to validate on; none skips validation.
        quiet: shows nothing on the terminal.
    """

    config: TrainConfig
    cache: Cache
    run: Path
    resume: bool = False
    sequences: tuple[AnnotatedSequence, ...] = ()
    quiet: bool = False


@dataclass(frozen=True)
class Networks:
    """What is trained.

    Attributes:
        encoder: the visual encoder.
        masks: mask encoder and decoder; None where correspondence alone is learnt.
    """

    encoder: Encoder
    masks: MaskEmbedding | None = None

    @property
    def all(self) -> nn.Module:
        """All of them as one module."""
        return self.encoder if self.masks is None else nn.ModuleList([self.encoder, self.masks])


def train(task: Task, encoder: Encoder, world: World, masks: MaskEmbedding | None = None) -> Progress:
    """Train an encoder, or go on with the training of a run.

    Args:
        task: what is to be done.
        encoder: with the weights to start from; it is changed.
        world: the processes that train together.
        masks: mask encoder and decoder to start from, changed too; needed where the segmentation loss has a weight.

    Returns:
        How far it came: less than all steps where it was interrupted by Ctrl-C or SIGTERM.

    Raises:
        StateError: there is nothing to resume, or it is the state of another run.
        OutputError: the run's directory cannot be written.
        WorkError: a loss has become infinite or not a number.
    """
    config = task.config
    networks = Networks(encoder, masks)
    networks.all.to(world.device).to(memory_format=memory_format(config.compute))  # type: ignore[call-overload]
    network: nn.Module = TrainedNetwork(encoder, config.compute).train()
    follower: nn.Module | None = None if masks is None else SegmentationNetwork(masks, config).train()
    optimiser = build_optimiser(networks.all, config.optimiser)
    steps_per_epoch = ClipSampler(config.clips, task.cache).steps
    progress = Progress(config.schedule.total_steps(steps_per_epoch))
    if task.resume:
        progress = _restore(task, networks, optimiser)
    if config.compute.compile:
        network.compile()
    network = world.distribute(network, sync_batch_norm=config.compute.sync_batch_norm)
    if follower is not None:
        follower = world.distribute(follower, sync_batch_norm=config.compute.sync_batch_norm)

    means = Means()
    monitor = Monitor(task.run, progress, enabled=world.is_first, quiet=task.quiet)
    updates = MaskUpdates(config, task.cache, task.run, progress.total_steps, world)
    with monitor, updates, _stop_signal(world) as stop:
        for batch, asked_at in _timed(_batches(task, progress, steps_per_epoch, world), progress):
            fresh = updates.before(progress.step, encoder)
            of_clips = updates.of(batch)
            rate = learning_rate_at(progress.step, progress.total_steps, config.optimiser, config.schedule)
            set_learning_rate(optimiser, rate)
            to_follow = None if follower is None or of_clips is None else (follower, of_clips.to(world.device))
            losses = compute_losses(network, batch, config, world, segmentation=to_follow)
            optimiser.zero_grad()
            losses.total.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(networks.all.parameters(), config.optimiser.clip_gradient or float("inf"))
            optimiser.step()

            progress.step += 1
            means.add({**losses.figures, "gradient_norm": norm})
            # Taking the means waits for the device, so it belongs to the time of the step.
            figures = means.take(progress.step, world) if progress.due(config.log.every) else None
            progress.seconds += time.perf_counter() - asked_at
            if fresh is not None:
                monitor.pseudo_masks(progress.step, fresh.masks, waited_s=fresh.waited_s)
            if figures is not None:
                monitor.steps(progress, figures | {"learning_rate": rate}, frames=batch.frames.shape[:2].numel())
            if losses.correspondence and config.log.pictures and progress.due(config.log.pictures):
                _draw(monitor, progress.step, batch, losses.correspondence, config)
            if task.sequences and progress.due(config.validation.every):
                _validate(task, networks, progress, monitor, world)
            if stop.is_set() or progress.due(config.log.checkpoint):
                means.check(progress.step)
                _save(task, networks, optimiser, progress, world)
            if stop.is_set():
                break
    return progress


def _batches(task: Task, progress: Progress, steps_per_epoch: int, world: World) -> Iterator[ClipBatch]:
    """The batches that are still to come, on the device."""
    epoch, start_batch = divmod(progress.step, steps_per_epoch)
    loader = make_loader(
        task.config.clips,
        task.cache,
        epoch=epoch,
        start_batch=start_batch,
        epochs=-(-progress.total_steps // steps_per_epoch) - epoch,
        rank=world.rank,
        world=world.size,
    )
    for batch in itertools.islice(loader, progress.total_steps - progress.step):
        yield batch.to(world.device)


def _timed(batches: Iterable[ClipBatch], progress: Progress) -> Iterator[tuple[ClipBatch, float]]:
    """Each batch with the time at which it was asked for; what it kept the loop waiting is added up."""
    asked_at = time.perf_counter()
    for batch in batches:
        progress.waited_s += time.perf_counter() - asked_at
        yield batch, asked_at
        asked_at = time.perf_counter()


def _validate(task: Task, networks: Networks, progress: Progress, monitor: Monitor, world: World) -> None:
    """Follow the annotated objects, and keep the weights if they never were as good."""
    if world.is_first:
        config = task.config
        model = runtime_model(networks.encoder, config.validation_feature)
        result = validate(model, task.sequences, config.validation.size or None)
        monitor.validation(progress.step, result)
        if progress.best is None or result.j_and_f > progress.best:
            progress.best, progress.best_step = result.j_and_f, progress.step
            _save_weights(task, networks, progress, BEST_NAME)
    world.wait()


def _save(task: Task, networks: Networks, optimiser: Adam, progress: Progress, world: World) -> None:
    if world.is_first:
        _save_weights(task, networks, progress, LAST_NAME)
        data = fingerprint(task.cache)
        masks = None if networks.masks is None else networks.masks.state_dict()
        state = State(task.config, data, progress, networks.encoder.state_dict(), optimiser.state_dict(), masks)
        save_state(state, task.run / STATE_NAME)


def _save_weights(task: Task, networks: Networks, progress: Progress, name: str) -> None:
    config = task.config
    learnt = "correspondence" if networks.masks is None else "correspondence and mask embedding"
    summary = (
        f"{learnt} learnt without labels: {progress.step} steps of {config.clips.batch} clips of "
        f"{config.clips.frames} frames at {config.clips.crop} pixels, {len(task.cache.videos)} videos"
    )
    training = Training(trained=True, seed=config.seed, summary=summary, licence=config.licence)
    save_checkpoint(Checkpoint(networks.encoder, training, networks.masks), task.run / name)


def _restore(task: Task, networks: Networks, optimiser: Adam) -> Progress:
    state = load_state(task.run / STATE_NAME)
    state.check_same_run(task.config, fingerprint(task.cache))
    networks.encoder.load_state_dict(state.network)
    if networks.masks is not None and state.masks is not None:
        networks.masks.load_state_dict(state.masks)
    optimiser.load_state_dict(state.optimiser)
    return state.progress


def _draw(monitor: Monitor, step: int, batch: ClipBatch, losses: Correspondence, config: TrainConfig) -> None:
    """Show what the first clips of the batch were told, and what they found."""
    few = slice(_PICTURED_CLIPS)
    view = View(batch.view.flip[few], batch.view.scale[few], batch.view.offset[few])
    seen = apply_to_frames(batch.frames[few], view)
    labels = pseudo_labels(losses.regular[few], losses.anchors[few])
    for clip in range(len(seen)):
        told = pseudo_label_picture(seen[clip, 1:], labels[clip], config.loss.anchors)
        found = nearest_neighbour_picture(batch.frames[clip], losses.main[clip].detach())
        monitor.picture(step, f"pseudo_labels/{clip}", told)
        monitor.picture(step, f"nearest_neighbours/{clip}", found)


@contextmanager
def _stop_signal(world: World) -> Iterator[threading.Event]:
    """Set on the first Ctrl-C or SIGTERM, so that the step is finished and saved; the second one ends it at once.

    Several processes would not stop at the same step: there signals do what they always do.
    """
    stop = threading.Event()

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop.set()
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {}
    if world.size == 1 and threading.current_thread() is threading.main_thread():
        before = {each: signal.signal(each, ask_to_stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
