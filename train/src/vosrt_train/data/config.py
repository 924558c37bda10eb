"""What is kept of the videos and how clips are drawn from them: frozen, checked, free of PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from vosrt.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What the cache keeps of each video.

    Attributes:
        short_side: short side of the cached frames in pixels; smaller videos keep their size.
        max_frames: frames kept of one video, from its beginning.
        min_frames: videos with fewer frames are skipped; a clip needs this many.
        folder_fps: frames per second assumed for folders of frames, which carry no rate.
    """

    short_side: int = 320
    max_frames: int = 3000
    min_frames: int = 5
    folder_fps: float = 24.0

    def __post_init__(self) -> None:
        _check("short_side", self.short_side, 8, 4096, "pixels")
        _check("max_frames", self.max_frames, 2, 10**6, "frames")
        _check("min_frames", self.min_frames, 2, self.max_frames, "frames")
        _check("folder_fps", self.folder_fps, 0.01, 10_000, "frames per second")


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """How clips are drawn (Araslanov et al. 2021, section 4 and supplement B).

    Attributes:
        seed: determines every draw, together with the epoch and the clip's index.
        batch: clips a step over all processes; their number must divide it.
        workers: processes that read clips; 0 reads them in the training process.
        frames: frames of a clip, T.
        gap: frames from one frame of a clip to the next at 25 to 30 frames per second; other rates in
            proportion, so that the time between frames stays the same. Shrunk for short videos.
        crop: side of the square crop in pixels.
        resize: the short side is resized to ``crop`` times a number drawn from [1, resize) before the crop.
        flip: mirror half of the clips.
        view_flip: mirror half of the regularising views.
        view_scale: the regularising view shows a part whose side is drawn from [view_scale, 1] of the clip's.
        segment: longer videos give one clip an epoch per this many frames, instead of one.
        lattice: a clip begins at a multiple of so many frames of its segment, so that pseudo-masks are needed of few
            frames; 1 lets it begin anywhere.
    """

    seed: int = 0
    batch: int = 16
    workers: int = 2
    frames: int = 5
    gap: int = 10
    crop: int = 256
    resize: float = 1.25
    flip: bool = True
    view_flip: bool = True
    view_scale: float = 0.5
    segment: int = 300
    lattice: int = 1

    def __post_init__(self) -> None:
        _check("seed", self.seed, 0, 2**63 - 1, "")
        _check("batch", self.batch, 1, 65_536, "clips")
        _check("workers", self.workers, 0, 1024, "processes")
        _check("frames", self.frames, 2, 1000, "frames")
        _check("gap", self.gap, 1, 10_000, "frames")
        _check("crop", self.crop, 8, 4096, "pixels")
        _check("resize", self.resize, 1, 16, "times the crop")
        _check("view_scale", self.view_scale, 0.01, 1, "of the clip's side")
        _check("segment", self.segment, self.frames, 10**6, "frames")
        _check("lattice", self.lattice, 1, 10**6, "frames")


def _check(name: str, value: float, low: float, high: float, unit: str) -> None:
    if not low <= value <= high:
        raise OptionError(f"{name} is {value}; expected {low} to {high} {unit}".rstrip())
