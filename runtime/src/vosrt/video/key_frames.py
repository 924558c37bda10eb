"""Places in a video file where decoding can begin, learnt while it is decoded: later readings need not start at 0.

A container may be wrong about its key frames. So the number, timestamp and checksum of every decoded frame are kept,
and a reading that begins at a key frame compares its frames with them. A file that differs once is read from its start.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from vosrt.video.timeline import Timeline

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_EARLIER = 2  # key frames


@dataclass(frozen=True)
class KeyFrame:
    """Where decoding can begin.

    Attributes:
        index: number of the frame.
        pts: its timestamp, in ticks of the stream.
        seek_pts: where to seek for it; formats without an index arrive late.
        timeline: as it was before this frame was placed.
    """

    index: int
    pts: int
    seek_pts: int
    timeline: Timeline


class KeyFrames:
    """What several readings of one file share.

    Attributes:
        trusted: whether readings may begin at a key frame: no damage was met, and no reading differed from another.
        began_s: timestamp in seconds from which the times of frames are counted; None before one was read.
    """

    def __init__(self) -> None:
        self.trusted = True
        self.began_s: float | None = None
        self._keys: list[KeyFrame] = []
        self._earlier = 0  # key frames by which a seek goes further back
        self._seen: list[tuple[int, float, int]] = []  # timestamp, seconds and checksum of every frame

    def before(self, index: int) -> KeyFrame | None:
        """Return the latest key frame up to a frame where decoding can begin; None is the first frame."""
        at = bisect_right(self._keys, index, key=lambda each: each.index) - 1
        if at < self._earlier or not self.trusted:
            return None
        return replace(self._keys[at], seek_pts=self._keys[at - self._earlier].pts)

    def miss(self) -> None:
        """Note that a seek did not lead to its key frame."""
        self._earlier += 1
        self.trusted = self.trusted and self._earlier <= _EARLIER

    def agree(self, picture: VideoFrame, index: int, time_s: float, before: Timeline) -> bool:
        """Note a decoded frame, or compare it with what an earlier reading decoded.

        Args:
            picture: as decoded.
            index: its number.
            time_s: its time.
            before: a copy of the timeline, made before this frame was placed.

        Returns:
            False if an earlier reading saw something else, or could not have.
        """
        if picture.pts is None or not before.is_whole or index != before.count:
            self.trusted = False
        if not self.trusted or picture.pts is None:
            return False
        seen = (picture.pts, time_s, _checksum(picture))
        if index < len(self._seen):
            self.trusted = self._seen[index] == seen
            return self.trusted
        self._seen.append(seen)
        if picture.key_frame and index:
            self._keys.append(KeyFrame(index, picture.pts, picture.pts, replace(before)))
        return True


def _checksum(picture: VideoFrame) -> int:
    """CRC of the first plane, which is brightness where planes are several, without the padding of its rows."""
    plane, layout = picture.planes[0], picture.format
    deep = layout.components[0].bits > 8
    bits = (16 if deep else 8) if len(picture.planes) > 1 else layout.padded_bits_per_pixel
    rows = np.asarray(memoryview(plane)).reshape(-1, abs(plane.line_size))[: plane.height]
    return zlib.crc32(rows[:, : plane.width * bits // 8].tobytes())
