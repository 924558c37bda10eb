"""A file from its end to its beginning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from vosrt.errors import BrokenVideoError, SourceError
from vosrt.video.base import Frame, FrameSource

CHUNK_BYTES = 256 << 20  # of decoded frames that wait for their turn

Reopen = Callable[[int, int], FrameSource]


class Rewound:
    """Frames of a file from a late one to an early one.

    A chunk of frames is decoded at a time and given out in reverse, so memory does not grow with the file. A video is
    decoded from its start once, as numbers of frames depend on all that came before them; later chunks are decoded from
    the key frames that were met (see `vosrt.video.key_frames`), if ``reopen`` shares them between its sources.

    Args:
        reopen: opens the source from a frame to the one before another.
        source: the same source, opened; it is not read.
        first: number of the earliest frame, which exists.
        last: number of the latest frame that may exist.

    Attributes:
        last: number of the latest frame that exists. Frames are numbered from it: it has 0, the one before it 1.

    Raises:
        BrokenVideoError: no frame can be read.
    """

    def __init__(self, reopen: Reopen, source: FrameSource, first: int, last: int) -> None:
        self._reopen, self._first, self._before = reopen, first, last + 1
        self._shape = source.first.picture.shape
        self._most = max(4, CHUNK_BYTES // int(np.prod(self._shape)))
        self._name = source.info.name
        self._chunk: list[Frame] = []
        self._read_chunk(at_end=True)
        self.last = self._chunk[-1].index
        self.info = replace(source.info, frame_count=self.last - first + 1)

    @property
    def first(self) -> Frame:
        """The latest frame, as long as it was not iterated over."""
        return self._numbered(self._chunk[-1])

    @property
    def warnings(self) -> Sequence[str]:
        """Return nothing: the source that is read forward tells of its faults."""
        return ()

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames, the latest one first; see `FrameSource`."""
        while self._chunk or self._before > self._first:
            if not self._chunk:
                self._read_chunk()
            yield self._numbered(self._chunk.pop())

    def close(self) -> None:
        """Do nothing: the file is open while a chunk is read."""

    def _numbered(self, frame: Frame) -> Frame:
        return replace(frame, index=self.last - frame.index)

    def _read_chunk(self, *, at_end: bool = False) -> None:
        """Read the frames before those that were read; where all of them were lost, those before these."""
        begin, end = self._before, self._before
        while not self._chunk:
            begin = max(self._first, begin - self._most)
            try:
                source = self._reopen(begin, end)
            except SourceError as error:
                if begin == self._first:
                    raise BrokenVideoError(f"{self._name}: cannot be read backward: {error}", begin) from error
                continue
            try:
                for frame in source:
                    if frame.image.shape != self._shape:
                        raise BrokenVideoError(f"{self._name}: the frame size changes at frame {frame.index}", begin)
                    self._chunk.append(frame)
            except BrokenVideoError:
                if not (at_end and self._chunk):  # else the way forward ends there, too, and tells of it
                    raise
            finally:
                source.close()
        self._before = begin
