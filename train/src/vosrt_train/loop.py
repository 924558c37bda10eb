"""The training loop."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from vosrt._signals import stoppable
from vosrt_train.average import Networks
from vosrt_train.branches import compute_losses
from vosrt_train.data.clips import ClipBatch, ClipSampler, make_loader
from vosrt_train.distil import Teacher
from vosrt_train.distributed import World
from vosrt_train.hooks import Step, keep_start, make_hooks
from vosrt_train.masks.clustering.updates import MaskUpdates
from vosrt_train.masks.joint import compute_joint_losses
from vosrt_train.masks.networks import MaskEmbedding
from vosrt_train.masks.segmentation import SegmentationNetwork
from vosrt_train.model import Encoder
from vosrt_train.monitor import Monitor
from vosrt_train.network import TrainedNetwork, memory_format
from vosrt_train.optimiser import learning_rate_at, set_learning_rate
from vosrt_train.run import Task, begin
from vosrt_train.state import Progress


def train(task: Task, encoder: Encoder, world: World, masks: MaskEmbedding | None = None) -> Progress:
    """Train an encoder, or resume the training of a run.

    Args:
        encoder: with the weights to start from; it is trained in place.
        masks: mask encoder and decoder, trained in place, too; needed where the segmentation loss has a weight.

    Returns:
        The progress: fewer than all steps where Ctrl-C or SIGTERM interrupted the training.

    Raises:
        StateError: there is nothing to resume, or the state belongs to another run.
        OutputError: the folder of the run cannot be written.
        WorkError: a loss became infinite or not a number.
    """
    config = task.config
    networks = Networks(encoder, masks)
    networks.all.to(world.device).to(memory_format=memory_format(config.compute)).train()  # type: ignore[call-overload]
    steps_per_epoch = ClipSampler(config.clips, task.cache).steps
    run = begin(task, networks, world, config.schedule.total_steps(steps_per_epoch))
    progress, optimiser = run.progress, run.optimiser

    network: nn.Module = TrainedNetwork(encoder, config.compute).train()
    if config.compute.compile:
        network.compile()
    network = world.distribute(network, sync_batch_norm=config.compute.sync_batch_norm)
    teacher = Teacher(config.teacher, threads=config.compute.threads) if config.teacher else None
    follower: nn.Module | None = None if masks is None else SegmentationNetwork(masks, config).train()
    if follower is not None:
        follower = world.distribute(follower, sync_batch_norm=config.compute.sync_batch_norm)

    monitor = Monitor(task.run, progress, enabled=world.is_first, quiet=task.quiet)
    updates = MaskUpdates(config, task.cache, task.run, progress.total_steps, world)
    with monitor, updates, _stop(world) as stop:
        keep_start(run, monitor)
        hooks = make_hooks(run, monitor)
        deadline = _Deadline(task.limit_s, progress, world)
        for batch, asked_at in _timed(_batches(task, progress, steps_per_epoch, world), progress):
            rate = learning_rate_at(progress.step, progress.total_steps, config.optimiser, config.schedule)
            set_learning_rate(optimiser, rate)
            fresh_masks = updates.before(progress.step, encoder)
            clip_masks = updates.of(batch)  # None until the segmentation loss sets in
            if follower is None or clip_masks is None:
                losses = compute_losses(network, batch, config, world, teacher)
            else:
                losses = compute_joint_losses(network, follower, batch, clip_masks, config, world)
            optimiser.zero_grad()
            losses.total.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(networks.all.parameters(), config.optimiser.clip_gradient or float("inf"))
            optimiser.step()
            run.average.update()
            progress.step += 1
            progress.seconds += time.perf_counter() - asked_at
            deadline.adjust(progress)

            # The event is read once: a signal between two reads would end the loop without saving this step.
            step = Step(batch, losses, rate, norm, fresh_masks, stopping=stop.is_set())
            for hook in hooks:
                hook(step)
            if step.stopping or progress.step >= progress.total_steps:
                break
    return progress


class _Deadline:
    """Keeps a training within a time: other programs may slow down the steps that were measured before.

    Args:
        limit_s: seconds from now on; None keeps the length of the training.
        progress: at the first step.
        world: all training processes, which end with the same step.
    """

    def __init__(self, limit_s: float | None, progress: Progress, world: World) -> None:
        self._limit_s, self._world, self._planned = limit_s, world, progress.total_steps
        self._began_s, self._first = time.monotonic(), progress.step + 1
        self._paced_s = self._began_s

    def adjust(self, progress: Progress) -> None:
        """Fit the rest of the plan into the rest of the time, by the mean pace without the slow first step."""
        if self._limit_s is None:
            return
        now_s = time.monotonic()
        if progress.step == self._first:
            self._paced_s = now_s
        steps = max(1, progress.step - self._first)
        times = torch.tensor([now_s - self._began_s, (now_s - self._paced_s) / steps], device=self._world.device)
        passed_s, step_s = self._world.mean(times).tolist()
        progress.fit(self._planned, self._limit_s - passed_s, step_s or 1e-9)


def _batches(task: Task, progress: Progress, steps_per_epoch: int, world: World) -> Iterator[ClipBatch]:
    """Yield the batches that remain, on the device."""
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
    """Yield each batch with the time at which the loop asked for it; add up how long the loop waited."""
    asked_at = time.perf_counter()
    for batch in batches:
        progress.waited_s += time.perf_counter() - asked_at
        yield batch, asked_at
        asked_at = time.perf_counter()


def _stop(world: World) -> AbstractContextManager[threading.Event]:
    """Set the event at the first Ctrl-C or SIGTERM, so that the step is finished and saved.

    Several processes would not stop at the same step, so there the signal ends them at once.
    """
    return stoppable() if world.size == 1 else nullcontext(threading.Event())
