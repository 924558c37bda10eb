"""Telling shades of grey from object numbers: does an image of numbers hold objects, or drawings with soft edges?"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

# The thresholds come from drawings (antialiased, blurred, enlarged, JPEG at qualities 30 to 95) and from label images
# (up to 2000 touching cells, layers, thin ropes). Drawings have at least 60 % of their thin pixels on a ramp, label
# images at most 49 %; of all edge pixels it is 20 % or more against 17 %, where cells are only a few pixels wide.
_THIN = 4  # a value is thin if less than a fourth of its pixels lie inside an area of it
_RAMP_OF_THIN, _RAMP_OF_EDGE = 0.55, 0.1
_SHADES = 3  # thin values that make a ramp, two where there are but two areas; a rope between two objects is one
_INTERPOLATED = 0.3  # of all edge pixels on ramps, in numbers that were enlarged with interpolation
_GRADIENT_VALUES, _GRADIENT_STEPS = 64, 0.9  # so many values, of which nearly all neighbours are the next ones


def distinct(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the values that occur, ascending, like np.unique, which takes five times as long for those of a mask."""
    if values.min() < 0 or values.max() > 65535:
        return np.unique(values)
    return np.flatnonzero(np.bincount(values.reshape(-1))).astype(np.int64)


def shades(values: NDArray[np.int64], white: int = 255) -> int:
    """Count the grey values that are shades along edges and not objects.

    Objects are areas: nearly all values of a label image have pixels whose neighbours hold the same value, and a pixel
    between a lower and a higher value is rare. Soft edges are thin ramps from one area to another.

    Args:
        values: i64 [H, W].
        white: the largest value of the file's format.

    Returns:
        0 for a label image, however many objects it holds.
    """
    used = distinct(values)
    if len(used) < 3 or (len(used) == 3 and used[-1] != white):
        return 0
    if len(used) > 65536:
        return len(used)
    rank = _ranks(values, used)
    square = np.ones((3, 3), np.uint8)
    lowest = cv2.erode(rank, square, borderType=cv2.BORDER_REPLICATE)
    highest = cv2.dilate(rank, square, borderType=cv2.BORDER_REPLICATE)
    ramp = (lowest < rank) & (rank < highest)
    edge = np.count_nonzero(lowest != highest)

    total, inside, on_ramp = (
        np.bincount(chosen.astype(np.int64).reshape(-1), minlength=len(used))
        for chosen in (rank, rank[lowest == highest], rank[ramp])
    )
    thin = inside * _THIN < total
    ramp_of_thin = on_ramp[thin].sum() / max(1, total[thin].sum())
    ramp_of_edge = on_ramp.sum() / max(1, edge)
    ramped = ramp_of_thin >= _RAMP_OF_THIN and ramp_of_edge >= _RAMP_OF_EDGE
    shaded, areas = int(np.count_nonzero(thin)), used[inside > 0]
    if ramped and (shaded >= _SHADES or (shaded > 1 and len(areas) == 2)):
        return shaded
    if set(areas) == {0, white} and (ramped or shaded > 1):  # specks of JPEG in a drawing that is black and white
        return shaded
    if ramp_of_edge >= _INTERPOLATED and np.count_nonzero(on_ramp) >= _SHADES:
        return int(np.count_nonzero(on_ramp))
    if len(used) >= _GRADIENT_VALUES and _next_steps(rank) >= _GRADIENT_STEPS:
        return len(used)
    return 0


def _ranks(values: NDArray[np.int64], used: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Return the place of each value among those in use, in the type that OpenCV filters fastest."""
    if used[0] < 0 or used[-1] > 65535:
        return np.searchsorted(used, values).astype(np.uint16)
    ranks = np.zeros(used[-1] + 1, np.uint8 if len(used) <= 256 else np.uint16)
    ranks[used] = np.arange(len(used))
    return np.asarray(ranks[values])


def _next_steps(rank: NDArray[np.uint16]) -> float:
    """Share of the neighbours with different values that are at most two values apart."""
    steps = np.concatenate([np.abs(np.diff(rank.astype(np.int64), axis=axis)).reshape(-1) for axis in (0, 1)])
    steps = steps[steps > 0]
    return float(np.mean(steps <= 2)) if steps.size else 0.0
