"""Mean intersection over union of human parts, as the VIP data set is scored (Zhou et al. 2018).

One confusion matrix over every annotated frame of every sequence, the first included; IoU per class,
background included; the mean over the classes that occur in annotation or prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vosrt.errors import MaskError
from vosrt.types import U8Array

I64Array = NDArray[np.int64]

PARTS = (
    "background",
    "hat",
    "hair",
    "sun-glasses",
    "upper-clothes",
    "dress",
    "coat",
    "socks",
    "pants",
    "gloves",
    "scarf",
    "skirt",
    "torso-skin",
    "face",
    "right-arm",
    "left-arm",
    "right-leg",
    "left-leg",
    "right-shoe",
    "left-shoe",
)


@dataclass
class PartsScore:
    """Scores of the parts of one sequence.

    Attributes:
        confusion: i64 [20, 20], pixels by true and predicted class.
        frames: mIoU per frame, 0 to 1.
    """

    name: str
    confusion: I64Array
    frames: dict[str, float]

    @cached_property
    def iou(self) -> dict[str, float | None]:
        """IoU per class, 0 to 1; None where the class occurs nowhere."""
        return dict(zip(PARTS, _iou(self.confusion), strict=True))

    @cached_property
    def figures(self) -> dict[str, float | None]:
        """``mIoU``, and the share of right pixels."""
        return {"mIoU": _mean(_iou(self.confusion)), "accuracy": float(self.confusion.trace() / self.confusion.sum())}


class PartsScorer:
    """Takes the annotated frames of a sequence one by one."""

    def __init__(self, name: str) -> None:
        self._score = PartsScore(name, np.zeros((len(PARTS), len(PARTS)), np.int64), {})

    def feed(self, stem: str, prediction: U8Array, annotation: U8Array) -> None:
        """Take the next frame. Pixels whose annotation is no class (a border label) do not count.

        Args:
            prediction: u8 [H, W], classes 0 to 19.
            annotation: likewise, the truth.

        Raises:
            MaskError: the prediction holds something else.
        """
        if prediction.max() >= len(PARTS):
            raise MaskError(
                f"{self._score.name}: the mask of frame {stem} holds {prediction.max()}; "
                f"expected classes 0 to {len(PARTS) - 1}"
            )
        counts = annotation < len(PARTS)
        pairs = annotation[counts].astype(np.int64) * len(PARTS) + prediction[counts]
        if not len(pairs):
            return
        confusion = np.bincount(pairs, minlength=len(PARTS) ** 2).reshape(len(PARTS), len(PARTS))
        self._score.confusion += confusion
        self._score.frames[stem] = _mean(_iou(confusion))

    def conclude(self) -> PartsScore:
        """Return the score of the frames so far."""
        return self._score


def total_of(scores: Sequence[PartsScore]) -> PartsScore:
    """Return the score over the frames of several sequences."""
    confusion = np.zeros_like(scores[0].confusion)
    for score in scores:
        confusion += score.confusion
    return PartsScore("all", confusion, {})


def _iou(confusion: I64Array) -> list[float | None]:
    right = confusion.diagonal()
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - right
    return [float(part / whole) if whole else None for part, whole in zip(right, union, strict=True)]


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 1.0
