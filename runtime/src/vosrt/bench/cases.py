"""The settings that are measured: every combination of the values that were asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args

from vosrt.cuda import open_device
from vosrt.errors import OptionError
from vosrt.text import counted
from vosrt.types import MAX_CONTEXT, MAX_OBJECT_ID, ModelPrecision

AUTO = "auto"
ISA_NAMES = (AUTO, "generic", "avx2", "avx512", "avx512bf16", "amx", "neon")
PRECISIONS: tuple[ModelPrecision, ...] = get_args(ModelPrecision)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One setting.

    Attributes:
        size: short side of the working frame in pixels.
        objects: tracked objects, all marked in the first frame.
        context: recent frames that are attended; None is what the bundle says.
        engine: as for ``Model.load``.
        precision: as for ``Model.load``.
        isa: path of the native core, or ``"auto"``.
        device: as for ``Model.load``.
    """

    size: int
    objects: int
    context: int | None
    engine: str
    precision: ModelPrecision
    isa: str
    device: str = "cpu"

    def __str__(self) -> str:
        """Short, for messages."""
        context = "" if self.context is None else f", context {self.context}"
        core = "" if self.isa == AUTO else f", {self.isa}"
        device = "" if self.device == "cpu" else f", {self.device}"
        return f"{self.size}p, {counted(self.objects, 'object')}{context}, {self.engine} {self.precision}{core}{device}"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The values of every axis; see `Case`."""

    size: Sequence[int] = (480,)
    objects: Sequence[int] = (1,)
    context: Sequence[int | None] = (None,)
    engine: Sequence[str] = (AUTO,)
    precision: Sequence[ModelPrecision] = ("auto",)
    isa: Sequence[str] = (AUTO,)
    device: Sequence[str] = ("cpu",)

    def groups(self) -> list[list[Case]]:
        """All cases; those of a group differ in their number of objects alone, so that they can take turns.

        Raises:
            OptionError: a value is out of range, or a device cannot be used.
        """
        _check("--size", self.size, 16, 4096)
        _check("--objects", self.objects, 1, MAX_OBJECT_ID)
        _check("--context", [value for value in self.context if value is not None], 0, MAX_CONTEXT)
        _check_names("--precision", self.precision, PRECISIONS)
        _check_names("--isa", self.isa, ISA_NAMES)
        for device in self.device:
            if (gpu := open_device(device)) is not None:
                gpu.info()
        names = [field.name for field in fields(self) if field.name != "objects"]
        combinations = itertools.product(*(dict.fromkeys(getattr(self, name)) for name in names))
        return [
            [Case(objects=objects, **dict(zip(names, values, strict=True))) for objects in dict.fromkeys(self.objects)]
            for values in combinations
        ]


def integers(option: str, text: str) -> list[int]:
    """Numbers of a comma-separated list.

    Raises:
        OptionError: the text is something else.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(f"{option} is {text!r}; expected whole numbers separated by commas, as in 240,480") from None


def names(text: str) -> list[str]:
    """Words of a comma-separated list."""
    return [part.strip() for part in text.split(",")]


def _check(option: str, values: Iterable[int], low: int, high: int) -> None:
    for value in values:
        if not low <= value <= high:
            raise OptionError(f"{option} is {value}; expected {low} to {high}")


def _check_names(option: str, values: Iterable[str], choices: Sequence[str]) -> None:
    for value in values:
        if value not in choices:
            raise OptionError(f"{option} is {value!r}; expected some of {', '.join(choices)}, separated by commas")


def case_from(values: dict[str, Any]) -> Case:
    """The case whose ``asdict`` this is."""
    return Case(**values)
