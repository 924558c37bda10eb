"""Region similarity J, boundary accuracy F and J&F, as the DAVIS toolkit computes them (Perazzi et al. 2016)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vosrt.errors import InputError
from vosrt.types import U8Array

BoolArray = NDArray[np.bool_]

_TOLERANCE = 0.008  # of the frame's diagonal: how far apart two boundaries may be


@dataclass(frozen=True)
class Score:
    """How well one object was followed through a sequence.

    Attributes:
        j: mean J over the frames, 0 to 1.
        f: mean F over the frames, 0 to 1.
    """

    j: float
    f: float

    @property
    def j_and_f(self) -> float:
        """The mean of both."""
        return (self.j + self.f) / 2


def score_sequence(predictions: Sequence[U8Array], annotations: Sequence[U8Array]) -> dict[int, Score]:
    """Score each object that the first frame marks. The first and the last frame do not count.

    Args:
        predictions: one u8 [H, W] per frame; 0 is background, otherwise an object id.
        annotations: likewise, the truth.

    Raises:
        InputError: they are not as many, fewer than three, differ in size, or the first marks no object.
    """
    if len(predictions) != len(annotations) or len(annotations) < 3:
        raise InputError(
            f"{len(predictions)} predictions for {len(annotations)} annotations; expected as many, three or more"
        )
    scores = {}
    for object_id in (int(value) for value in np.unique(annotations[0]) if value != 0):
        pairs = [(p == object_id, a == object_id) for p, a in zip(predictions, annotations, strict=True)][1:-1]
        j = math.fsum(region_similarity(*pair) for pair in pairs) / len(pairs)
        f = math.fsum(boundary_accuracy(*pair) for pair in pairs) / len(pairs)
        scores[object_id] = Score(j, f)
    if not scores:
        raise InputError("the first annotation marks no object; expected at least one pixel that is not 0")
    return scores


def region_similarity(prediction: BoolArray, annotation: BoolArray) -> float:
    """J: intersection over union of two masks [H, W]; 1 where both are empty."""
    _check_pair(prediction, annotation)
    union = np.count_nonzero(prediction | annotation)
    return np.count_nonzero(prediction & annotation) / union if union else 1.0


def boundary_accuracy(prediction: BoolArray, annotation: BoolArray) -> float:
    """F: harmonic mean of the precision and the recall of the boundary pixels of two masks [H, W].

    A boundary pixel is found where the other boundary passes within 0.8 % of the diagonal. Where just one of the
    masks has a boundary, F is 0; where neither has, 1.
    """
    _check_pair(prediction, annotation)
    radius = math.ceil(_TOLERANCE * math.hypot(*prediction.shape))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x * x + y * y <= radius * radius).astype(np.uint8)
    found, wanted = _boundary(prediction), _boundary(annotation)
    found_count, wanted_count = np.count_nonzero(found), np.count_nonzero(wanted)
    if not found_count or not wanted_count:
        return float(found_count == wanted_count)
    precision = np.count_nonzero(cv2.bitwise_and(found, cv2.dilate(wanted, disk))) / found_count
    recall = np.count_nonzero(cv2.bitwise_and(wanted, cv2.dilate(found, disk))) / wanted_count
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask: BoolArray) -> U8Array:
    """Pixels that differ from the next one to the right, below or diagonally: u8 [H, W], 0 or 1."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here = padded[:-1, :-1]
    differs: BoolArray = (here != padded[:-1, 1:]) | (here != padded[1:, :-1]) | (here != padded[1:, 1:])
    return differs.astype(np.uint8)


def _check_pair(prediction: BoolArray, annotation: BoolArray) -> None:
    if prediction.shape != annotation.shape or prediction.ndim != 2:
        raise InputError(
            f"the prediction is {list(prediction.shape)}, the annotation {list(annotation.shape)}; "
            "expected two masks [height, width] of one size"
        )
