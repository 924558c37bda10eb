"""From what a user types to an opened source."""

from __future__ import annotations

from pathlib import Path

from vosrt.errors import OptionError
from vosrt.video.base import FrameRange, FrameSource


def is_video_file(source: str) -> bool:
    """Return whether ``source`` is neither a webcam nor a folder of images nor a URL."""
    return not is_live(source) and not Path(source).is_dir() and "://" not in source


def is_live(source: str) -> bool:
    """Return whether ``source`` is a webcam index."""
    return source.isdecimal() and not Path(source).exists()


def open_source(source: str, *, start: int = 0, end: int | None = None, decode_on: int | None = None) -> FrameSource:
    """Open a video file, folder of images, webcam index or URL.

    Args:
        source: a path, ``"0"`` for the first webcam, or ``"rtsp://…"``.
        start: first wanted frame, from 0.
        end: first frame that is not wanted; None reads to the end.
        decode_on: number of the GPU that decodes a video file and keeps its frames; None decodes on the processor.

    Raises:
        SourceError: it does not exist, cannot be read, or holds no frame.
        OptionError: the range is empty, or the GPU cannot decode this.
    """
    if start < 0:
        raise OptionError(f"--start is {start}; expected 0 or more")
    if end is not None and end <= start:
        raise OptionError(f"--end is {end}; expected more than --start, which is {start}")
    frames = FrameRange(start, end)
    if is_live(source):
        from vosrt.video.opencv import WebcamSource

        return WebcamSource(int(source), frames)
    if Path(source).is_dir():
        from vosrt.video.images import ImageFolderSource

        return ImageFolderSource(Path(source), frames)
    if decode_on is not None:
        from vosrt.video.nvdec import NvdecSource

        return NvdecSource(source, frames, device=decode_on)
    from vosrt.video.av import VideoSource

    return VideoSource(source, frames)
