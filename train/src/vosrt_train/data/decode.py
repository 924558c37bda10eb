"""Decoding of one video into resized RGB frames, and an estimate of their size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import cv2
import numpy as np
from PIL import Image

from vosrt.errors import BrokenVideoError, InputError
from vosrt.types import U8Array
from vosrt.video.base import SourceOptions
from vosrt.video.container import choose_stream, open_container
from vosrt.video.finding import Source
from vosrt.video.images import list_images
from vosrt.video.source import open_source
from vosrt_train.data.config import CacheConfig


@dataclass(frozen=True)
class Entry:
    """Entry of a video in the index.

    Attributes:
        key: names the file of its frames.
        frames: number of frames; 0 where the source cannot be used.
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        fps: frames per second, measured from the timestamps.
        note: why the video ends early; empty where it does not.
        reason: why the source cannot be used; empty where it can.
        sha256: of its frames; empty where the source cannot be used.
    """

    name: str
    key: str
    frames: int = 0
    height: int = 0
    width: int = 0
    fps: float = 0.0
    note: str = ""
    reason: str = ""
    sha256: str = ""

    @property
    def size(self) -> int:
        """Bytes of its frames."""
        return self.frames * self.height * self.width * 3


def decode(source: Source, key: str, file: BinaryIO, config: CacheConfig) -> Entry:
    """Decode a source; of a damaged video, keep the frames before the damage.

    Args:
        file: receives u8 [frames, height, width, 3], RGB.
        config: size and number of the frames.

    Returns:
        The entry for the index; it has a reason if no frame could be decoded.

    Raises:
        OSError: the file cannot be written.
    """
    times: list[float] = []
    height = width = 0
    note = ""
    try:
        frames = open_source(str(source.path), end=config.max_frames)
    except InputError as error:
        return Entry(source.name, key, reason=_without_path(error, source))
    try:
        height, width = _cached_size(frames.info.height, frames.info.width, config)
        for frame in frames:
            file.write(_resized_rgb(frame.image, height, width).data)
            times.append(frame.time_s)
    except (BrokenVideoError, InputError) as error:
        note = _without_path(error, source)
    finally:
        frames.close()
    if not times:
        return Entry(source.name, key, reason=note)
    seconds = times[-1] - times[0]
    measured = (len(times) - 1) / seconds if seconds > 0 else frames.info.fps
    fps = config.folder_fps if source.images else measured
    return Entry(source.name, key, len(times), height, width, round(fps, 3), note)


def estimate_size(source: Source, config: CacheConfig) -> int:
    """Estimate the size of the frames of a source in bytes from its header; 0 if the header cannot be read."""
    try:
        count, height, width = _folder_header(source) if source.images else _video_header(source.path)
    except (InputError, OSError, ValueError, Image.DecompressionBombError):
        return 0
    height, width = _cached_size(height, width, config)
    return min(count, config.max_frames) * height * width * 3


def _folder_header(source: Source) -> tuple[int, int, int]:
    with Image.open(list_images(source.path)[0]) as image:
        return source.images, image.height, image.width


def _video_header(path: Path) -> tuple[int, int, int]:
    options = SourceOptions()
    with open_container(str(path), options.max_pixels) as container:
        stream = choose_stream(container, str(path), options.max_megapixels)
        seconds = (container.duration or 0) / av.time_base
        count = stream.frames or round(seconds * float(stream.average_rate or 25))
        return count, max(1, stream.height), max(1, stream.width)


def _cached_size(height: int, width: int, config: CacheConfig) -> tuple[int, int]:
    """Return the size with the configured short side, or the size of the frame where that is smaller."""
    short = min(height, width)
    target = min(short, config.short_side)
    return max(1, round(height * target / short)), max(1, round(width * target / short))


def _resized_rgb(bgr: U8Array, height: int, width: int) -> U8Array:
    if bgr.shape[:2] != (height, width):
        bgr = np.asarray(cv2.resize(bgr, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return np.ascontiguousarray(bgr[..., ::-1])


def _without_path(error: Exception, source: Source) -> str:
    """Return the message of an error without the path, for lists that name the source already."""
    return str(error).removeprefix(f"{source.path}: ")
