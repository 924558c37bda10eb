"""Objects followed through the kept frames of a page: `vosrt.directions.follow` with those frames as its source."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from typing import Literal

from vosrt.directions import Direction, follow
from vosrt.page.frames import FrameStore
from vosrt.page.live import LiveFrames
from vosrt.stream import Stream
from vosrt.types import U8Array
from vosrt.video.base import Frame, SegmentedFrame

Way = Literal["forward", "backward"]

_REFERENCES = 4  # earlier marked frames that a stream sees before the one that it starts from
_WAIT_S = 0.2


class KeptFrames:
    """Kept frames as a source; a frame's index is its position.

    Args:
        positions: of the frames, ascending; the source ends where one is not kept.
        stop: ends the wait for a frame.
    """

    warnings: Sequence[str] = ()

    def __init__(self, frames: FrameStore, positions: Iterable[int], stop: threading.Event) -> None:
        self._frames, self._positions, self._stop = frames, iter(positions), stop
        self.first = self._frame(next(self._positions))
        self.info = replace(frames.info, frame_count=None, live=False)

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames, and wait for those that are not decoded yet."""
        yield self.first
        for position in self._positions:
            while not self._frames.wait(position, _WAIT_S):
                if self._frames.done or self._stop.is_set():
                    return
            yield self._frame(position)

    def close(self) -> None:
        """Leave the frames where they are."""

    def _frame(self, position: int) -> Frame:
        return replace(self._frames.frame(position), index=position, name=str(position))


class _Into:
    """A sink that calls a function."""

    def __init__(self, write: Callable[[SegmentedFrame], None]) -> None:
        self.write = write

    def close(self) -> None:
        """Do nothing: the follower sees the end."""


def follow_kept(
    frames: FrameStore,
    marks: Mapping[int, U8Array],
    start: int,
    way: Way,
    *,
    open_stream: Callable[[], Stream],
    on_result: Callable[[int, SegmentedFrame], None],
    stop: threading.Event,
) -> None:
    """Follow the objects of one frame through the kept ones.

    Forward goes to the end, through marked frames. Backward goes to the marked frame before, from which the objects are
    followed as well: what lies between is fused from both. A frame gets the result of the way back first.

    Args:
        marks: per position of a marked frame u8 [H, W], that of ``start`` among them; each shows an object.
        start: position of the frame where following starts.
        on_result: called with the position and the result of a frame, in other threads.
        stop: ends the run when it is set.

    Raises:
        VosrtError: the objects cannot be followed.
    """
    earlier = sorted(each for each in marks if each < start)
    positions: Iterable[int]
    if way == "forward":
        direction: Direction = "forward"
        positions = chain(earlier[-_REFERENCES:], count(start))
        used = {each: marks[each] for each in marks if each >= start or each in earlier[-_REFERENCES:]}
    else:
        direction = "both" if earlier else "backward"
        first = earlier[-1] if earlier else frames.oldest
        positions, used = range(first, start + 1), {each: marks[each] for each in marks if first <= each <= start}

    whole: set[int] = set()

    def found(item: SegmentedFrame) -> None:
        position = int(item.frame.name)
        whole.add(position)
        if way == "backward" or position >= start:
            on_result(position, item)

    def found_backward(item: SegmentedFrame) -> None:
        if (position := int(item.frame.name)) not in whole:  # then it is what only the way forward found
            on_result(position, item)

    report = follow(
        KeptFrames(frames, positions, stop),
        direction,
        open_stream=open_stream,
        reopen=lambda begin, end: KeptFrames(frames, range(begin, end), stop),
        annotations=used,
        sink=_Into(found),
        beside=frames.folder,
        on_result=found_backward if way == "backward" else None,
        stop=stop,
    )
    if report.error is not None:
        raise report.error


def follow_live(
    frames: LiveFrames,
    marks: Mapping[int, U8Array],
    start: int,
    *,
    open_stream: Callable[[], Stream],
    on_result: Callable[[int, SegmentedFrame], None],
    stop: threading.Event,
) -> None:
    """Follow the objects of a frozen frame to the newest picture, and from then on always in the newest one.

    The frames that were kept meanwhile come first; until all of them are done, one is added for two that are followed.

    Args:
        marks: as for `follow_kept`.
        start: position of the frozen frame.
        on_result: called with the position and the result of a frame.
        stop: ends it.

    Raises:
        VosrtError: the objects cannot be followed.
    """
    earlier = sorted(each for each in marks if each < start)[-_REFERENCES:]
    with open_stream() as stream:
        for position in earlier:
            stream.step(frames.image(position), marks[position])
        for position in count(start):
            while not frames.reach(position, _WAIT_S):
                if stop.is_set():
                    return
            if stop.is_set():
                return
            began = time.monotonic()
            frame = frames.frame(position)
            on_result(position, SegmentedFrame.of(frame, stream.step(frame.image, marks.get(position))))
            if frames.keep_every_s:
                frames.keep_every_s = 2 * (time.monotonic() - began)
