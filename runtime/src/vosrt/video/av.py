"""Video files and network streams through PyAV (FFmpeg)."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np

from vosrt.errors import BrokenVideoError, SourceError
from vosrt.types import U8Array
from vosrt.video.base import Frame, FrameRange, SourceInfo, is_reading

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

_OPEN_TIMEOUT_S = 15.0
_READ_TIMEOUT_S = 15.0
_LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp")
_DEFAULT_FPS = 25.0
# A container that promises this much more than it holds was cut short; less is rounding.
_MISSING_S = 0.5


def is_url(source: str) -> bool:
    """Return whether ``source`` names a network stream rather than a file."""
    return "://" in source


class VideoSource:
    """Frames of a video file or URL, upright, with their own timestamps.

    Args:
        source: path or URL, anything that FFmpeg opens.
        frames: the part that is wanted.

    Attributes:
        turned: whether a frame so far had to be turned upright.

    Raises:
        SourceError: it cannot be opened, has no video, or its first wanted frame cannot be decoded.
    """

    def __init__(self, source: str, frames: FrameRange = FrameRange()) -> None:  # noqa: B008 (frozen)
        self._name = source
        self._range = frames
        self.turned = False
        self._container = _open(source)
        self._decoder = self._decode()
        try:
            self._stream = _video_stream(self._container, source)
            try:
                self.first = next(self._decoder)
            except BrokenVideoError as error:
                raise SourceError(f"{source}: cannot be decoded up to frame {frames.start}: {error}") from error
            except StopIteration:
                raise self._nothing_decoded() from None
            self.info = self._describe()
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in order; see `FrameSource`."""
        yield self.first
        yield from self._decoder

    def close(self) -> None:
        """Close the file or connection; see `FrameSource`."""
        if not is_reading(self._decoder):
            self._container.close()

    def _describe(self) -> SourceInfo:
        height, width = self.first.image.shape[:2]
        rate = self._stream.average_rate or self._stream.guessed_rate
        promised = self._stream.frames
        return SourceInfo(
            name=self._name,
            width=width,
            height=height,
            fps=float(rate) if rate else _DEFAULT_FPS,
            frame_count=self._range.clip(promised) if promised > 0 else None,
            live=is_url(self._name)
            and (self._name.lower().split("://")[0] in _LIVE_SCHEMES or self._container.duration is None),
        )

    def _nothing_decoded(self) -> SourceError:
        if self._decoded:
            return SourceError(
                f"{self._name}: has {self._decoded} frames; frame {self._range.start} (--start) is past the end"
            )
        return SourceError(f"{self._name}: holds no frame that can be decoded; expected a playable video")

    def _decode(self) -> Generator[Frame, None, None]:
        """Yield the frames of the wanted range; raise BrokenVideoError where the data ends too early."""
        self._decoded = 0
        self._last_time_s = -np.inf
        shape: tuple[int, ...] | None = None
        for picture in self._pictures():
            index = self._decoded
            if self._range.end is not None and index >= self._range.end:
                return
            self._decoded += 1
            time_s = self._time(picture, index)
            if index < self._range.start:
                continue
            image = _upright(picture)
            self.turned = self.turned or picture.rotation != 0
            if shape is not None and image.shape != shape:
                raise BrokenVideoError(
                    f"{self._name}: the frame size changes from {shape[1]}×{shape[0]} to "
                    f"{image.shape[1]}×{image.shape[0]} at frame {index}; expected one size",
                    index,
                )
            shape = image.shape
            yield Frame(image, index, time_s, f"{index:05d}")

    def _pictures(self) -> Iterator[VideoFrame]:
        """Yield decoded pictures from the start of the file."""
        reason = None
        try:
            for packet in self._container.demux(self._stream):
                if packet.is_corrupt and not is_url(self._name):
                    reason = "the data ends inside a frame"
                    break
                try:
                    yield from packet.decode()
                except av.error.FFmpegError as error:
                    # Recordings that start between two key frames fail until the first one arrives,
                    # and a network stream may lose packets at any time.
                    if self._decoded == 0 or is_url(self._name):
                        logger.info("%s: skipping an undecodable packet (%s)", self._name, error.strerror)
                        continue
                    reason = _words(error)
                    break
        except av.error.FFmpegError as error:
            reason = _words(error)
        if reason is not None:
            with suppress(av.error.FFmpegError):
                yield from self._stream.decode(None)
        reason = reason or self.what_is_missing(self._last_time_s)
        if reason is not None and self._decoded:
            raise BrokenVideoError(f"{self._name}: the video breaks at frame {self._decoded} ({reason})", self._decoded)

    def what_is_missing(self, last_time_s: float) -> str | None:
        """Compare a file that ended quietly with what its header promised.

        Args:
            last_time_s: of its last frame, in seconds.
        """
        if is_url(self._name):
            return None
        if self._container.format.name == "gif" and not _ends_with(self._name, b";"):
            return "the end of the file is missing"
        promised_s = _promised_seconds(self._container, self._stream)
        frame_s = 1.0 / float(self._stream.average_rate or _DEFAULT_FPS)
        if promised_s is not None and last_time_s + max(_MISSING_S, 3 * frame_s) < promised_s:
            return f"its header promises {promised_s:.1f} s"
        return None

    def _time(self, picture: VideoFrame, index: int) -> float:
        """Return the presentation time, made to increase where a file repeats or omits timestamps."""
        step = 1.0 / float(self._stream.average_rate or _DEFAULT_FPS)
        if picture.pts is None or self._stream.time_base is None:
            time_s = self._last_time_s + step if index else 0.0
        else:  # not picture.time, which is NaN where the decoder is flushed by hand
            time_s = float(picture.pts * self._stream.time_base)
        if time_s <= self._last_time_s:
            time_s = self._last_time_s + step / 100
        self._last_time_s = time_s
        return time_s


def _open(source: str) -> InputContainer:
    if not is_url(source):
        if not Path(source).exists():
            raise SourceError(f"{source}: no such file or folder")
        try:
            with open(source, "rb") as file:
                if not file.read(1):
                    raise SourceError(f"{source}: is an empty file; expected a video")
        except OSError as error:
            raise SourceError(f"{source}: cannot be read ({error.strerror})") from error
    options = {"rtsp_transport": "tcp"} if source.lower().startswith("rtsp") else {}
    try:
        return av.open(source, options=options, timeout=(_OPEN_TIMEOUT_S, _READ_TIMEOUT_S))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        expected = "is the address right and reachable?" if is_url(source) else "expected a whole, playable video file"
        raise SourceError(f"{source}: cannot be opened as a video ({_words(error)}); {expected}") from error


def _video_stream(container: InputContainer, source: str) -> VideoStream:
    if not container.streams.video:
        raise SourceError(f"{source}: has no video stream; expected a video")
    stream = container.streams.video[0]
    stream.thread_type = "SLICE"  # frame threads lose the frames in flight where a file breaks
    return stream


def _words(error: Exception) -> str:
    """Return FFmpeg's own words for an error, without the file name and the function it adds."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def _promised_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """Return when the video stream should end by its container's header, in seconds, where that is known.

    Matroska keeps a stream's length in a tag; the container's own length counts only where no other
    stream could be the longer one.
    """
    if stream.duration is not None and stream.time_base is not None:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    tag = stream.metadata.get("DURATION")
    if tag is not None:
        with suppress(ValueError):
            hours, minutes, seconds = tag.split(":")
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    if container.duration is not None and len(container.streams) == 1:
        return ((container.start_time or 0) + container.duration) / av.time_base
    return None


def _ends_with(path: str, trailer: bytes) -> bool:
    """Return whether a file ends with ``trailer``, padding zeros aside."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, 2) - 64))
        return file.read().rstrip(b"\0").endswith(trailer)


def _upright(picture: VideoFrame) -> U8Array:
    """Return the picture as BGR, turned as the file's display matrix says (phones film sideways)."""
    try:
        image = np.asarray(picture.to_ndarray(format="bgr24"), np.uint8)
    except (ValueError, av.error.FFmpegError) as error:
        raise SourceError(f"frames of format {picture.format.name} cannot be converted: {error}") from error
    quarter_turns = round(picture.rotation / 90) % 4  # counterclockwise
    return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image
