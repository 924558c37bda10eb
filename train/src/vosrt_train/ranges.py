"""Numbers of a configuration that must lie within limits."""

from __future__ import annotations

import math

from vosrt.errors import OptionError


def check_range(name: str, value: float, low: float, high: float, unit: str = "") -> None:
    """Refuse a number outside [low, high], or not a number.

    Raises:
        OptionError: it is; the message names it and the limits.
    """
    if not (math.isfinite(value) and low <= value <= high):
        raise OptionError(f"{name} is {value}; expected {low} to {high} {unit}".rstrip())
