"""What every source of frames and every sink for results looks like."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from vosrt.cuda_queue import download
from vosrt.engines.device import DeviceTensor
from vosrt.types import U8Array


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
        index: as of every frame.
        time_s: likewise.
        name: likewise.
    """

    def __init__(self, tensor: DeviceTensor, index: int, time_s: float, name: str) -> None:
        for field, value in (("_tensor", tensor), ("index", index), ("time_s", time_s), ("name", name)):
            object.__setattr__(self, field, value)

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
    """What is known of a source before it is read.

    Attributes:
        name: how the user named it.
        width: frame width in pixels, as displayed.
        height: frame height in pixels, as displayed.
        fps: nominal frames per second.
        frame_count: number of frames that will be yielded, None where unknown.
        live: frames arrive at their own pace (a camera, a network stream).
        stems: file stems of the frames, in order, for a folder of images.
    """

    name: str
    width: int
    height: int
    fps: float
    frame_count: int | None
    live: bool = False
    stems: tuple[str, ...] | None = None


@dataclass(frozen=True)
class FrameRange:
    """The part of a source that is wanted: frames ``start`` to ``end - 1``.

    Attributes:
        start: first frame, from 0.
        end: first frame that is not wanted; None reads to the end.
    """

    start: int = 0
    end: int | None = None

    def clip(self, count: int) -> int:
        """Return how many of ``count`` frames lie in the range."""
        return max(0, min(count, count if self.end is None else self.end) - self.start)


class FrameSource(Protocol):
    """An opened source. Iterate once; opening has already read the first frame."""

    @property
    def info(self) -> SourceInfo:
        """What is known before reading."""

    @property
    def first(self) -> Frame:
        """The first wanted frame; iteration yields it again."""

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in order.

        Raises:
            BrokenVideoError: the source broke half-way; every frame before was yielded.
        """

    def close(self) -> None:
        """Release the file, camera or connection. May be called twice.

        Where another thread waits inside the source, as for a stalled network stream, nothing is taken from under it:
        that thread closes the source when it is done.
        """


def is_reading(frames: Generator[Frame, None, None]) -> bool:
    """Whether a thread is inside this generator at the moment."""
    return inspect.getgeneratorstate(frames) == inspect.GEN_RUNNING


@dataclass(frozen=True)
class SegmentedFrame:
    """A frame with its result, as sinks receive it.

    Attributes:
        frame: the decoded picture.
        labels: u8 [H, W]; 0 is background, otherwise an object id.
        object_ids: ids tracked at this frame, ascending.
        object_confidence: mean confidence over each object's pixels, 0 to 1.
    """

    frame: Frame
    labels: U8Array
    object_ids: tuple[int, ...]
    object_confidence: dict[int, float]


class FrameSink(Protocol):
    """Receives results in order. What was written when ``close`` returns is whole and usable."""

    def write(self, item: SegmentedFrame) -> None:
        """Take one result.

        Raises:
            WorkError: the result cannot be stored (a full disk, a vanished folder).
        """

    def close(self) -> None:
        """Finish the output under its final name; after zero frames leave nothing behind."""
