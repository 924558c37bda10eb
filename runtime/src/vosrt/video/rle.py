"""COCO run-length encoding (the compressed ``counts`` string of pycocotools).

A mask is read column by column and cut into runs that alternate between 0 and 1, beginning with 0. From
the fourth on, a run is stored as the difference to the run two before it. Each number becomes groups of
five bits, least significant first, with a continuation bit, as characters from ``0`` on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from vosrt.types import U8Array

_GROUP_BITS = 5
_MAX_GROUPS = 8  # 40 bits, more than any run of a picture needs


class LabelRuns:
    """A label map as runs of one label, read column by column.

    Args:
        labels: u8 [H, W], 0 for background.
    """

    def __init__(self, labels: U8Array) -> None:
        self._size = labels.size
        # OpenCV transposes ten times as fast as NumPy copies a transposed view.
        pixels = np.asarray(cv2.transpose(labels)).reshape(-1)
        edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
        self._starts = np.concatenate(([0], edges))
        self._ends = np.concatenate((edges, [pixels.size]))
        self._values = pixels[self._starts]

    def counts(self, object_id: int) -> str:
        """The COCO ``counts`` string of one object; one without pixels gives that of an empty mask."""
        mine = self._values == object_id
        bounds = np.stack((self._starts[mine], self._ends[mine]), axis=1).reshape(-1)
        counts = np.diff(bounds, prepend=0)
        if not bounds.size or bounds[-1] < self._size:
            counts = np.append(counts, self._size - (bounds[-1] if bounds.size else 0))
        return _pack(counts)


def encode_labels(labels: U8Array, object_ids: Iterable[int]) -> dict[int, str]:
    """Encode every object of a label map in one pass over its pixels.

    Args:
        labels: u8 [H, W], 0 for background.
        object_ids: ids to encode; one without pixels gives the encoding of an empty mask.

    Returns:
        The COCO ``counts`` string per id.
    """
    runs = LabelRuns(labels)
    return {object_id: runs.counts(object_id) for object_id in object_ids}


def encode(mask: NDArray[np.bool_]) -> str:
    """Encode one mask, bool [H, W], as a COCO ``counts`` string."""
    return encode_labels(mask.astype(np.uint8), (1,))[1]


def decode(counts: str | Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """Decode COCO ``counts`` to bool [height, width].

    Args:
        counts: the compressed string, or the runs themselves (COCO's uncompressed form).
        height: in pixels.
        width: in pixels.

    Raises:
        ValueError: the counts are damaged or belong to another size.
        OverflowError: a run is too large for 64 bits.
    """
    runs = _unpack(counts) if isinstance(counts, str) else np.array(counts, np.int64)
    if runs.ndim != 1 or (
        runs.size and (runs.min() < 0 or runs.max() > height * width or runs.sum() != height * width)
    ):
        raise ValueError(f"RLE counts do not fill {height}×{width} pixels")
    values = np.arange(runs.size) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def _pack(counts: NDArray[np.int64]) -> str:
    numbers = counts.astype(np.int64)
    numbers[3:] -= counts[1:-2]
    shifts = _GROUP_BITS * np.arange(_MAX_GROUPS)
    groups = (numbers[:, None] >> shifts) & 0x1F  # [runs, groups]
    # A group is the last one when what remains above it is only its own sign.
    rest = numbers[:, None] >> (shifts + _GROUP_BITS)
    last = np.where(groups & 0x10, rest == -1, rest == 0)
    length = last.argmax(axis=1) + 1
    position = np.arange(_MAX_GROUPS)
    groups = np.where(position < (length - 1)[:, None], groups | 0x20, groups) + 48
    return bytes(groups[position < length[:, None]].astype(np.uint8)).decode("ascii")


def _unpack(text: str) -> NDArray[np.int64]:
    groups = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not groups.size:
        return groups
    if groups.min() < 0 or groups.max() > 63 or groups[-1] & 0x20:
        raise ValueError("RLE counts hold a character that the format does not use, or end early")
    ends = np.flatnonzero((groups & 0x20) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _MAX_GROUPS:
        raise ValueError("RLE counts hold a number that is too large")
    position = np.arange(groups.size) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((groups & 0x1F) << (_GROUP_BITS * position), starts)
    negative = (groups[ends] & 0x10) != 0
    numbers[negative] -= np.int64(1) << (_GROUP_BITS * lengths[negative])
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
