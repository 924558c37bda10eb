"""Ranges of the numbers of a configuration: metadata of each field, checked in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from vosrt.errors import OptionError

T = TypeVar("T", int, float, tuple[float, float], tuple[float, float, float])
_KEY = "range"


@dataclass(frozen=True)
class Range:
    """Range of a number, both ends included.

    Attributes:
        unit: in words.
        zero: what 0 means, where it is allowed outside the range; empty where it is not.
    """

    low: float
    high: float
    unit: str = ""
    zero: str = ""

    def __str__(self) -> str:
        """The range in words, for errors and for ``--help-settings``."""
        words = f"{self.low:g} to {self.high:g} {self.unit}".rstrip() if self.high < 1e6 else self._large()
        return f"{words}, or 0 {self.zero}" if self.zero else words

    def _large(self) -> str:
        return f"{self.low} to {self.high} {self.unit}".rstrip()


def limited(default: T, low: float, high: float, unit: str = "", *, zero: str = "") -> T:
    """Define a field of a configuration with its default and its `Range`."""
    chosen: T = field(default=default, metadata={_KEY: Range(low, high, unit, zero)})
    return chosen


def range_of(metadata: Any) -> Range | None:
    """Return the range in the metadata of a field; None where it has none."""
    found: Range | None = metadata.get(_KEY)
    return found


class Checked:
    """Base of a configuration, a dataclass whose fields may be `limited`; creating one checks their ranges.

    A subclass names its table in a configuration file: ``class LogConfig(Checked, table="log")``.
    """

    _table = ""

    def __init_subclass__(cls, table: str = "") -> None:
        """Note the table of a subclass."""
        cls._table = table

    def __post_init__(self) -> None:
        """Check all numbers.

        Raises:
            OptionError: a number is not finite or outside its range.
        """
        for each in fields(self):  # type: ignore[arg-type]
            limits, value = range_of(each.metadata), getattr(self, each.name)
            for number in () if limits is None else value if isinstance(value, tuple) else (value,):
                assert limits is not None
                if number == 0 and limits.zero:
                    continue
                if not (math.isfinite(number) and limits.low <= number <= limits.high):
                    name = f"{self._table}.{each.name}" if self._table else each.name
                    raise OptionError(f"{name} is {number}; expected {limits}")
