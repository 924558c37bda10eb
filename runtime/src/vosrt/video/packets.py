"""Frames and end of a video according to its packets, beside those of its header."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import av

from vosrt.video.base import is_pipe
from vosrt.video.container import is_url
from vosrt.video.timeline import Timeline
from vosrt.video.truncation import is_cut_off, matroska_clusters_end

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

_DEFAULT_FPS = 25.0
_HIGHEST_FPS = 1000.0  # more is a time base that was written for a rate
_INDEX_SAMPLES = 1000  # entries that tell the frame rate
_ROUNDING = 1.5  # frames by which the end of a stream may differ from its header
_SHORT_S = 0.5  # a longer end that is missing is more than a damaged frame or rounding
_BETWEEN_PACKETS = 1024  # bytes: headers of blocks and clusters take less
_WITH_STRUCTURE = ("mov", "matroska", "avi", "gif")  # formats whose files say how long they are
_WITH_INDEX = ("mov", "avi")  # formats that list every frame; a fragmented file lists some
_WITH_DURATION = ("matroska", "flv")  # formats that write a duration which is more than an estimate
_OPEN_ENDED = ("mpegts", "mpeg", "mpegvideo", "h264", "hevc", "dv")  # recordings that start and end anywhere
_CLOCK_RESTARTS = ("mpegts", "mpeg", "flv", "ogg", "asf", "hls", "rtsp", "rtp", "sdp")


class Packets:
    """The packets of one opened source.

    Args:
        name: of the source, as the user named it.

    Attributes:
        format: FFmpeg's short name of the container.
        count: number of packets so far.
        last_s: when the last of them is shown, in seconds.
        end_s: when that ends; the same where packets have no durations.
        read_to: where the last of them ends in the file, in bytes.
        begun: whether a key frame came.
        tail_damaged: whether what came last was damaged.
    """

    def __init__(self, name: str, container: InputContainer, stream: VideoStream) -> None:
        self._name, self._container, self._stream = name, container, stream
        self.format = container.format.name.split(",")[0]
        self.count = 0
        self.last_s = self.end_s = -math.inf
        self.begun = self.tail_damaged = False
        self.read_to = 0

    @property
    def fps(self) -> float:
        """Frames per second. The average counts, unless a frame that is held for long makes it a poor one."""
        stream = self._stream
        rates = [stream.average_rate, stream.guessed_rate]
        if stream.duration is None and stream.start_time is None:  # a raw stream, whose average is FFmpeg's assumption
            rates.reverse()
        fps = next((float(rate) for rate in rates if rate is not None and 0 < rate <= _HIGHEST_FPS), _DEFAULT_FPS)
        if self.format in _WITH_INDEX:
            stamps = [entry.timestamp for entry in stream.index_entries[:_INDEX_SAMPLES]]
            ticks = statistics.median(later - stamp for stamp, later in pairwise(stamps)) if stamps[1:] else None
            step_s = self.seconds(round(ticks)) if ticks is not None else None
            if step_s is not None and step_s > 1 / _HIGHEST_FPS and abs(fps * step_s - 1) > 0.1:
                return 1.0 / step_s
        return fps

    @property
    def promised_frames(self) -> int:
        """Number of frames that will come, 0 where that is unknown. Edit lists hide some; a stale header names more."""
        listed = sum(not entry.is_discard for entry in self._stream.index_entries)
        if self.format == "mov":
            return min(self._stream.frames, listed)
        return 0 if self.format == "avi" and listed != self._stream.frames else self._stream.frames

    @property
    def _promised_s(self) -> float | None:
        """When the video should end by its container's header, in seconds, where that is known.

        Matroska keeps a stream's length in a tag. The container's own length may be that of the sound.
        """
        tag = self._stream.metadata.get("DURATION")
        if tag is not None:
            with suppress(ValueError):
                hours, minutes, seconds = tag.split(":")
                return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        if self._stream.duration is not None:
            return self.seconds((self._stream.start_time or 0) + self._stream.duration)
        if self._container.duration is not None:
            return ((self._container.start_time or 0) + self._container.duration) / av.time_base
        return None

    def new_timeline(self) -> Timeline:
        """Return a timeline for the frames, by their rate and the format."""
        one_clock = not is_url(self._name) and self.format not in _CLOCK_RESTARTS
        return Timeline(step_s=1.0 / self.fps, jumps_allowed=one_clock)

    def seconds(self, ticks: int | None) -> float | None:
        """Return a timestamp of the stream in seconds."""
        return None if ticks is None or self._stream.time_base is None else float(ticks * self._stream.time_base)

    def read(self, timeline: Timeline) -> Iterator[Packet[VideoStream]]:
        """Yield the packets of the video, empty ones at the end included; note holes in ``timeline``.

        A Matroska demuxer looks for the next cluster behind damage and says nothing: bytes that belong to no packet
        tell of it.
        """
        everything = self.format == "matroska"
        packets: Iterator[Packet[Any]] = self._container.demux(
            *(self._container.streams if everything else [self._stream])
        )
        for packet in packets:
            if everything and packet.pos is not None:
                if 0 < self.read_to < packet.pos - _BETWEEN_PACKETS:
                    timeline.note_hole()
                self.read_to = max(self.read_to, packet.pos + packet.size)
            if packet.stream.index == self._stream.index:
                if packet.size:
                    self._note(packet, timeline)
                yield packet

    def _note(self, packet: Packet[VideoStream], timeline: Timeline) -> None:
        self.count += 1
        self.read_to = max(self.read_to, (packet.pos or 0) + packet.size)
        self.begun = self.begun or packet.is_keyframe
        self.tail_damaged = packet.is_corrupt
        if packet.is_corrupt:
            timeline.note_hole()
        stamp_s = self.seconds(packet.pts)
        if stamp_s is not None:
            self.last_s = max(self.last_s, stamp_s)
            self.end_s = max(self.end_s, stamp_s + (self.seconds(packet.duration) or 0.0))

    def what_is_missing(self, step_s: float, count: int | None = None, end_s: float | None = None) -> str | None:
        """Compare a video whose data ended quietly with the structure of its file.

        Args:
            step_s: nominal seconds from frame to frame.
            count: number of packets; None takes those read so far.
            end_s: when the last of them ends, in seconds; likewise.
        """
        count = self.count if count is None else count
        end_s = self.end_s if end_s is None else end_s
        frames = self._stream.frames
        if self.format in _WITH_STRUCTURE and not self._is_remote:
            return self._cut_off(step_s, count, end_s) if is_cut_off(self._name) else None
        if self.tail_damaged and self.format not in _OPEN_ENDED:
            return "the data ends inside a frame"
        if self.format == "mov" and count < frames:
            return f"{frames - count} of its {frames} frames did not come"
        return None

    def _cut_off(self, step_s: float, count: int, end_s: float) -> str | None:
        """Describe the missing part of a file that ends early; None if the video itself is whole."""
        promised_s = self._promised_s
        if self.format == "gif" or promised_s is None or (self.format == "mov" and not self._stream.frames):
            return "the end of the file is missing"
        if count < self._stream.frames or end_s + _ROUNDING * step_s < promised_s:
            return f"the end of the file is missing: its header promises {promised_s:.1f} s"
        return "the data ends inside a frame" if self.tail_damaged else None

    @property
    def _is_remote(self) -> bool:
        return is_url(self._name) or is_pipe(self._name)

    @property
    def all_came(self) -> bool:
        """Return whether all frames of the header were read, so that a later error loses none."""
        if self.format == "mov":
            return 0 < self._stream.frames <= self.count
        return self.format == "matroska" and self._promised_s is not None and self.end_s >= self._promised_s - 1e-3

    def is_unread(self, step_s: float) -> bool:
        """Return whether a Matroska file holds the time that its header promises, in bytes that are no packets.

        Args:
            step_s: nominal seconds from frame to frame.
        """
        if self.format != "matroska" or not self._promised_s or self._container.size <= 0:
            return False
        if self._promised_s - self.end_s <= _ROUNDING * step_s:
            return False
        ends = self._container.size if self._is_remote else matroska_clusters_end(self._name)
        unread = ends - self.read_to
        return unread > max(_BETWEEN_PACKETS, ends * (1 - self.end_s / self._promised_s) / 2)

    def shortfall(self, step_s: float) -> str | None:
        """Say by how much a video that counts as whole falls short of its header; None if it does not."""
        if self.count < self._stream.frames:
            return f"its header promises {self._stream.frames} frames but it holds {self.count}"
        if self.format not in _WITH_DURATION or (self.format in _WITH_STRUCTURE and not self._is_remote):
            return None
        promised_s = self._promised_s
        if promised_s is None or self.end_s + max(_SHORT_S, 3 * step_s) >= promised_s:
            return None
        return f"its header promises {promised_s:.1f} s but it ends at {max(self.end_s, 0):.1f} s"
