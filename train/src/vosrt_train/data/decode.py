"""Decoding one video into resized RGB frames, and estimating beforehand how large they will be."""

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
from vosrt.video.images import list_images
from vosrt.video.source import open_source
from vosrt_train.data.config import CacheConfig
from vosrt_train.data.sources import Source


@dataclass(frozen=True)
class Entry:
    """What the index says of a video.

    Attributes:
        name: of the source.
        key: under which its frames are kept.
        frames: number of frames; 0 where the source cannot be used.
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        fps: frames per second, as measured from the times of the frames.
        note: why the video ends early, where it does.
        reason: why the source cannot be used; empty where it can.
    """

    name: str
    key: str
    frames: int = 0
    height: int = 0
    width: int = 0
    fps: float = 0.0
    note: str = ""
    reason: str = ""

    @property
    def size(self) -> int:
        """Bytes of its frames."""
        return self.frames * self.height * self.width * 3


def decode(source: Source, key: str, file: BinaryIO, config: CacheConfig) -> Entry:
    """Decode a source; a video that breaks half-way keeps what came before.

    Args:
        source: what to decode.
        key: under which its frames will be kept.
        file: receives u8 [frames, height, width, 3], RGB.
        config: size and number of the frames.

    Returns:
        The entry for the index; with a reason where nothing could be decoded.

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
    """Estimate the bytes of a source's frames from its header; 0 where that cannot be read."""
    try:
        count, height, width = _folder_header(source) if source.images else _video_header(source.path)
    except (InputError, OSError, ValueError, Image.DecompressionBombError, av.error.FFmpegError):
        return 0
    height, width = _cached_size(height, width, config)
    return min(count, config.max_frames) * height * width * 3


def _folder_header(source: Source) -> tuple[int, int, int]:
    with Image.open(list_images(source.path)[0]) as image:
        return source.images, image.height, image.width


def _video_header(path: Path) -> tuple[int, int, int]:
    with av.open(str(path)) as container:
        if not container.streams.video:
            return 0, 1, 1
        stream = container.streams.video[0]
        seconds = (container.duration or 0) / av.time_base
        count = stream.frames or round(seconds * float(stream.average_rate or 25))
        return count, max(1, stream.height), max(1, stream.width)


def _cached_size(height: int, width: int, config: CacheConfig) -> tuple[int, int]:
    """The size with the wanted short side, or the frame's own where that is smaller."""
    short = min(height, width)
    target = min(short, config.short_side)
    return max(1, round(height * target / short)), max(1, round(width * target / short))


def _resized_rgb(bgr: U8Array, height: int, width: int) -> U8Array:
    if bgr.shape[:2] != (height, width):
        bgr = np.asarray(cv2.resize(bgr, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return np.ascontiguousarray(bgr[..., ::-1])


def _without_path(error: Exception, source: Source) -> str:
    """The words of an error, which is listed beside the name of its source anyway."""
    return str(error).removeprefix(f"{source.path}: ")
