"""A frame as a graph of cells, and random walks on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vosrt.prompt.options import ClickOptions
from vosrt.prompt.points import BoolArray
from vosrt.types import F32Array

HARD = 50.0  # weight of a click against that of an edge, which is at most 1

_STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))  # rows and columns to half of the eight neighbours; the others mirror them
_DIAGONAL = 0.7  # weight of an edge to a diagonal neighbour
_LEVELS = 48  # level sets of a random walk that are compared
_SMALLEST = 4, 12  # cells of the smallest region that a click selects, in the smallest frames and in others


class Grid:
    """A graph of cells, each joined to its eight neighbours.

    Args:
        features: f32 [h, w, d].
        colours: f32 [h, w, 3].
        feature_edges: see `ClickOptions`.
        colour_edges: likewise.
        floor: likewise.
    """

    def __init__(
        self, features: F32Array, colours: F32Array, feature_edges: float, colour_edges: float, floor: float
    ) -> None:
        self.features, self.shape = features, features.shape[:2]
        height, width = self.shape
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        places = np.stack([rows, columns], axis=-1).reshape(-1, 2) / math.sqrt(height * width)
        self.places = places.astype(np.float32)
        looks = np.concatenate([features, colours, 0.5 * colours**2], axis=-1)
        self.looks = np.ascontiguousarray(looks.reshape(height * width, -1))
        self._pairs = [_pair(height, width, *step) for step in _STEPS]
        far = [np.stack([_squares(each, *pair) for each in (features, colours)]) for pair in self._pairs]
        scale = [max(float(np.mean([each[i].mean() for each in far])), 1e-12) for i in (0, 1)]
        self.edges: list[F32Array] = []
        for each, step in zip(far, _STEPS, strict=True):
            apart = np.minimum(feature_edges * each[0] / scale[0] + colour_edges * each[1] / scale[1], 30)
            self.edges.append((np.exp(-apart) + floor) * np.float32(_DIAGONAL if step[0] and step[1] else 1))
        self.mean_degree = float(self._degrees(self.edges).mean())

    def _degrees(self, edges: Sequence[F32Array]) -> F32Array:
        degrees = np.zeros(self.shape, np.float32)
        for edge, (a, b) in zip(edges, self._pairs, strict=True):
            degrees[a] += edge
            degrees[b] += edge
        return degrees

    def walk(
        self,
        weights: F32Array,
        pulls: F32Array,
        start: F32Array,
        rounds: int,
        tolerance: float,
        edges: Sequence[F32Array] | None = None,
    ) -> F32Array:
        """Solve (L + diag(weights)) x = pulls by conjugate gradients, where L is the graph's Laplacian.

        Args:
            weights: f32 [h, w], above 0.
            pulls: f32 [h, w]: each cell is pulled towards pulls / weights.
            start: f32 [h, w], a guess of x.
            rounds: iterations at most.
            tolerance: the change of x below which it ends.
            edges: other weights of the edges; None are the graph's own.

        Returns:
            x, f32 [h, w].
        """
        own = self.edges if edges is None else edges
        diagonal = self._degrees(own) + weights
        joined = list(zip(own, self._pairs, strict=True))

        def apply(x: F32Array) -> F32Array:
            y = diagonal * x
            for edge, (a, b) in joined:
                y[a] -= edge * x[b]
                y[b] -= edge * x[a]
            return y

        x = start.astype(np.float32)
        residual = pulls - apply(x)
        scaled = residual / diagonal
        direction, size = scaled.copy(), float(np.vdot(residual, scaled))
        for _ in range(rounds):
            if size <= 1e-20:
                break
            applied = apply(direction)
            step = np.float32(size / max(float(np.vdot(direction, applied)), 1e-20))
            x += step * direction
            residual -= step * applied
            if float(np.abs(direction).max()) * abs(float(step)) < tolerance:
                break
            scaled = residual / diagonal
            size, before = float(np.vdot(residual, scaled)), size
            direction = scaled + np.float32(size / before) * direction
        return x

    def region(
        self,
        spot: BoolArray,
        domain: BoolArray,
        against: BoolArray,
        stops: F32Array,
        limit: float,
        balance: float,
        options: ClickOptions,
    ) -> BoolArray:
        """The cells around a click that hang together best.

        Args:
            spot: bool [h, w], the clicked cells.
            domain: bool [h, w], where walkers may go.
            against: bool [h, w], clicked cells of the other sign.
            stops: f32 [h, w], additional weight with which walkers stop.
            limit: cells of the largest region.
            balance: exponent of the area by which the cut is divided.
            options: the constants.

        Returns:
            bool [h, w].
        """
        inside = domain.astype(np.float32)
        edges = [edge * inside[a] * inside[b] for edge, (a, b) in zip(self.edges, self._pairs, strict=True)]
        border = np.zeros(self.shape, np.float32)
        border[0] = border[-1] = border[:, 0] = border[:, -1] = options.border
        weights = options.leak * self.mean_degree + stops + HARD * (spot | against) + border * inside + ~domain
        start = spot.astype(np.float32)
        reach = self.walk(weights.astype(np.float32), HARD * start, start, 120, 1e-5, edges)
        reach = np.where(domain, np.maximum(reach, 0), 0)
        count = int(domain.sum())
        least = min(_SMALLEST[1], max(_SMALLEST[0], domain.size // 100))
        areas = np.unique(np.geomspace(least, max(least + 1, min(count - 1, limit)), _LEVELS).astype(int))
        areas = areas[areas < count]
        if len(areas) < 2:
            return spot | (domain & (reach > 0.5))
        levels = np.sort(reach[domain])[::-1][areas]
        order = np.searchsorted(-levels, -reach.reshape(-1)).reshape(self.shape)
        cuts = np.zeros(len(levels) + 1)
        for edge, (a, b) in zip(edges, self._pairs, strict=True):
            low, high = np.minimum(order[a], order[b]), np.maximum(order[a], order[b])
            for side, sign in ((low, 1), (high, -1)):
                cuts += sign * np.bincount(side.reshape(-1), edge.reshape(-1), len(cuts))
        cuts = np.cumsum(cuts)[:-1]
        best = int((cuts / areas**balance).argmin())
        return np.asarray((reach > levels[best]) | spot)


def _pair(height: int, width: int, down: int, right: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """All cells that have a neighbour in one direction, and these neighbours."""
    rows = slice(0, height - down), slice(down, height)
    if right >= 0:
        return (rows[0], slice(0, width - right)), (rows[1], slice(right, width))
    return (rows[0], slice(-right, width)), (rows[1], slice(0, width + right))


def _squares(values: F32Array, a: tuple[slice, slice], b: tuple[slice, slice]) -> F32Array:
    apart = values[a] - values[b]
    return np.asarray(np.einsum("hwc,hwc->hw", apart, apart), np.float32)
