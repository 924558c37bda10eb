"""Mapping of values of more than 8 bits, as of thermal cameras and microscopes, to the 256 levels of a frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vosrt.errors import OptionError
from vosrt.types import U8Array

_FIRST = 8  # frames whose values set the levels
_DARKEST, _BRIGHTEST = 0.1, 99.9  # percentiles that become black and white: a few hot pixels count for nothing

_DARK_COLOURS = 1 / 16  # part of the range below which RGB is stretched too: 12 bits that were stored as 16

Item = TypeVar("Item")


class Levels:
    """Values that become black and white.

    Args:
        text: ``"auto"`` sets them by the darkest and the brightest values of the first frames, ``"full"`` shows the
            whole range of the format, ``"LO,HI"`` names the two values. RGB is stretched only where it is very dark.

    Attributes:
        limits: the two values; None until ``auto`` has seen frames, and for ``full``.
        used: whether values of more than 8 bits were stretched.

    Raises:
        OptionError: it is none of these.
    """

    def __init__(self, text: str = "auto") -> None:
        self._text = text
        self.limits: tuple[float, float] | None = None
        self.used = False
        if text in ("auto", "full"):
            return
        try:
            low, high = (float(part) for part in text.split(","))
        except ValueError:
            low = high = 0.0
        if not np.isfinite([low, high]).all() or low >= high:
            raise OptionError(f"--levels {text}: expected auto, full or LO,HI, two numbers, the smaller one first")
        self.limits = low, high

    @classmethod
    def of(cls, levels: str | Levels) -> Levels:
        """Return levels by their text, or those that are given: a source that is read twice looks the same."""
        return levels if isinstance(levels, Levels) else cls(levels)

    @property
    def undecided(self) -> bool:
        """Return whether frames must be seen first."""
        return self._text == "auto" and self.limits is None

    def decide(self, frames: list[NDArray[Any]]) -> None:
        """Set the levels by the first frames: numbers of any shape."""
        values = np.concatenate([frame[np.isfinite(frame)].reshape(-1)[:: _stride(frame)] for frame in frames])
        if values.size:
            low, high = np.percentile(values, (_DARKEST, _BRIGHTEST))
            self.limits = float(low), float(max(high, low + 1 if np.issubdtype(values.dtype, np.integer) else high))

    def ahead(
        self, items: Iterable[Item], values: Callable[[Item], NDArray[Any] | None], most: int = _FIRST
    ) -> Iterator[Item]:
        """Pass ``items`` on, once the first of them have set levels that are undecided.

        Args:
            items: frames of any kind.
            values: gives the numbers of one; None where they have 8 bits.
            most: number of frames to look at; 1 for a live source, which cannot wait.
        """
        rest = iter(items)
        if not self.undecided:
            return rest
        first = list(islice(rest, 1))
        if not first or values(first[0]) is None:
            return chain(first, rest)
        first += islice(rest, most - 1)
        self.decide([numbers for each in first if (numbers := values(each)) is not None])
        return chain(first, rest)

    def apply(self, values: NDArray[Any], full: float) -> U8Array:
        """Convert numbers to u8 of the same shape.

        Args:
            values: integers or floats; NaN becomes black.
            full: the value that is white where the whole range is shown.
        """
        limits = self.limits
        if self._text == "auto" and values.ndim == 3 and limits is not None and limits[1] > full * _DARK_COLOURS:
            limits = None  # a picture, of which a dark beginning must not set the levels
        self.used = self.used or limits is not None
        low, high = limits or (0.0, full)
        numbers: NDArray[Any] = values.astype(np.float32 if values.dtype.itemsize <= 4 else np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # floats of any size, as in a file that is damaged
            scaled = (numbers - low) * (255 / max(high - low, 1e-12))
        return np.asarray(np.nan_to_num(scaled.round().clip(0, 255)), np.uint8)

    def to_bgr(self, image: NDArray[Any]) -> U8Array:
        """Convert an image to u8 [H, W, 3].

        Args:
            image: [H, W], [H, W, 3] BGR or [H, W, 4] BGRA, of any number type; u8 BGR stays as it is.
        """
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
            return np.asarray(image, np.uint8)
        full = 1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max)
        levelled = self.apply(image, full) if image.dtype != np.uint8 else np.asarray(image, np.uint8)
        if levelled.ndim == 2 or levelled.shape[2] == 1:
            return np.ascontiguousarray(np.repeat(levelled.reshape(*levelled.shape[:2], 1), 3, axis=2))
        return np.ascontiguousarray(levelled[..., :3])

    def note(self, name: str) -> list[str]:
        """Return what a user should know of the conversion: one line, or none."""
        if not self.used or self._text != "auto" or self.limits is None:
            return []
        low, high = (f"{value:g}" for value in self.limits)
        return [f"{name}: values of {low} to {high} are shown as black to white; --levels full or LO,HI changes that"]


def _stride(frame: NDArray[Any]) -> int:
    """Look at a million values of a frame at most."""
    return max(1, frame.size >> 20)
