"""Interfaces of frame sources and result sinks, and the types they exchange."""

from __future__ import annotations

import inspect
import math
import os
import stat
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Protocol

import numpy as np

from vosrt.arrays import DeviceTensor
from vosrt.core.native import measure_objects
from vosrt.cuda import download
from vosrt.errors import OptionError, SourceError
from vosrt.types import F32Array, ObjectResult, StepResult, U8Array
from vosrt.video.key_frames import KeyFrames
from vosrt.video.levels import Levels
from vosrt.video.rle import LabelRuns

STDIN = "-"


@dataclass(frozen=True)
class Frame:
    """One decoded picture.

    Attributes:
        image: u8 [H, W, 3], BGR, upright.
        index: number of the frame in its source, from 0 (also where decoding started later).
        time_s: presentation time in seconds; increases from frame to frame.
        name: what results of this frame are called: the file stem, or ``"00037"``.
    """

    image: U8Array
    index: int
    time_s: float
    name: str

    @property
    def picture(self) -> U8Array | DeviceTensor:
        """The image where it is, for a model."""
        return self.image


class FrameOnGpu(Frame):
    """One picture that was decoded on a GPU; it comes to the host when its ``image`` is asked for.

    Args:
        tensor: u8 [H, W, 3], BGR, upright, in memory of its own.
    """

    def __init__(self, tensor: DeviceTensor, index: int, time_s: float, name: str) -> None:
        for name_of, value in (("_tensor", tensor), ("index", index), ("time_s", time_s), ("name", name)):
            object.__setattr__(self, name_of, value)

    @cached_property
    def image(self) -> U8Array:
        """u8 [H, W, 3] in host memory."""
        return download(self._tensor)

    @property
    def picture(self) -> DeviceTensor:
        """The image on its GPU."""
        return self._tensor

    _tensor: DeviceTensor


@dataclass(frozen=True)
class SourceInfo:
    """Description of a source before it is read.

    Attributes:
        name: how the user named it.
        width: frame width in pixels, as displayed.
        height: frame height in pixels, as displayed.
        fps: nominal frames per second.
        frame_count: number of frames that will be yielded, None where unknown.
        live: frames arrive at their own pace (a camera, a network stream).
        stems: file stems of the frames, in order, for a folder of images.
        pixel_aspect: width of a pixel by its height, as it is to be shown; frames and masks keep their pixels.
    """

    name: str
    width: int
    height: int
    fps: float
    frame_count: int | None
    live: bool = False
    stems: tuple[str, ...] | None = None
    pixel_aspect: Fraction = Fraction(1)


@dataclass(frozen=True)
class FrameRange:
    """Range of frames to read: ``start`` to ``end - 1``.

    Attributes:
        start: first frame, from 0.
        end: first frame that is not read; None reads to the end.
    """

    start: int = 0
    end: int | None = None

    def clip(self, count: int) -> int:
        """Return how many of ``count`` frames lie in the range."""
        return max(0, min(count, count if self.end is None else self.end) - self.start)


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Options of reading a source.

    Attributes:
        levels: for values of more than 8 bits: ``"auto"``, ``"full"`` or ``"LO,HI"``; see `vosrt.video.levels.Levels`;
            or levels that several readings of one source share.
        max_megapixels: size of the largest frame that is decoded.
        reconnect_s: seconds for which a live source that drops is tried again; 0 ends there.
        ready: called once by a live source with its first picture, u8 [H, W, 3] BGR, before the frame that counts as
            its first is taken: a network is compiled for the size meanwhile, and no frame waits for that.
        keys: key frames that several readings of one video file share, so that later ones need not decode it from its
            start; None always does.
    """

    levels: str | Levels = "auto"
    max_megapixels: float = 64.0
    reconnect_s: float = 0.0
    ready: Callable[[U8Array], None] | None = None
    keys: KeyFrames | None = None

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        for option, value in (("--max-megapixels", self.max_megapixels), ("--reconnect", self.reconnect_s)):
            if not 0 <= value < math.inf:
                raise OptionError(f"{option} is {value:g}; expected a number from 0")

    @property
    def max_pixels(self) -> int:
        """Pixels of the largest buffer that a decoder may allocate: frames are padded to whole blocks."""
        return round(1.5 * self.max_megapixels * 1e6) + (1 << 16)


def check_pixels(name: str, width: int, height: int, max_megapixels: float) -> None:
    """Refuse a frame that would take too much memory.

    Args:
        name: of the source or file.
        width: of the frame, in pixels.
        height: likewise.
        max_megapixels: what is allowed.

    Raises:
        SourceError: it is larger.
    """
    if width * height > max_megapixels * 1e6:
        raise SourceError(
            f"{name}: a frame is {width}×{height}, {width * height / 1e6:.1f} megapixels; expected at most "
            f"{max_megapixels:g}; --max-megapixels raises that"
        )


class FrameSource(Protocol):
    """An opened source. Iterate once; opening has already read the first frame."""

    @property
    def info(self) -> SourceInfo:
        """Return the description of the source."""

    @property
    def first(self) -> Frame:
        """The first frame of the range; iteration yields it again."""

    @property
    def warnings(self) -> Sequence[str]:
        """One line for each fault of the source that was met so far and survived: complete after the last frame."""

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in order. Where frames are lost, the next one keeps its number.

        Raises:
            BrokenVideoError: the source broke half-way; every frame before was yielded.
        """

    def close(self) -> None:
        """Release the file, camera or connection. May be called twice.

        Where another thread waits inside the source, as for a stalled network stream, nothing is taken from under it:
        that thread closes the source when it is done.
        """


def is_pipe(source: str) -> bool:
    """Return whether ``source`` is ``-`` or a FIFO, which are read once and from the start."""
    if source == STDIN:
        return True
    try:
        return stat.S_ISFIFO(os.stat(source).st_mode)
    except (OSError, ValueError):
        return False


def is_reading(frames: Generator[Frame, None, None]) -> bool:
    """Return whether a thread is inside this generator at the moment."""
    return inspect.getgeneratorstate(frames) == inspect.GEN_RUNNING


@dataclass(frozen=True)
class SegmentedFrame:
    """A frame with its result, as sinks receive it.

    Attributes:
        labels: u8 [H, W]; 0 is background, otherwise an object id.
        object_ids: ids tracked at this frame, ascending.
        object_confidence: by id, the mean confidence over the object's pixels where it is known; else it is measured.
        measured: `StepResult.objects` where ``labels`` are those of the stream; None: measured on demand.
        confidence: f32 [H, W], of each pixel's label, 0 to 1; None where it is unknown.
    """

    frame: Frame
    labels: U8Array
    object_ids: tuple[int, ...]
    object_confidence: Mapping[int, float] = field(default_factory=dict)
    measured: Mapping[int, ObjectResult] | None = None
    confidence: F32Array | None = None

    @classmethod
    def of(cls, frame: Frame, step: StepResult) -> SegmentedFrame:
        """A frame with what a stream gave for it."""
        means = step.object_confidence
        return cls(frame, step.labels, step.object_ids, means, step.objects or None, step.confidence)

    @cached_property
    def objects(self) -> Mapping[int, ObjectResult]:
        """Area, box, centroid, confidence and state of every object in ``object_ids``; shared by all sinks."""
        if self.measured is not None:
            return self.measured
        found = measure_objects(np.ascontiguousarray(self.labels), self.object_ids, self.confidence)
        known = self.object_confidence
        return {each: replace(of, confidence=known.get(each, of.confidence)) for each, of in found.items()}

    @cached_property
    def runs(self) -> LabelRuns:
        """The labels as runs, for run-length encoding; shared by all sinks."""
        return LabelRuns(self.labels)


class FrameSink(Protocol):
    """Receives results in order. What was written when ``close`` returns is whole and usable."""

    def write(self, item: SegmentedFrame) -> None:
        """Take one result.

        Raises:
            WorkError: the result cannot be stored (a full disk, a vanished folder).
        """

    def close(self) -> None:
        """Finish the output under its final name; after zero frames leave nothing behind."""
