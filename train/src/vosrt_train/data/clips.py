"""Clips, a few frames of one video in random order, and batches of clips from worker processes.

Every draw depends on the seed, the epoch and the index of the clip alone. Batches are therefore the same with any
number of workers and of training processes, and a training can resume within an epoch without a saved generator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.context import BaseContext
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vosrt.errors import OptionError
from vosrt.types import U8Array
from vosrt_train.data.cache import Cache, CachedVideo, end_with_parent, process_context
from vosrt_train.data.config import ClipConfig
from vosrt_train.data.views import View


@dataclass(frozen=True)
class ClipParameters:
    """Random parameters of a clip. Lengths are in pixels of the resized frame.

    Attributes:
        frame_ids: numbers of the frames in the video, in the order of the clip.
        view_scale: side of the view as a fraction of the clip's.
        view_offset: top and left of the view as fractions of the clip's side.
        anchor_shift: two numbers in [0, 1), down and right: how far the anchors move within their cells.
        point_shift: the same for the points of the cross-view loss.
        view_colour: factors of the view's brightness, contrast and saturation; None leaves its colours.
    """

    video: str
    frame_ids: tuple[int, ...]
    height: int
    width: int
    top: int
    left: int
    flip: bool
    view_flip: bool
    view_scale: float
    view_offset: tuple[float, float]
    anchor_shift: tuple[float, float]
    point_shift: tuple[float, float]
    view_colour: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Clip:
    """One clip.

    Attributes:
        frames: u8 [T, crop, crop, 3], RGB.
    """

    frames: U8Array
    parameters: ClipParameters


@dataclass(frozen=True)
class ClipBatch:
    """The clips of one step.

    Attributes:
        frames: u8 [B, T, 3, crop, crop], RGB, channels last in memory.
        view: the regularising view of each clip.
        anchor_shift: f32 [B, 2] in [0, 1), down and right, for `vosrt_train.losses.sample_anchors`.
        point_shift: f32 [B, 2] in [0, 1), for `vosrt_train.losses.sample_points`.
        epoch: from 0.
        step: within the epoch, from 0.
    """

    frames: Tensor
    view: View
    anchor_shift: Tensor
    point_shift: Tensor
    clips: tuple[ClipParameters, ...]
    epoch: int
    step: int

    def to(self, device: torch.device | str) -> ClipBatch:
        """Copy to a device; asynchronously from pinned memory."""
        return replace(
            self,
            frames=self.frames.to(device, non_blocking=True),
            view=self.view.to(device),
            anchor_shift=self.anchor_shift.to(device, non_blocking=True),
            point_shift=self.point_shift.to(device, non_blocking=True),
        )

    def pin_memory(self) -> ClipBatch:
        """Move the frames to pinned memory. The loader calls this."""
        return replace(self, frames=self.frames.pin_memory())


class ClipSampler:
    """Draws clips from a cache (Araslanov et al. 2021, section 4 and supplement B).

    An epoch has one clip of each video, or of each segment of a long one, in random order. Where these are fewer than a
    batch, each is drawn several times.

    Raises:
        OptionError: a video of the cache has fewer frames than a clip.
    """

    def __init__(self, config: ClipConfig, cache: Cache) -> None:
        for video in cache.videos:
            if video.frames < config.frames:
                raise OptionError(
                    f"{video.name} has {video.frames} frames and a clip {config.frames}; build the cache with "
                    f"min_frames = {config.frames}"
                )
        self.config = config
        self._segments = [segment for video in cache.videos for segment in _segments(video, config.segment)]
        self._repeats = -(-config.batch // len(self._segments))

    def __len__(self) -> int:
        """Number of clips in an epoch."""
        return len(self._segments) * self._repeats

    @property
    def steps(self) -> int:
        """Number of whole batches in an epoch; the remaining clips are not used in that epoch."""
        return len(self) // self.config.batch

    def order(self, epoch: int) -> list[int]:
        """Return the indices of the clips of an epoch in the order of training."""
        return [int(index) for index in self._random(epoch, 0).permutation(len(self))]

    def clip(self, epoch: int, index: int) -> Clip:
        """Draw and read one clip.

        Args:
            epoch: from 0.
            index: of the clip, from 0 to ``len(self) - 1``.
        """
        video, first, last = self._segments[index % len(self._segments)]
        parameters = self._draw(self._random(epoch, 1 + index), video, first, last)
        return Clip(_read(video, parameters, self.config.crop), parameters)

    def frames_shown(self, first: int, last: int, *, frames: int, clips: int, world: int) -> dict[str, frozenset[int]]:
        """Return the frames at the head of the clips of some steps, without reading any frame.

        Args:
            first: first step, from 0.
            last: the step after the last one.
            frames: number of frames of each clip, from its frame 0 on.
            clips: number of clips in the part of the batch of each process, from its first one on.

        Returns:
            Numbers of frames by the name of their video.
        """
        part = self.config.batch // world
        shown: dict[str, set[int]] = {}
        for epoch in range(first // self.steps, -(-last // self.steps)):
            order = self.order(epoch)[: self.steps * self.config.batch]
            for place, index in enumerate(order):
                step = epoch * self.steps + place // self.config.batch
                if first <= step < last and place % self.config.batch % part < clips:
                    video, start, end = self._segments[index % len(self._segments)]
                    drawn = self._draw(self._random(epoch, 1 + index), video, start, end)
                    shown.setdefault(video.name, set()).update(drawn.frame_ids[:frames])
        return {name: frozenset(numbers) for name, numbers in shown.items()}

    def _random(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, epoch, stream])

    def _draw(self, random: np.random.Generator, video: CachedVideo, first: int, last: int) -> ClipParameters:
        config, count = self.config, last - first
        window = min(count, config.frames * gap_frames(video.fps, config.gap))
        gap = window // config.frames
        offset = int(random.integers(count - gap * (config.frames - 1)))
        start = first + offset - offset % config.lattice
        frame_ids = start + gap * random.permutation(config.frames)
        short = int(config.crop * random.uniform(1, config.resize))
        shortest = min(video.height, video.width)
        height, width = video.height * short // shortest, video.width * short // shortest
        view_scale = float(random.uniform(config.view_scale, 1))
        chosen = ClipParameters(
            video=video.name,
            frame_ids=tuple(int(frame_id) for frame_id in (sorted(frame_ids) if config.order == "time" else frame_ids)),
            height=height,
            width=width,
            top=int(random.integers(height - config.crop + 1)),
            left=int(random.integers(width - config.crop + 1)),
            flip=bool(random.random() < 0.5) and config.flip,
            view_flip=bool(random.random() < 0.5) and config.view_flip,
            view_scale=view_scale,
            view_offset=(float(random.uniform(0, 1 - view_scale)), float(random.uniform(0, 1 - view_scale))),
            anchor_shift=(float(random.random()), float(random.random())),
            point_shift=(float(random.random()), float(random.random())),
        )
        if not config.photometric:
            return chosen
        # Drawn last, so that the option changes nothing but colours.
        brightness, contrast, saturation = random.uniform(1 - config.photometric, 1 + config.photometric, 3).tolist()
        return replace(chosen, view_colour=(brightness, contrast, saturation))


def gap_frames(fps: float, gap: int) -> int:
    """Return the distance between two frames of a clip in frames: the same time at every frame rate.

    Args:
        fps: frames per second of the video.
        gap: distance at 25 to 30 frames per second.
    """
    return max(1, round(gap * fps / min(max(fps, 25), 30)))


def make_loader(
    config: ClipConfig,
    cache: Cache,
    *,
    epoch: int = 0,
    start_batch: int = 0,
    epochs: int = 1,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[ClipBatch]:
    """Load the batches of one or more epochs in worker processes.

    One loader for many epochs keeps its workers busy at the end of each. Process ``rank`` of ``world`` gets its part of
    each batch; the concatenated parts are the batch that a single process would get.

    Args:
        start_batch: first batch of that epoch; to resume, the number of batches already used.
        epochs: number of epochs, the first included.
        rank: number of this process, from 0.

    Returns:
        A loader of `ClipBatch`.

    Raises:
        OptionError: the processes cannot share the batch evenly, or an epoch has fewer batches than ``start_batch``.
    """
    sampler = ClipSampler(config, cache)
    if config.batch % world:
        raise OptionError(f"batch is {config.batch}; expected a multiple of the number of processes, {world}")
    if not 0 <= start_batch <= sampler.steps:
        raise OptionError(f"start_batch is {start_batch}; an epoch has {sampler.steps} batches")
    parallel = config.workers > 0
    return DataLoader(
        _Batches(sampler),
        batch_size=None,  # an item is a whole batch
        sampler=_Schedule(sampler, epoch, start_batch, epochs, rank, world),
        num_workers=config.workers,
        worker_init_fn=_prepare_worker if parallel else None,
        multiprocessing_context=_loading_context() if parallel else None,
        prefetch_factor=2 if parallel else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # otherwise the loader draws from the global generator
    )


class _BatchKey(NamedTuple):
    epoch: int
    step: int
    indices: tuple[int, ...]


class _Schedule:
    """Keys of the batches of this process in order: the sampler of the loader."""

    def __init__(self, sampler: ClipSampler, epoch: int, start: int, epochs: int, rank: int, world: int) -> None:
        self._sampler, self._rank, self._world = sampler, rank, world
        self._epoch, self._start, self._epochs = epoch, start, epochs

    def __len__(self) -> int:
        return self._epochs * self._sampler.steps - self._start

    def __iter__(self) -> Iterator[_BatchKey]:
        batch = self._sampler.config.batch
        part = batch // self._world
        for epoch in range(self._epoch, self._epoch + self._epochs):
            order = self._sampler.order(epoch)
            for step in range(self._start if epoch == self._epoch else 0, self._sampler.steps):
                first = step * batch + self._rank * part
                yield _BatchKey(epoch, step, tuple(order[first : first + part]))


class _Batches(Dataset[ClipBatch]):
    """Data set whose items are whole batches."""

    def __init__(self, sampler: ClipSampler) -> None:
        self._sampler = sampler

    def __getitem__(self, key: _BatchKey) -> ClipBatch:
        clips = [self._sampler.clip(key.epoch, index) for index in key.indices]
        parameters = tuple(clip.parameters for clip in clips)
        colours = [each.view_colour for each in parameters]
        frames = torch.from_numpy(np.stack([clip.frames for clip in clips]))
        return ClipBatch(
            frames=frames.permute(0, 1, 4, 2, 3),
            view=View(
                flip=torch.tensor([each.view_flip for each in parameters]),
                scale=torch.tensor([each.view_scale for each in parameters]),
                offset=torch.tensor([each.view_offset for each in parameters]),
                colour=torch.tensor(colours) if all(colours) else None,
            ),
            anchor_shift=torch.tensor([each.anchor_shift for each in parameters]),
            point_shift=torch.tensor([each.point_shift for each in parameters]),
            clips=parameters,
            epoch=key.epoch,
            step=key.step,
        )


def _segments(video: CachedVideo, length: int) -> Iterator[tuple[CachedVideo, int, int]]:
    """Cut a video into segments of at least ``length`` frames; one shorter than two segments stays whole."""
    count = max(1, video.frames // length)
    for number in range(count):
        yield video, video.frames * number // count, video.frames * (number + 1) // count


def _read(video: CachedVideo, parameters: ClipParameters, crop: int) -> U8Array:
    frames = video.open()
    size = (parameters.width, parameters.height)
    smaller = parameters.height < video.height
    clip = np.empty((len(parameters.frame_ids), crop, crop, 3), np.uint8)
    for slot, frame_id in zip(clip, parameters.frame_ids, strict=True):
        frame = cv2.resize(frames[frame_id], size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
        window = frame[parameters.top : parameters.top + crop, parameters.left : parameters.left + crop]
        slot[:] = window[:, ::-1] if parameters.flip else window
    return clip


def _prepare_worker(_: int) -> None:
    end_with_parent()
    cv2.setNumThreads(0)


def _loading_context() -> BaseContext:
    """Let the fork server import PyTorch once for all workers."""
    context = process_context()
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload([__name__])
    return context
