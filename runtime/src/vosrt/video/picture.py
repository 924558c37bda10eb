"""Conversion of decoded pictures of any pixel format to upright u8 frames."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from numpy.typing import NDArray

from vosrt.errors import SourceError
from vosrt.types import U8Array
from vosrt.video.levels import Levels

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# Grey and RGB of more than 8 bits, whose values need not fill their range. YUV has a nominal range, which FFmpeg knows.
_DEEP = re.compile(r"(gray|gbra?p|rgb48|bgr48|rgba64|bgra64|grayf|gbra?pf|rgbf|rgbaf)(9|1[0246]|32)?(le|be)")


def deep_values(picture: VideoFrame) -> NDArray[Any] | None:
    """Return the numbers of a grey or RGB picture of more than 8 bits, [H, W] or BGR [H, W, 3]; None for others."""
    name = picture.format.name
    if _DEEP.fullmatch(name) is None:
        return None
    values = picture.to_ndarray()
    if values.ndim == 2:
        return values
    values = values[..., :3]
    return values if name.startswith("bgr") else values[..., ::-1]


def to_bgr(picture: VideoFrame, levels: Levels) -> U8Array:
    """Return the picture as u8 [H, W, 3] BGR, turned and mirrored as the file's display matrix says.

    Raises:
        SourceError: FFmpeg cannot convert this pixel format.
    """
    try:
        values = deep_values(picture)
        if values is None:
            return upright(np.asarray(picture.to_ndarray(format="bgr24"), np.uint8), picture)
    except (ValueError, av.error.FFmpegError) as error:
        raise SourceError(f"frames of format {picture.format.name} cannot be converted: {error}") from error
    bits = max(component.bits for component in picture.format.components)
    image = levels.apply(values, 1.0 if values.dtype.kind == "f" else float((1 << bits) - 1))
    return upright(np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image, picture)


def upright(image: U8Array, picture: VideoFrame) -> U8Array:
    """Return ``image`` as a player shows it: phones film sideways, and front cameras mirror."""
    transpose, across, down = display_turn(picture)
    if transpose:
        image = image.transpose(1, 0, 2)
    return np.ascontiguousarray(image[:: -1 if down else 1, :: -1 if across else 1])


def display_turn(picture: VideoFrame) -> tuple[bool, bool, bool]:
    """Return what makes a picture upright: whether to transpose it, then to flip it across, then to flip it down.

    A display matrix takes the point (x, y) to (a x + c y, b x + d y); the nearest of the eight turns and mirrorings
    of a rectangle is taken.
    """
    side_data: Mapping[Any, Any] = picture.side_data
    if Type.DISPLAYMATRIX not in side_data:
        return False, False, False
    a, b, _, c, d = struct.unpack_from("=5i", bytes(side_data[Type.DISPLAYMATRIX]))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0
