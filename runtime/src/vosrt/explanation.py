"""What a pixel's label was read from: the past cells that voted, with their weights.

Where an option divides cells into parts, a cell is a part here: each reads the same part of its cell's neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vosrt.core.memory import Memory
from vosrt.errors import InputError
from vosrt.types import F32Array


@dataclass(frozen=True)
class Vote:
    """A past cell whose soft labels were read.

    Attributes:
        reference: which reference's objects were read from it, from 0 in order of their frames. Background and the
            objects of the first marks are read through reference 0, objects that were marked later through their own.
        frame: of the cell, from 0 in the order in which the stream took frames.
        cell: its row and column on the grid of soft masks.
        x: pixel of the cell's centre.
        y: likewise.
        similarity: of the two cells, -1 to 1.
        weight: of its labels, 0 to 1; the weights of one reference add up to 1.
    """

    reference: int
    frame: int
    cell: tuple[int, int]
    x: float
    y: float
    similarity: float
    weight: float


@dataclass(frozen=True)
class Explanation:
    """What the newest frame's label at a pixel was read from.

    A pixel's label is interpolated between cells; this is the cell next to it. A guided filter and mask refinement
    change masks afterwards.

    Attributes:
        frame: the newest one, counted as in `Vote`.
        cell: row and column of the pixel's cell.
        grid: rows and columns of soft masks.
        votes: the largest weight first within each reference.
    """

    frame: int
    cell: tuple[int, int]
    grid: tuple[int, int]
    votes: tuple[Vote, ...]


def explain(memory: Memory, temperature: float, frame_size: tuple[int, int], y: int, x: int) -> Explanation:
    """Read from a memory what `vosrt.Stream.explain` returns.

    Args:
        frame_size: rows and columns of its frames, in pixels.
        y: row of the pixel.

    Raises:
        InputError: the pixel is outside the frame, or the newest frame was matched with nothing.
    """
    height, width = frame_size
    if not (0 <= y < height and 0 <= x < width):
        raise InputError(f"pixel {x},{y} is outside the frame; expected 0,0 to {width - 1},{height - 1}")
    info, found = memory.info, memory.top_k()
    rows, columns, _ = info["shape"]
    if not len(found.similarity):
        raise InputError("nothing was matched with this frame: it came before the first marks, or has them")
    parts, align_corners = info["parts"], info["align_corners"]
    axes = [_Axis(rows * parts, height, align_corners), _Axis(columns * parts, width, align_corners)]
    row, column = axes[0].cell(y), axes[1].cell(x)
    query, votes = row // parts * columns + column // parts, []
    for reference in range(len(found.similarity)):
        kept = found.frame[reference, query] >= 0
        similarity, frames, cells = (
            each[reference, query][kept] for each in (found.similarity, found.frame, found.cell)
        )
        weights = _softmax(similarity / np.float32(temperature))
        for at in np.argsort(-weights, kind="stable"):
            there_y, there_x = divmod(int(cells[at]), columns)
            there = (there_y * parts + row % parts, there_x * parts + column % parts)
            place = {"y": axes[0].pixel(there[0]), "x": axes[1].pixel(there[1])}
            numbers = {"similarity": float(similarity[at]), "weight": float(weights[at])}
            votes.append(Vote(reference=reference, frame=int(frames[at]), cell=there, **place, **numbers))
    return Explanation(info["frames"] - 1, (row, column), (rows * parts, columns * parts), tuple(votes))


@dataclass(frozen=True)
class _Axis:
    """Cells and pixels along one side of a frame."""

    cells: int
    pixels: int
    align_corners: bool

    def cell(self, pixel: float) -> int:
        """Return the cell next to a pixel."""
        if self.align_corners:
            at = pixel * (self.cells - 1) / max(self.pixels - 1, 1)
        else:
            at = (pixel + 0.5) * self.cells / self.pixels - 0.5
        return min(max(round(at), 0), self.cells - 1)

    def pixel(self, cell: int) -> float:
        """Return the place of a cell's centre, in pixels."""
        if self.align_corners:
            return round(cell * (self.pixels - 1) / max(self.cells - 1, 1), 2)
        return round((cell + 0.5) * self.pixels / self.cells - 0.5, 2)


def _softmax(values: F32Array) -> F32Array:
    if not values.size:
        return values
    exponentials = np.exp(values - values.max())
    weights: F32Array = exponentials / exponentials.sum()
    return weights
