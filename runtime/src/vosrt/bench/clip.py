"""The clip that is measured on: rendered, so that everybody has it at every size, and encoded as H.264."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np

from vosrt.errors import OptionError
from vosrt.types import MAX_OBJECT_ID, F32Array, U8Array

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
    x, y = int(left), int(top)
    right, down = round(256 * (left - x)), round(256 * (top - y))  # 1/256 of a pixel is enough
    rows = scene[y : y + height + 1, x : x + width + 1].astype(np.uint32)
    rows = (256 - down) * rows[:-1] + down * rows[1:]
    return (((256 - right) * rows[:, :-1] + right * rows[:, 1:] + (1 << 15)) >> 16).astype(np.uint8)


@lru_cache(maxsize=2)
def _scene(height: int, width: int) -> U8Array:
    """Smooth noise over several octaves, u8 [height, width, 3]."""
    random = np.random.default_rng(0)
    total = np.zeros((height, width, 3), np.float32)
    for octave, cells in enumerate((5, 12, 30, 80)):
        noise = random.random((cells, cells, 3), dtype=np.float32)
        rows = np.tensordot(_cubic(height, cells), noise, axes=(1, 0))
        total += np.einsum("xc,ycd->yxd", _cubic(width, cells), rows, optimize=True) / 2**octave
    low, high = total.min(), total.max()
    return np.asarray(255 * (total - low) / (high - low), np.uint8)


def _cubic(size: int, cells: int) -> F32Array:
    """Weights f32 [size, cells] that enlarge values by cubic convolution (Keys 1981), borders repeated."""
    weights = np.zeros((size, cells), np.float32)
    place = (np.arange(size) + 0.5) * cells / size - 0.5
    first = np.floor(place).astype(int)
    for tap in range(-1, 3):
        d = np.abs(place - (first + tap))
        near, far = 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
        np.add.at(weights, (np.arange(size), np.clip(first + tap, 0, cells - 1)), np.where(d <= 1, near, far))
    return weights


def mark_objects(height: int, width: int, count: int) -> U8Array:
    """Masks of ``count`` equal objects on a grid over the frame: u8 [height, width], ids from 1.

    Raises:
        OptionError: the clip has no room for so many objects, or the format no more ids.
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
    from vosrt._results import files_beside
    from vosrt.video.base import Frame, SegmentedFrame
    from vosrt.video.overlay import OverlayStyle
    from vosrt.video.sinks import OverlayVideo

    height, width = size_of(short_side)
    nothing = np.zeros((height, width), np.uint8)
    with files_beside(path.parent, "vos-bench") as target:
        video = OverlayVideo(target, path.name, _FPS, style=OverlayStyle(size=None))
        for t in range(PERIOD):
            frame = Frame(render(height, width, t), t, t / _FPS, f"{t:05d}")
            video.write(SegmentedFrame(frame, nothing, ()))
        video.close()
