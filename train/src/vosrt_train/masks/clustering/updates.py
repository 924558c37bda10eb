"""Pseudo-masks of a training, made in the background from earlier weights.

The weights that make a generation, and the steps that use it, are fixed in advance, so a slow process costs waiting but
changes no result. A killed and resumed training uses the same masks as an uninterrupted one.

    RUN/pseudo/00.safetensors     weights for generation 0
    RUN/pseudo/00-1f2e3d4c/       generation 0, named by the hash of these weights
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import torch

from vosrt.bundle import file_sha256
from vosrt.console import note
from vosrt.errors import VosrtError, WorkError
from vosrt_train.checkpoint import Checkpoint, Training, load_checkpoint, save_checkpoint
from vosrt_train.config import TrainConfig
from vosrt_train.data.cache import Cache, end_with_parent, process_context
from vosrt_train.data.clips import ClipBatch, ClipSampler
from vosrt_train.distributed import World
from vosrt_train.masks.clustering.lookup import clip_masks
from vosrt_train.masks.clustering.make import Job, make_pseudo_masks
from vosrt_train.masks.clustering.schedule import MaskSchedule
from vosrt_train.masks.clustering.store import PseudoMaskError, PseudoMasks
from vosrt_train.masks.config import SEGMENTATION_FRAMES
from vosrt_train.masks.segmentation import ClipMasks
from vosrt_train.model import Encoder

FOLDER = "pseudo"

_NICENESS = 5  # the training has priority


@dataclass(frozen=True)
class FreshMasks:
    """Pseudo-masks that come into use.

    Attributes:
        waited_s: seconds for which the training waited.
    """

    masks: PseudoMasks
    waited_s: float


class MaskUpdates:
    """Makes pseudo-masks and looks them up. Does nothing where the segmentation loss has no weight.

    Args:
        world: all training processes; the first one makes the masks, and all read them from ``run``.
    """

    def __init__(self, config: TrainConfig, cache: Cache, run: Path, total_steps: int, world: World) -> None:
        self._config = config
        self._cache = cache
        self._folder = run / FOLDER
        self._world = world
        self._schedule = MaskSchedule(config.segmentation, total_steps)
        self._sampler = ClipSampler(config.clips, cache)
        self._clips = min(config.segmentation.clips or config.clips.batch, config.clips.batch // world.size)
        self._started: int | None = None
        self._used: int | None = None
        self._masks: PseudoMasks | None = None
        self._process: BaseProcess | None = None

    def __enter__(self) -> MaskUpdates:
        """Return the updates."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the background process; a resumed training continues its work."""
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def before(self, step: int, encoder: Encoder) -> FreshMasks | None:
        """Do what is due before a step: copy weights, start making masks, wait for the masks that the step needs.

        Args:
            step: number of the step, from 0.
            encoder: before that step.

        Returns:
            Masks that this step is the first to use (or the first after resuming); None in other steps.

        Raises:
            WorkError: the masks could not be made.
            PseudoMaskError: the folder of a resumed run lacks weights, or its masks are damaged.
        """
        if not self._config.segmentation.weight:
            return None
        due = self._schedule.snapshotted(step)
        if due is not None and due != self._started:
            self._start(due, step, encoder)
        needed = self._schedule.in_use(step)
        if needed is None or needed == self._used:
            return None
        started = time.perf_counter()
        self._finish(needed)
        self._masks, self._used = PseudoMasks(self._directory(needed)), needed
        return FreshMasks(self._masks, time.perf_counter() - started)

    def of(self, batch: ClipBatch) -> ClipMasks | None:
        """Look up the masks of the first clips of a batch, on the device; None before masks are in use."""
        if self._masks is None:
            return None
        clips = batch.clips[: self._clips]
        config = self._config
        return clip_masks(
            self._masks,
            clips,
            config.clips.crop,
            frames=SEGMENTATION_FRAMES,
            unions=config.foreground.unions,
            hops=config.segmentation.hops,
        ).to(self._world.device)

    def _start(self, generation: int, step: int, encoder: Encoder) -> None:
        """Copy the weights, and start a background process that makes the masks, if configured."""
        self._started = generation
        if self._world.is_first:
            if step == self._schedule.snapshot(generation):
                self._folder.mkdir(exist_ok=True)
                training = Training(
                    trained=True,
                    seed=self._config.seed,
                    summary=f"weights before step {step}",
                    licence=self._config.licence,
                )
                save_checkpoint(Checkpoint(encoder, training), self._weights(generation))
            if self._config.segmentation.background and not PseudoMasks(self._directory(generation)).done:
                self._process = cast(Any, process_context()).Process(
                    target=_make_in_background,
                    args=(
                        self._job(generation),
                        self._weights(generation),
                        self._directory(generation),
                        self._world.device,
                    ),
                    daemon=True,
                )
                self._process.start()
        self._world.wait()

    def _finish(self, generation: int) -> None:
        """Wait until a generation is complete, or make it in this process."""
        if self._world.is_first:
            if self._process is not None and generation == self._started:
                self._process.join()
                code, self._process = self._process.exitcode, None
                if code:
                    raise WorkError(
                        f"the process that makes pseudo-masks ended with code {code}; see what it said above, and go "
                        "on with --resume (segmentation.background=false makes them in the training process)"
                    )
            masks = PseudoMasks(self._directory(generation))
            if not masks.done:
                make_pseudo_masks(self._job(generation), _load(self._weights(generation), self._world.device), masks)
        self._world.wait()

    def _job(self, generation: int) -> Job:
        """Make masks for all frames that the steps of a generation will show."""
        first, last = self._schedule.first_use(generation), self._schedule.first_use(generation + 1)
        frames = self._sampler.frames_shown(
            first, last, frames=SEGMENTATION_FRAMES, clips=self._clips, world=self._world.size
        )
        return Job(self._config, self._cache, frames)

    def _weights(self, generation: int) -> Path:
        return self._folder / f"{generation:02}.safetensors"

    def _directory(self, generation: int) -> Path:
        weights = self._weights(generation)
        if not weights.is_file():
            raise PseudoMaskError(f"{weights} is missing, from which pseudo-masks are made; start another run with -o")
        return self._folder / f"{generation:02}-{file_sha256(weights)[:8]}"


def _load(weights: Path, device: torch.device) -> Encoder:
    """Load the encoder that the training saved."""
    return cast(Encoder, load_checkpoint(weights).encoder.to(device))


def _make_in_background(job: Job, weights: Path, directory: Path, device: torch.device) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the training, which then ends this process
    os.nice(_NICENESS)
    torch.set_num_threads(1)
    try:
        make_pseudo_masks(job, _load(weights, device), PseudoMasks(directory))
    except VosrtError as error:
        note(f"pseudo-masks: {error}")
        sys.exit(1)
