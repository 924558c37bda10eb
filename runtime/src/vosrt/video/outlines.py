"""Outlines of objects as polygons, as COCO and LabelMe store them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vosrt.types import U8Array

Polygon = NDArray[np.float64]  # [n, 2], x and y in pixels, where pixel 0 reaches from 0 to 1

_TOLERANCE = 0.5  # pixels that an outline may be off, for frames of at most 1000 pixels of short side
_FULL_TOLERANCE_SIDE = 1000


def outlines(labels: U8Array, object_id: int, box: tuple[int, int, int, int]) -> list[Polygon]:
    """Return the outlines of one object, one polygon per connected part; a part with holes is cut open to each hole.

    Args:
        labels: u8 [H, W].
        object_id: whose outlines.
        box: x, y, width and height around the object, in pixels; zeros if it has no pixel.
    """
    x, y, width, height = box
    if not width:
        return []
    mask = cv2.inRange(np.ascontiguousarray(labels[y : y + height, x : x + width]), object_id, object_id)
    # At twice the size outlines run through the pixels' quarters, so that every pixel's centre is on its side.
    doubled = cv2.resize(mask, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    tolerance = _TOLERANCE * max(1.0, min(labels.shape) / _FULL_TOLERANCE_SIDE)
    points = [_simplify(contour, 2 * tolerance) for contour in contours]
    polygons = []
    for part in range(len(contours)):
        _, _, hole, outer = (int(value) for value in hierarchy[0, part])
        if outer >= 0:
            continue
        polygon = points[part]
        while hole >= 0:
            polygon = _cut_open(polygon, points[hole])
            hole = int(hierarchy[0, hole, 0])
        polygons.append((polygon + 0.5) / 2 + (x, y))
    return polygons


def _simplify(contour: NDArray[Any], tolerance: float) -> Polygon:
    simple = cv2.approxPolyDP(contour, tolerance, closed=True)
    chosen = simple if len(simple) > 2 else contour  # a pixel still has four corners
    return np.asarray(chosen, np.float64).reshape(-1, 2)


def _cut_open(polygon: Polygon, hole: Polygon) -> Polygon:
    """Join a hole to the polygon around it by two edges over each other, which cover nothing."""
    distances = ((polygon[:, None] - hole[None]) ** 2).sum(axis=2)
    i, j = np.unravel_index(int(distances.argmin()), distances.shape)
    return np.concatenate((polygon[: i + 1], hole[j:], hole[: j + 1], polygon[i:]))
