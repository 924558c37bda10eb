"""The clip that is measured on: rendered, so that everybody has it at every size, and encoded as H.264."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from vosrt.errors import OptionError
from vosrt.types import MAX_OBJECT_ID, U8Array
from vosrt.video.base import Frame, SegmentedFrame
from vosrt.video.sinks import OverlayVideo

PERIOD = 48  # frames until the clip is where it began, so that it can be repeated without a jump
_FPS = 24.0
_DRIFT = 0.1  # radius of the camera's circle, in frame heights


def size_of(short_side: int) -> tuple[int, int]:
    """Height and width in pixels of a 16:9 frame; the width is even, as H.264 likes it (480 gives 854)."""
    return short_side, 2 * round(short_side * 8 / 9)


def render(height: int, width: int, t: int) -> U8Array:
    """Frame t of a textured scene under a camera that moves along a circle: u8 [height, width, 3] BGR."""
    turn = 2 * math.pi * t / PERIOD
    reach = _DRIFT * height
    left, top = reach * (1 + math.cos(turn)), reach * (1 + math.sin(turn))
    scene = _scene(height + math.ceil(2 * reach) + 2, width + math.ceil(2 * reach) + 2)
    shift = np.array([[1, 0, -left], [0, 1, -top]], np.float64)
    return np.asarray(cv2.warpAffine(scene, shift, (width, height), flags=cv2.INTER_LINEAR), np.uint8)


@lru_cache(maxsize=2)
def _scene(height: int, width: int) -> U8Array:
    """Smooth noise over several octaves, u8 [height, width, 3]."""
    random = np.random.default_rng(0)
    total = np.zeros((height, width, 3), np.float32)
    for octave, cells in enumerate((5, 12, 30, 80)):
        noise = random.random((cells, cells, 3), dtype=np.float32)
        total += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    low, high = total.min(), total.max()
    return np.asarray(255 * (total - low) / (high - low), np.uint8)


def mark_objects(height: int, width: int, count: int) -> U8Array:
    """Masks of ``count`` equal objects on a grid over the frame: u8 [height, width], ids from 1.

    Raises:
        OptionError: there is no room for so many, or the format has no more ids.
    """
    columns = math.ceil(math.sqrt(count * width / height)) if count > 0 else 1
    rows = math.ceil(count / columns)
    tile_height, tile_width = height // max(rows, 1), width // columns
    if not 1 <= count <= MAX_OBJECT_ID or min(tile_height, tile_width) < 4:
        raise OptionError(f"{count} objects in a frame of {width} x {height}; expected 1 to {MAX_OBJECT_ID} with room")
    mask = np.zeros((height, width), np.uint8)
    for number in range(count):
        top, left = number // columns * tile_height, number % columns * tile_width
        mask[
            top + tile_height // 4 : top + (3 * tile_height + 3) // 4,
            left + tile_width // 4 : left + (3 * tile_width + 3) // 4,
        ] = number + 1
    return mask


def write_clip(path: Path, short_side: int) -> None:
    """Write one period of the clip as H.264, through the sink that ``vos-run`` writes its overlay with."""
    height, width = size_of(short_side)
    nothing = np.zeros((height, width), np.uint8)
    video = OverlayVideo(path, _FPS)
    for t in range(PERIOD):
        frame = Frame(render(height, width, t), t, t / _FPS, f"{t:05d}")
        video.write(SegmentedFrame(frame, nothing, (), {}))
    video.close()
