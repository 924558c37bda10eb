"""Temporal stability T: how much the outline of an object changes its shape from one frame to the next.

After Perazzi et al. 2016, section 5: points along the outlines of two frames are described by shape contexts (Belongie,
Malik and Puzicha 2002) and matched in order by dynamic time warping; T is the mean cost of a matched pair, 0 to 1, and
0 for an outline that only moves or grows. Lower is steadier. True objects deform too, so T is to be read beside that
of the annotation. Numbers of points and the cost's scale are our choice; values of other tools differ.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from vosrt.metrics import BoolArray

F64Array = NDArray[np.float64]

_POINTS = 64
_ANGLES, _RINGS = 12, 5
_INNER, _OUTER = 1 / 8, 2.0  # of the mean distance between points
_LEAST_LENGTH = 16  # pixels of an outline; a shorter one has no shape to speak of


def instability(before: BoolArray, after: BoolArray) -> float | None:
    """T of one object between two frames.

    Args:
        before: [H, W], the object in a frame.
        after: [H, W], the object in the next one.

    Returns:
        The mean cost of a matched pair of outline points, 0 to 1; None where the object has no outline in one of them.
    """
    outlines = [_outline(mask) for mask in (before, after)]
    if outlines[0] is None or outlines[1] is None:
        return None
    first, second = (_shape_contexts(points) for points in outlines if points is not None)
    total = first[:, None] + second[None]
    cost = 0.5 * (np.square(first[:, None] - second[None]) / np.where(total > 0, total, 1)).sum(axis=-1)
    return _warp(cost)


def _outline(mask: BoolArray) -> F64Array | None:
    """Points [64, 2] at equal distances along the longest outline, from its highest point on, clockwise."""
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return None
    longest = max(contours, key=len)[:, 0].astype(np.float64)
    closed = np.vstack([longest, longest[:1]])
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
    if along[-1] < _LEAST_LENGTH:
        return None
    wanted = np.linspace(0, along[-1], _POINTS, endpoint=False)
    return np.stack([np.interp(wanted, along, closed[:, axis]) for axis in (0, 1)], axis=1)


def _shape_contexts(points: F64Array) -> F64Array:
    """Return where the other points lie from each point: histograms [64, 60] over direction and log distance, sum 1."""
    offset = points[None] - points[:, None]
    distance = np.hypot(offset[..., 0], offset[..., 1])
    others = ~np.eye(len(points), dtype=bool)
    distance = distance / distance[others].mean()
    edges = np.geomspace(_INNER, _OUTER, _RINGS)
    ring = np.minimum(np.searchsorted(edges, distance), _RINGS - 1)
    angle = np.arctan2(offset[..., 1], offset[..., 0]) % (2 * math.pi)
    sector = np.minimum((angle * (_ANGLES / (2 * math.pi))).astype(int), _ANGLES - 1)
    place = ring * _ANGLES + sector + np.arange(len(points))[:, None] * (_ANGLES * _RINGS)
    counts = np.bincount(place[others], minlength=len(points) * _ANGLES * _RINGS)
    return counts.reshape(len(points), -1) / (len(points) - 1)


def _warp(cost: F64Array) -> float:
    """Mean cost along the cheapest matching in order, from the start at which the outlines fit best point by point.

    Args:
        cost: [n, n], of matching point i of the first outline with point j of the second.
    """
    n = len(cost)
    turns = (np.arange(n)[:, None] + np.arange(n)) % n  # [start, i] -> j
    cost = cost[:, turns[cost[np.arange(n), turns].mean(axis=1).argmin()]]
    total = np.full((n + 1, n + 1), np.inf)
    steps = np.zeros((n + 1, n + 1))
    total[0, 0] = 0
    for diagonal in range(2 * n - 1):
        i = np.arange(max(0, diagonal - n + 1), min(n, diagonal + 1))
        j = diagonal - i
        ways = np.stack([total[i, j], total[i, j + 1], total[i + 1, j]])
        best = ways.argmin(axis=0)
        total[i + 1, j + 1] = ways.min(axis=0) + cost[i, j]
        steps[i + 1, j + 1] = np.stack([steps[i, j], steps[i, j + 1], steps[i + 1, j]])[best, np.arange(len(i))] + 1
    return float(total[n, n] / steps[n, n])
