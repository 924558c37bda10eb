"""Opening files, addresses and pipes with PyAV, and choosing the video in them."""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
from av.stream import Disposition

from vosrt.errors import SourceError
from vosrt.video.base import STDIN, check_pixels, is_pipe
from vosrt.video.joined import end_of_part

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

_OPEN_TIMEOUT_S = 15.0
READ_TIMEOUT_S = 15.0
LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp")
_PLAYLISTS = ("hls", "dash")


def is_url(source: str) -> bool:
    """Return whether ``source`` names a network stream rather than a file."""
    return "://" in source


def open_container(source: str, max_pixels: int, part_at: int = 0) -> InputContainer:
    """Open what a user named; a file of Latin-1 metadata is as good as any.

    Args:
        source: path, address, or ``-`` for standard input.
        max_pixels: largest frame that a decoder may allocate.
        part_at: offset in bytes of a recording that was appended to the file; 0 is the file itself.

    Raises:
        SourceError: it does not exist, cannot be read, or is no video.
    """
    options = {"max_pixels": str(max_pixels)}
    if source.lower().startswith("rtsp"):
        options["rtsp_transport"] = "tcp"
    try:
        return av.open(
            source if is_url(source) else _open_local(source, part_at),
            "r",
            options=options,
            metadata_errors="replace",
            timeout=(_OPEN_TIMEOUT_S, READ_TIMEOUT_S),
        )
    except (av.error.FFmpegError, OSError, ValueError) as error:
        expected = "is the address right and reachable?" if is_url(source) else "expected a whole, playable video file"
        if isinstance(error, av.error.ProtocolNotFoundError):
            expected = (
                "expected an address such as rtsp:// or https://; vos-run batch fetches from stores such as s3://"
            )
        raise SourceError(f"{source}: cannot be opened as a video ({words(error)}); {expected}") from error


def _open_local(source: str, part_at: int) -> Any:
    """Return what PyAV opens for a file or pipe."""
    if is_pipe(source):
        return _Pipe(source)
    if not Path(source).exists():
        raise SourceError(f"{source}: no such file or folder")
    if not Path(source).is_file():
        raise SourceError(f"{source}: is neither a file nor a folder; expected a video")
    try:
        with open(source, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise SourceError(f"{source}: cannot be read ({error.strerror})") from error
    if not head:
        raise SourceError(f"{source}: is an empty file; expected a video")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP" and b"ANIM" in head:
        raise SourceError(f"{source}: animated WebP cannot be decoded here; convert it to GIF, MP4 or PNG frames")
    end = end_of_part(source, part_at)
    if part_at or end:
        return f"subfile,,start,{part_at},end,{end or 0},,:file:{source}"
    return f"file:{source}"  # so that FFmpeg takes no "name:" at the start for a protocol


class _Pipe:
    """Standard input or a FIFO as PyAV reads it: an end of file where no data comes for a while.

    Args:
        source: ``-`` or the path of a FIFO.
    """

    def __init__(self, source: str) -> None:
        # Opening a FIFO would wait for its writer, and a terminal for typed input.
        self._descriptor = sys.stdin.fileno() if source == STDIN else os.open(source, os.O_RDONLY | os.O_NONBLOCK)
        if os.isatty(self._descriptor):
            raise SourceError("-: standard input is a terminal; expected a video from a pipe, as in: cat FILE | …")
        if not select.select([self._descriptor], [], [], _OPEN_TIMEOUT_S)[0]:
            self.close()
            raise SourceError(
                f"{source}: no data came in {_OPEN_TIMEOUT_S:.0f} s; expected a program that writes to it"
            )

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes; none at the end."""
        if not select.select([self._descriptor], [], [], READ_TIMEOUT_S)[0]:
            raise TimeoutError(f"no data came for {READ_TIMEOUT_S:.0f} s")
        return os.read(self._descriptor, size)

    def close(self) -> None:
        """Close a FIFO; standard input stays open."""
        if self._descriptor != 0:
            with suppress(OSError):
                os.close(self._descriptor)


def choose_stream(container: InputContainer, source: str, max_megapixels: float) -> VideoStream:
    """Return the video that a player shows: never a cover picture or a thumbnail.

    Raises:
        SourceError: it holds none that can be decoded, or its frames are larger than allowed.
    """
    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    videos = [each for each in container.streams.video if not each.disposition & covers]
    if not videos:
        raise SourceError(f"{source}: has no video stream; expected a video")
    videos = [each for each in videos if each.codec_context is not None]  # PyAV makes none without a decoder
    if not videos:
        raise SourceError(
            f"{source}: its video is encrypted or in a codec that FFmpeg does not decode; convert it, to H.264 in MP4 "
            "for example"
        )
    best = container.streams.best("video")
    stream = next((each for each in videos if best is not None and each.index == best.index), None) or max(
        videos, key=lambda each: each.width * each.height
    )
    check_pixels(source, stream.width, stream.height, max_megapixels)
    # Frame threads lose the frames in flight where a file breaks. With slice threads, FFmpeg's H.264 decoder conceals
    # nothing: what a lost packet leaves grey or green would stay so until the next key frame.
    stream.thread_type = "NONE" if stream.codec_context.name == "h264" else "SLICE"
    return stream


def keeps_its_pace(source: str) -> bool:
    """Return whether an address is of a protocol that delivers frames as they are filmed."""
    return source.lower().split("://")[0] in LIVE_SCHEMES and is_url(source)


def is_live(source: str, container: InputContainer) -> bool:
    """Return whether frames arrive at their own pace; a file that a web server holds is a file."""
    if not is_url(source):
        return False
    if keeps_its_pace(source):
        return True
    if container.duration is not None:
        return False
    return container.format.name.split(",")[0] in _PLAYLISTS or container.size <= 0


def words(error: Exception) -> str:
    """Return FFmpeg's own words for an error, without the file name and the function it adds."""
    if isinstance(error, av.error.ExitError):  # our own time limit, as FFmpeg names it
        return no_data()
    return (getattr(error, "strerror", None) or str(error)).lower()


def no_data() -> str:
    """Return the words for a time limit that passed."""
    return f"no data came for {READ_TIMEOUT_S:.0f} s"
