"""Video files, pipes and network streams through PyAV (FFmpeg)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

import av

from vosrt.errors import BrokenVideoError, SourceError
from vosrt.text import counted
from vosrt.types import U8Array
from vosrt.video import container
from vosrt.video.base import Frame, FrameRange, SourceInfo, SourceOptions, is_pipe, is_reading
from vosrt.video.container import choose_stream, is_live, is_url, keeps_its_pace, open_container, words
from vosrt.video.fitted import fitted
from vosrt.video.joined import next_part
from vosrt.video.key_frames import KeyFrame, KeyFrames
from vosrt.video.levels import Levels
from vosrt.video.packets import Packets
from vosrt.video.picture import deep_values, display_turn, to_bgr
from vosrt.video.timeline import Timeline, name_frames

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

_LOST_END_S = 0.5  # a longer end that cannot be decoded is a break; less is one of many damaged places
_PATIENCE = 32  # faults in a row that the demuxer may meet
_RETRY_S = 1.0

Item = TypeVar("Item")


class VideoSource:
    """Frames of a video file, pipe or address, upright, with their own timestamps.

    Damage is decoded over: what cannot be decoded is left out, counted and named in ``warnings``.

    Args:
        source: path, ``-`` or address, anything that FFmpeg opens.

    Attributes:
        packets: those of the opened file or connection.
        turned: whether a frame so far had to be turned or mirrored.
        trimmed: whether an edit list hides frames.

    Raises:
        SourceError: it cannot be opened, has no video, or the first frame of the range cannot be decoded.
    """

    def __init__(
        self,
        source: str,
        frames: FrameRange = FrameRange(),  # noqa: B008 (frozen)
        options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
    ) -> None:
        self._name, self._range, self._options = source, frames, options
        self._levels = Levels.of(options.levels)
        self._start()
        if self.info.live and options.ready is not None:
            self._start_again(options.ready)

    def _start_again(self, ready: Callable[[U8Array], None]) -> None:
        """Let ``ready`` see the first picture; then begin with one of that moment, on a new connection.

        A camera may allow one connection at a time. Another server may answer once: its connection is kept then.
        """
        earlier, camera = dict(vars(self)), keeps_its_pace(self._name)
        try:
            ready(self.first.image)
        except BaseException:
            self._container.close()
            raise
        if camera:
            self._container.close()
        try:
            self._start()
        except SourceError:
            if camera:
                raise
            vars(self).update(earlier)
        else:
            earlier["_container"].close()

    def _begin(self) -> None:
        self._part_at, self._shift_s, self._parts = 0, 0.0, 1
        self._connect()
        self._timeline = self.packets.new_timeline()

    def _start(self) -> None:
        self._begin()
        self.turned = False
        self._reconnects: list[int] = []
        self._dropped_s = self._newest_s = time.monotonic()  # newest drop-out; newest picture
        self._resized: str | None = None
        self._began_s: float | None = None  # what `began_s` was, or the timestamp of the first picture
        self._failure: str | None = None
        self._shortfall: str | None = None
        self._live = is_live(self._name, self._container)
        self._decoder = self._decode()
        try:
            try:
                self.first = next(self._decoder)
            except BrokenVideoError as error:
                start = self._range.start
                raise SourceError(f"{self._name}: cannot be decoded up to frame {start}: {error}") from error
            except StopIteration:
                raise self._nothing_decoded() from None
            self.info = self._describe()
        except BaseException:
            self._container.close()
            raise

    def _connect(self) -> None:
        self._connected_s = time.monotonic()
        self._container = open_container(self._name, self._options.max_pixels, self._part_at)
        try:
            self._stream = choose_stream(self._container, self._name, self._options.max_megapixels)
        except BaseException:
            self._container.close()
            raise
        self._stream.codec_context.options = {"max_pixels": str(self._options.max_pixels)}
        self.packets = Packets(self._name, self._container, self._stream)

    @property
    def began_s(self) -> float | None:
        """Timestamp that a player shows as 0, in seconds; None is that of the first frame.

        A file of one frame may not know it. AVI has no timestamp but the place of a packet, so that its frames come
        out as much later as its encoder reordered them.
        """
        start = 0 if self._live else self._container.start_time
        return None if start is None or self.packets.format == "avi" else start / av.time_base

    @property
    def trimmed(self) -> bool:
        """Return whether an edit list hides frames."""
        return any(entry.is_discard for entry in self._stream.index_entries)

    @property
    def warnings(self) -> Sequence[str]:
        """One line for each fault that was met; see `FrameSource`."""
        lines = self._timeline.warnings(self._name) + self._levels.note(self._name)
        if self._reconnects:
            lines.append(f"{self._name}: the connection dropped before {name_frames(self._reconnects)}")
        if self._resized is not None:
            lines.append(f"{self._name}: {self._resized}")
        if self._parts > 1:
            lines.append(f"{self._name}: is {self._parts} recordings that were joined; each follows the one before it")
        if self._shortfall is not None:
            lines.append(f"{self._name}: {self._shortfall}")
        return lines

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in order; see `FrameSource`."""
        yield self.first
        yield from self._decoder

    def close(self) -> None:
        """Close the file or connection; see `FrameSource`."""
        if not is_reading(self._decoder):
            self._container.close()

    def _since_beginning(self, stamp_s: float | None) -> float | None:
        """Return a timestamp as a player shows it, in seconds."""
        return None if stamp_s is None or self._began_s is None else stamp_s - self._began_s + self._shift_s

    def _describe(self) -> SourceInfo:
        height, width = self.first.image.shape[:2]
        promised = self.packets.promised_frames
        return SourceInfo(
            name=self._name,
            width=width,
            height=height,
            fps=1.0 / self._timeline.step_s,
            frame_count=self._range.clip(promised) if promised and self._next_part_at() is None else None,
            live=self._live,
            pixel_aspect=self._pixel_aspect,
        )

    def _nothing_decoded(self) -> SourceError:
        if self._timeline.count:
            return SourceError(
                f"{self._name}: has {counted(self._timeline.count, 'frame')}; "
                f"frame {self._range.start} (--start) is past the end"
            )
        return SourceError(
            f"{self._name}: holds no frame that can be decoded; expected a playable video "
            f"of at most {self._options.max_megapixels:g} megapixels a frame (--max-megapixels)"
        )

    def _decode(self) -> Generator[Frame, None, None]:
        """Yield the frames of the range; raise BrokenVideoError where the data ends too early."""
        shape: tuple[int, ...] | None = None
        placed = self._levels.ahead(self._placed(), lambda each: deep_values(each[0]), 1 if self._live else 8)
        for picture, index, time_s in placed:
            image = to_bgr(picture, self._levels)
            turn = display_turn(picture)
            self.turned = self.turned or any(turn)
            if shape is None:
                aspect = Fraction(self._stream.sample_aspect_ratio or 1)
                self._pixel_aspect = 1 / aspect if turn[0] else aspect
            elif image.shape != shape:
                change = f"from {shape[1]}×{shape[0]} to {image.shape[1]}×{image.shape[0]} at frame {index}"
                if not self._live:
                    raise BrokenVideoError(f"{self._name}: the frame size changes {change}; expected one size", index)
                self._resized = (
                    self._resized or f"the frame size changes {change}; frames are fitted into the first size"
                )
                image = fitted(image, *shape[:2])
            shape = image.shape
            yield Frame(image, index, time_s, f"{index:05d}")

    def _placed(self) -> Iterator[tuple[VideoFrame, int, float]]:
        """Yield the pictures of the range with their number and time."""
        keys = None if self._live or is_url(self._name) or is_pipe(self._name) else self._options.keys
        wanted = self._range.start
        while keys is not None and self._range.end is not None and (key := keys.before(wanted)) is not None:
            found = False
            for picture, index, time_s, before in self._numbered(key):
                found = True
                if not keys.agree(picture, index, time_s, before):
                    break
                if index >= wanted:
                    yield picture, index, time_s
                    wanted = index + 1
                if index + 1 == self._range.end:
                    return
            if found:
                keys.trusted = False
            else:
                keys.miss()
            self._container.close()
            self._begin()
        for picture, index, time_s, before in self._numbered():
            if keys is not None:
                keys.agree(picture, index, time_s, before)
            if self._range.end is not None and index >= self._range.end:
                return
            if index >= wanted:
                yield picture, index, time_s
            if index + 1 == self._range.end:  # the next one may never come
                return
        self._end()

    def _numbered(self, key: KeyFrame | None = None) -> Iterator[tuple[VideoFrame, int, float, Timeline]]:
        """Yield pictures from a key frame or the start on: number, time and the timeline before it was placed."""
        keys = self._options.keys or KeyFrames()
        self._began_s = next((each for each in (self._began_s, self.began_s, keys.began_s) if each is not None), None)
        pictures = self._pictures()
        if self._options.ready is not None and keeps_its_pace(self._name):
            pictures = self._newest(pictures)
        if key is not None:
            pictures = self._sought(key, pictures)

        def stamped(picture: VideoFrame) -> tuple[VideoFrame, float | None, float]:
            ticks = picture.dts if self.packets.format == "avi" else picture.pts
            stamp_s = self.packets.seconds(ticks)
            keys.began_s = self._began_s = stamp_s if self._began_s is None else self._began_s
            return picture, self._since_beginning(stamp_s), self.packets.seconds(picture.duration) or 0.0

        # A file's frames are decoded one ahead; those of a live source are yielded at once.
        all_stamped = map(stamped, pictures)
        pairs = ((each, None) for each in all_stamped) if self._live else _with_next(all_stamped)
        for (picture, stamp_s, duration_s), following in pairs:
            before = replace(self._timeline)
            index, time_s = self._timeline.place(
                stamp_s, duration_s, damaged=picture.is_corrupt, next_s=following[1] if following else None
            )
            yield picture, index, time_s, before

    def _sought(self, key: KeyFrame, pictures: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        """Seek; pass over what is shown before the key frame, which may need frames from before it."""
        try:
            self._container.seek(key.seek_pts, stream=self._stream)
        except (av.error.FFmpegError, OSError) as error:
            logger.info("%s: cannot be sought in (%s)", self._name, error)
            return
        for picture in pictures:
            if picture.pts == key.pts:
                self._timeline.go_on_as(key.timeline)
                yield picture
                yield from pictures
            elif picture.pts is None or picture.pts > key.pts:
                return

    def _end(self) -> None:
        """Raise BrokenVideoError if the data ended too early."""
        reason, at = self._failure, self._timeline.count
        if not at:
            return
        if not self._live and (reason is None or self.packets.all_came):
            reason = self._why_it_ended()
        if reason is not None:
            raise BrokenVideoError(f"{self._name}: the video breaks at frame {at} ({reason})", at)

    def _newest(self, pictures: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        """Pass over the pictures that came while FFmpeg examined the stream: the first to be waited for is of now."""
        step_s = self._timeline.step_s
        newest = next(pictures, None)
        for _ in range(int((time.monotonic() - self._connected_s) / step_s)):
            began = time.monotonic()
            following = next(pictures, None)
            if following is None:
                break
            newest = following
            if time.monotonic() - began > step_s / 2:
                break
        if newest is not None:
            yield newest
            yield from pictures

    def _pictures(self) -> Iterator[VideoFrame]:
        """Yield decoded pictures from the start of the source, over lost connections where that is asked for."""
        while True:
            self._failure = yield from self._connection()
            if self._live and self._failure is None and self.packets.format == "rtsp":
                self._failure = "the connection ended"
            if not (self._live and self._failure is not None and self._reconnect()) and not self._open_next_part():
                return

    def _connection(self) -> Generator[VideoFrame, None, str | None]:
        """Yield the pictures of one opened source; return why it failed, if it did."""
        faults = 0
        while True:
            try:
                asked_s = time.monotonic()
                for packet in self.packets.read(self._timeline):
                    faults, waited_s = 0, time.monotonic() - asked_s
                    yield from self._pictures_of(packet)
                    if self._live and waited_s >= container.READ_TIMEOUT_S:
                        # The time limit has passed, and FFmpeg's parser answered with what it had held back.
                        self._newest_s = asked_s
                        return container.no_data()
                    asked_s = time.monotonic()
                return None
            except (av.error.FFmpegError, OSError) as error:  # a pipe's errors pass through FFmpeg as they are
                # A demuxer that meets noise goes on behind it; one that cannot read does not.
                faults += 1
                self._timeline.note_hole()
                if not isinstance(error, av.error.InvalidDataError) or faults > _PATIENCE:
                    with suppress(av.error.FFmpegError):
                        yield from self._stream.decode(None)
                    return words(error)

    def _pictures_of(self, packet: Packet[VideoStream]) -> Iterator[VideoFrame]:
        """Yield what one packet gives; note where it gives nothing because of damage."""
        try:
            for picture in packet.decode():
                self._newest_s = time.monotonic()
                self.packets.tail_damaged = self.packets.tail_damaged or picture.is_corrupt
                yield picture
        except av.error.FFmpegError as error:
            logger.info("%s: skipping an undecodable packet (%s)", self._name, error.strerror)
            self.packets.tail_damaged = True
            # Recordings that start between two key frames fail until the first one comes; players count from that.
            if packet.size and self.packets.begun and not packet.is_discard:
                in_place = self.packets.format == "avi"
                stamp_s = self.packets.seconds(packet.dts if in_place else packet.pts)
                self._timeline.fail(stamp_s if in_place else self._since_beginning(stamp_s))

    def _why_it_ended(self) -> str | None:
        """Describe the missing part of a video that ended without an error; None if it is whole."""
        step_s = self._timeline.step_s
        lost = self._timeline.close()
        reason = self.packets.what_is_missing(step_s)
        if reason is None and lost * step_s > max(_LOST_END_S, 3 * step_s):
            reason = "the rest cannot be decoded"
        if reason is None and self.packets.is_unread(step_s):
            reason = "the rest cannot be read"
        if reason is not None:
            self._timeline.lost[len(self._timeline.lost) - lost :] = []  # the error tells of them
        else:
            self._shortfall = self.packets.shortfall(step_s)
        return reason

    def _next_part_at(self) -> int | None:
        """Return where a recording begins that was appended to this file, behind all that was read."""
        if self._live or is_url(self._name) or is_pipe(self._name):
            return None
        return next_part(self._name, self.packets.format, self._part_at, self._part_at + self.packets.read_to)

    def _open_next_part(self) -> bool:
        """Go on with a recording that was appended to this one; return whether there is one."""
        at = self._next_part_at()
        if at is None:
            return False
        earlier, part_at = self._container, self._part_at
        end_s = max(self.packets.end_s, self.packets.last_s + self._timeline.step_s) + self._shift_s
        self._part_at = at
        try:
            self._connect()
        except SourceError as error:
            logger.info("%s: what begins at byte %d is no recording (%s)", self._name, at, error)
            self._part_at = part_at
            return False
        earlier.close()
        self._shift_s = end_s - (self._container.start_time or 0) / av.time_base
        self._parts += 1
        return True

    def _reconnect(self) -> bool:
        """Try to reach a live source again; return whether frames can be read."""
        # A server that accepts connections and sends no picture is not reached: the time runs on, and it gets a rest.
        again = self._reconnects[-1:] == [self._timeline.count]
        began = self._dropped_s = self._dropped_s if again else time.monotonic()
        while time.monotonic() - began < self._options.reconnect_s:
            self._container.close()
            if again:
                time.sleep(_RETRY_S)
            again = True
            try:
                self._connect()
            except SourceError as error:
                logger.info("%s", error)
                continue
            self._timeline.resume(time.monotonic() - self._newest_s)
            if self._reconnects[-1:] != [self._timeline.count]:
                self._reconnects.append(self._timeline.count)
            return True
        return False


def _with_next(items: Iterator[Item]) -> Iterator[tuple[Item, Item | None]]:
    """Yield every item with the one after it; None after the last."""
    item = next(items, None)
    while item is not None:
        following = next(items, None)
        yield item, following
        item = following
