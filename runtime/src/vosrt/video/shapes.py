"""Objects as annotation files draw them: outlines and bitmaps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vosrt.errors import MaskError
from vosrt.types import U8Array

F64Array = NDArray[np.float64]

_POLYGON_BITS = 4  # sub-pixel bits of cv2.fillPoly


@dataclass
class Shape:
    """An object of a file.

    Attributes:
        outlines: polygons f64 [N, 2] of x and y in pixels, united; (0, 0) is the middle of the top left pixel.
        bitmap: bool [H, W], more of the object; None if it is all polygons.
    """

    outlines: list[F64Array] = field(default_factory=list)
    bitmap: NDArray[np.bool_] | None = None

    def draw(self, mask: U8Array, object_id: int) -> None:
        """Lay the object over a mask u8 [H, W]."""
        for outline in self.outlines:  # one by one: fillPoly cuts holes where polygons of one call overlap
            points = np.round(outline * (1 << _POLYGON_BITS)).astype(np.int32)
            cv2.fillPoly(mask, [points], object_id, cv2.LINE_8, _POLYGON_BITS)
        if self.bitmap is not None:
            mask[self.bitmap] = object_id


@dataclass(frozen=True)
class Shapes:
    """The objects of a file.

    Attributes:
        objects: by number; a later one lies over an earlier one.
        numbered: the file numbers its objects; otherwise they are counted from 1.
        warnings: one line each on what was left out.
    """

    objects: dict[int, Shape]
    numbered: bool
    warnings: tuple[str, ...] = ()


def check_size(path: Path, drawn: Any, width: int, height: int) -> None:
    """Compare the size that a file names, [width, height] in pixels, with that of the frames.

    Raises:
        MaskError: it is another.
    """
    if isinstance(drawn, dict):  # other tools' files name the two
        drawn = [drawn.get("width"), drawn.get("height")]
    shown = "×".join(map(str, drawn)) if isinstance(drawn, list) else str(drawn)
    if drawn != [width, height] and shown != f"{width}×{height}":  # some programs write numbers as text
        raise MaskError(f"{path}: was drawn on {shown} but the frames are {width}×{height}; expected the same size")


def parse_outline(path: Path, name: str, polygon: Any, *, width: int, height: int, margin: float = 0) -> F64Array:
    """Check one polygon.

    Args:
        path: the file, for the message.
        name: of the object, likewise.
        polygon: list of points [x, y] in pixels.
        width: of the frames, in pixels.
        height: of the frames, in pixels.
        margin: how far outside the frame a point may lie, in frame sizes; drawing cuts it off.

    Returns:
        f64 [N, 2].

    Raises:
        MaskError: fewer than three points, not points, or one too far outside.
    """
    try:
        points = np.array(polygon, np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
        raise MaskError(f"{path}: {name} has a polygon that is not three or more points [x, y]")
    size = np.array((width, height))
    outside = ((points < -0.5 - margin * size) | (points > (1 + margin) * size)).any(axis=1)
    if outside.any():
        x, y = points[outside.argmax()]
        raise MaskError(
            f"{path}: {name} has the point ({x:g}, {y:g}) outside the frame; expected 0 to {width} and 0 to {height}"
        )
    return points
