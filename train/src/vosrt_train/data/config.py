"""Settings of the cache and of clips. Imports no PyTorch: decoding processes import this module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vosrt.errors import OptionError
from vosrt_train.ranges import Checked, limited

Order = Literal["random", "time"]


@dataclass(frozen=True, kw_only=True)
class CacheConfig(Checked, table="cache"):
    """Cache of frames.

    Attributes:
        short_side: short side of the cached frames in pixels; smaller videos keep their size.
        max_frames: frames kept of one video, from its beginning.
        min_frames: videos with fewer frames are skipped; a clip needs this many.
        folder_fps: frames per second assumed for folders of frames, which carry no rate.
    """

    short_side: int = limited(320, 8, 4096, "pixels")
    max_frames: int = limited(3000, 2, 10**6, "frames")
    min_frames: int = limited(5, 2, 10**6, "frames")
    folder_fps: float = limited(24.0, 0.01, 10_000, "frames per second")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_frames > self.max_frames:
            raise OptionError(f"cache.min_frames is {self.min_frames}; expected at most max_frames, {self.max_frames}")


@dataclass(frozen=True, kw_only=True)
class ClipConfig(Checked, table="clips"):
    """Clips and regularising views (Araslanov et al. 2021, section 4 and supplement B).

    Attributes:
        seed: determines every draw, together with the epoch and the clip's index.
        batch: clips a step over all processes; their number must divide it.
        workers: processes that read clips; 0 reads them in the training process.
        frames: frames of a clip, T.
        order: ``"random"`` shuffles the frames of a clip; ``"time"`` keeps their order, so that losses can follow a
            chain of frames.
        gap: frames from one frame of a clip to the next at 25 to 30 frames per second; other rates in
            proportion, so that the time between frames stays the same. Shrunk for short videos.
        crop: side of the square crop in pixels.
        resize: the short side is resized to ``crop`` times a number drawn from [1, resize) before the crop.
        flip: mirror half of the clips.
        view_flip: mirror half of the regularising views.
        view_scale: the regularising view shows a part whose side is drawn from [view_scale, 1] of the clip's.
        photometric: brightness, contrast and saturation of the regularising view are each multiplied by a number drawn
            from [1 - photometric, 1 + photometric]; 0 leaves its colours.
        segment: longer videos give one clip an epoch per this many frames, instead of one.
        lattice: a clip begins at a multiple of this many frames of its segment, so that few frames need pseudo-masks; 1
            lets it begin anywhere.
    """

    seed: int = limited(0, 0, 2**63 - 1)
    batch: int = limited(16, 1, 65_536, "clips")
    workers: int = limited(2, 0, 1024, "processes")
    frames: int = limited(5, 2, 1000, "frames")
    order: Order = "random"
    gap: int = limited(10, 1, 10_000, "frames")
    crop: int = limited(256, 8, 4096, "pixels")
    resize: float = limited(1.25, 1, 16, "times the crop")
    flip: bool = True
    view_flip: bool = True
    view_scale: float = limited(0.5, 0.01, 1, "of the clip's side")
    photometric: float = limited(0.0, 0, 0.9)
    segment: int = limited(300, 2, 10**6, "frames")
    lattice: int = limited(1, 1, 10**6, "frames")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segment < self.frames:
            raise OptionError(f"clips.segment is {self.segment}; expected at least clips.frames, {self.frames}")
