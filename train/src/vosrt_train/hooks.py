"""What happens after a training step besides learning: logging, pictures, validation, saving."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from vosrt_train.branches import Losses
from vosrt_train.checkpoint import Checkpoint, save_checkpoint
from vosrt_train.data.clips import ClipBatch
from vosrt_train.data.views import apply_to_frames
from vosrt_train.losses import pseudo_labels
from vosrt_train.masks.clustering.updates import FreshMasks
from vosrt_train.monitor import Means, Monitor
from vosrt_train.pictures import nearest_neighbour_picture, pseudo_label_picture
from vosrt_train.run import Run
from vosrt_train.run_folder import BEST_NAME, START_NAME
from vosrt_train.validate import runtime_model, validate

_PICTURED_CLIPS = 2


@dataclass(frozen=True)
class Step:
    """A step that was just done.

    Attributes:
        gradient_norm: f32 [], before clipping.
        fresh_masks: pseudo-masks that this step was the first to use.
        stopping: a signal ended the training: no step follows.
    """

    batch: ClipBatch
    losses: Losses
    learning_rate: float
    gradient_norm: Tensor
    fresh_masks: FreshMasks | None
    stopping: bool


Hook = Callable[[Step], None]


def make_hooks(run: Run, monitor: Monitor) -> list[Hook]:
    """Return the hooks of a run in their order: a step is saved last, once nothing more can fail."""
    config, progress, world, means = run.task.config, run.progress, run.world, Means()

    def log(step: Step) -> None:
        means.add({**step.losses.figures, "gradient_norm": step.gradient_norm})
        figures = None
        if progress.due(config.log.every):
            # Reading the means waits for kernels that the step has only queued, so this time belongs to the step.
            started = time.perf_counter()
            figures = means.take(progress.step, world)
            progress.seconds += time.perf_counter() - started
        monitor.tick(progress)
        if step.fresh_masks is not None:
            monitor.pseudo_masks(progress.step, step.fresh_masks.masks, waited_s=step.fresh_masks.waited_s)
        if figures is not None:
            frames = step.batch.frames.shape[:2].numel()
            monitor.steps(progress, figures | {"learning_rate": step.learning_rate}, frames=frames)

    def draw(step: Step) -> None:
        if step.losses.correspondence and config.log.pictures and progress.due(config.log.pictures):
            _draw(monitor, progress.step, step, config.loss.anchors)

    def validate_average(step: Step) -> None:
        if run.task.sequences and progress.due(config.validation.every):
            _validate(run, monitor)

    def save(step: Step) -> None:
        if step.stopping or progress.due(config.log.checkpoint):
            means.check(progress.step)
            run.save()

    return [log, draw, validate_average, save]


def keep_start(run: Run, monitor: Monitor) -> None:
    """Save and validate the weights that a run starts from, unless they are random."""
    origin = run.task.origin
    if origin is None or run.progress.step:
        return
    if run.world.is_first:
        networks = run.networks
        checkpoint = Checkpoint(networks.encoder, origin, networks.masks, run.task.inference)
        save_checkpoint(checkpoint, run.task.run / START_NAME)
    if run.task.sequences:
        _validate(run, monitor)


def _validate(run: Run, monitor: Monitor) -> None:
    """Segment the annotated sequences, and save the averaged weights if they are the best so far."""
    if run.world.is_first:
        config, progress, networks = run.task.config, run.progress, run.average.networks
        model = runtime_model(networks.encoder, config.validation_feature)
        result = validate(model, run.task.sequences, config.validation.size or None)
        monitor.validation(progress.step, result)
        if progress.best is None or result.j_and_f > progress.best:
            progress.best, progress.best_step = result.j_and_f, progress.step
            run.save_weights(networks, BEST_NAME)
    run.world.wait()


def _draw(monitor: Monitor, number: int, step: Step, anchors: int) -> None:
    """Draw the first clips of a batch: the pseudo-labels to learn, and the matches that the main branch finds."""
    maps = step.losses.correspondence
    assert maps is not None
    few = slice(_PICTURED_CLIPS)
    for clip, frames in enumerate(step.batch.frames[few]):
        picture = nearest_neighbour_picture(frames, maps.main[clip].detach())
        monitor.picture(number, f"nearest_neighbours/{clip}", picture)
    if maps.regular is None:
        return
    seen = apply_to_frames(step.batch.frames[few], step.batch.view[few])
    for clip, labels in enumerate(pseudo_labels(maps.regular[few], maps.anchors[few])):
        picture = pseudo_label_picture(seen[clip, 1:], labels, anchors)
        monitor.picture(number, f"pseudo_labels/{clip}", picture)
