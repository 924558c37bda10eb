"""The end of a fine-tuning: the networks before and after follow the same patches, and the better one is kept.

Nothing is annotated, so both are judged by cycle consistency (`vosrt.evaluation.cycle`): patches of the first frame of
a few videos are followed forward and back to where they were. The patches are those with most texture, for flat ones
could be anywhere. Both networks run as they would ship, by the runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vosrt.evaluation.cycle import cycle_consistency
from vosrt.model import Model
from vosrt.types import U8Array
from vosrt.video.base import Frame, SourceInfo
from vosrt_train.checkpoint import load_checkpoint, save_checkpoint
from vosrt_train.config import TrainConfig
from vosrt_train.data.cache import Cache, CachedVideo
from vosrt_train.run_folder import BEST_NAME, LAST_NAME, START_NAME
from vosrt_train.validate import runtime_model

_TURNS = 2
_PATCHES = 3
_GRID = 4  # patches are chosen from a grid of 4 by 4
_PATCH_SHARE = 0.16  # side of a patch, as a share of the frame's short side


@dataclass(frozen=True)
class Kept:
    """Result of a comparison.

    Attributes:
        before: mean cycle consistency of the network at the start, 0 to 1.
        after: mean cycle consistency of the trained network, 0 to 1.
    """

    before: float
    after: float

    @property
    def improved(self) -> bool:
        """Whether the trained network is kept."""
        return self.after > self.before

    def __str__(self) -> str:
        scores = f"cycle consistency {100 * self.before:.1f} before, {100 * self.after:.1f} after"
        if self.improved:
            return f"{scores}: the trained network is kept"
        return f"{scores}: the network that it started from is kept; try more videos, or more minutes"


def keep_better(run: Path, config: TrainConfig, cache: Cache, tell: Callable[[str], None]) -> Kept:
    """Write the better of a run's first and last network to its ``best.safetensors``.

    Args:
        tell: called with a line before each video.

    Raises:
        CheckpointError: one of both checkpoints is missing.
        OutputError: the folder cannot be written to.
    """
    paths = [run / name for name in (START_NAME, LAST_NAME)]
    checkpoints = [load_checkpoint(path) for path in paths]
    models = [runtime_model(each.encoder, config.validation_feature, config.compute.precision) for each in checkpoints]
    videos = _spread([video for video in cache.videos if video.frames > 1], config.validation.cycles)
    scores: list[list[float]] = [[], []]
    for number, video in enumerate(videos):
        for word, model, found in zip(("before", "after"), models, scores, strict=True):
            tell(f"following {video.name}, {number + 1} of {len(videos)}, with the network {word}")
            found.append(_cycle(model, video, config))
    kept = Kept(*(math.fsum(found) / max(1, len(found)) for found in scores))
    save_checkpoint(checkpoints[kept.improved], run / BEST_NAME)
    return kept


def patches(frame: U8Array) -> U8Array:
    """Square patches of a frame with most texture: u8 [H, W, 3] -> u8 [H, W], 1, 2, … inside them."""
    height, width = frame.shape[:2]
    side = max(2, round(_PATCH_SHARE * min(height, width)))
    grey = frame.mean(axis=-1)
    texture = np.abs(np.gradient(grey, axis=0)) + np.abs(np.gradient(grey, axis=1))
    corners = [
        (round((height - side) * (row + 0.5) / _GRID), round((width - side) * (column + 0.5) / _GRID))
        for row in range(_GRID)
        for column in range(_GRID)
    ]
    corners.sort(key=lambda corner: -texture[corner[0] : corner[0] + side, corner[1] : corner[1] + side].sum())
    mask = np.zeros((height, width), np.uint8)
    for number, (y, x) in reversed(list(enumerate(corners[:_PATCHES], start=1))):
        mask[y : y + side, x : x + side] = number
    return mask


def _cycle(model: Model, video: CachedVideo, config: TrainConfig) -> float:
    source = _CachedFrames(video, config.validation.cycle_frames)
    masks = {0: patches(source.first.image)}
    return cycle_consistency(model, source, masks, size=config.clips.crop, turns=_TURNS).score


def _spread(videos: Sequence[CachedVideo], count: int) -> list[CachedVideo]:
    """Choose up to ``count`` videos, evenly spaced."""
    places = sorted({len(videos) * place // count for place in range(count)}) if videos else []
    return [videos[place] for place in places]


class _CachedFrames:
    """The first frames of a cached video as a source of the runtime."""

    def __init__(self, video: CachedVideo, count: int) -> None:
        self._frames = video.open()[:count]
        self._fps = video.fps
        self.info = SourceInfo(video.name, video.width, video.height, video.fps, len(self._frames))
        self.first = self._frame(0)
        self.warnings: Sequence[str] = ()

    def __iter__(self) -> Iterator[Frame]:
        return (self._frame(index) for index in range(len(self._frames)))

    def close(self) -> None:
        """Do nothing: the frames are a memory map."""

    def _frame(self, index: int) -> Frame:
        bgr = np.ascontiguousarray(self._frames[index][..., ::-1])
        return Frame(bgr, index, index / self._fps, f"{index:05}")
