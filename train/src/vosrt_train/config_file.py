"""Configuration files: TOML into dataclasses and back, with nothing unknown let through."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vosrt.errors import OptionError
from vosrt_train.config import TrainConfig

T = TypeVar("T")

_PACKAGE = Path(__file__).parent
# Beside the modules where the package is installed, beside `src` in a checkout.
_PRESET_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parents[1] / "configs")


def presets() -> dict[str, Path]:
    """The configuration files that come with the package, by name."""
    files = (path for folder in _PRESET_FOLDERS for path in folder.glob("*.toml"))
    return {path.stem: path for path in sorted(files)}


def load_config(preset: str, changes: Iterable[str] = ()) -> TrainConfig:
    """Read a configuration and change some of its values.

    Args:
        preset: the name of a preset, or the path of a TOML file.
        changes: each ``"table.key=value"`` with the value in TOML; a bare word is a string.

    Raises:
        OptionError: there is no such preset or file, a key is unknown, or a value impossible.
    """
    path = presets().get(preset, Path(preset))
    if not path.is_file():
        raise OptionError(f"no preset or file {preset!r}; choose from {', '.join(presets())}, or name a TOML file")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{path} cannot be read as TOML: {error}") from error
    for change in changes:
        _apply(change, document)
    return build(TrainConfig, document)


def build(kind: type[T], document: Mapping[str, Any], where: str = "") -> T:
    """Make a dataclass, nested ones included, from the tables of a document.

    Args:
        kind: the dataclass.
        document: its values by name; missing ones have their defaults.
        where: how error messages call the document, e.g. ``"clips."``.

    Raises:
        OptionError: a key is unknown, or a value has another type or is out of range.
    """
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, value in document.items():
        if name not in types:
            near = difflib.get_close_matches(name, types, 1, 0.0)[0]
            raise OptionError(f"unknown key {where + name!r}; the nearest known one is {where + near!r}")
        values[name] = _convert(value, types[name], where + name)
    return kind(**values)


def to_toml(config: TrainConfig) -> str:
    """The whole configuration as a TOML document that `load_config` reads."""
    document = asdict(config)
    lines = [f"{name} = {_toml(value)}" for name, value in document.items() if not isinstance(value, dict)]
    for table, values in document.items():
        if isinstance(values, dict):
            lines += ["", f"[{table}]", *(f"{name} = {_toml(value)}" for name, value in values.items())]
    return "\n".join(lines) + "\n"


def differences(one: TrainConfig, other: TrainConfig) -> list[str]:
    """Names of the values in which two configurations differ, with both values."""
    ours, theirs = _flatten(asdict(one)), _flatten(asdict(other))
    return [f"{name}: {ours[name]} and {theirs[name]}" for name in ours if ours[name] != theirs[name]]


def _apply(change: str, document: dict[str, Any]) -> None:
    name, equals, text = change.partition("=")
    *tables, key = name.strip().split(".")
    if not equals or not key:
        raise OptionError(f"--set {change!r} cannot be understood; expected table.key=value, e.g. clips.crop=128")
    for table in tables:
        document = document.setdefault(table, {})
        if not isinstance(document, dict):
            raise OptionError(f"--set {change!r}: {table!r} is a value, not a table")
    try:
        document[key] = tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        document[key] = text.strip()


def _convert(value: Any, kind: Any, where: str) -> Any:
    """A value of a TOML document as the type that a field wants."""
    if is_dataclass(kind) and isinstance(value, dict):
        return build(kind, value, f"{where}.")  # type: ignore[arg-type]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal and value in arguments and isinstance(value, str):
        return value
    if origin in (Union, UnionType) and value in _choices(kind):
        return value
    if origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) == len(value):
            return tuple(_convert(item, each, where) for item, each in zip(value, kinds, strict=True))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind:
        return value
    raise OptionError(f"{where} is {value!r}; expected {_describe(kind)}")


def _choices(kind: Any) -> tuple[Any, ...]:
    """The values of a Literal, or of a union of them."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(choice for each in get_args(kind) for choice in _choices(each))


def _describe(kind: Any) -> str:
    if choices := _choices(kind) if get_origin(kind) is not tuple else ():
        return "one of " + ", ".join(repr(choice) for choice in choices)
    if get_origin(kind) is tuple:
        first, *others = get_args(kind)
        return f"a list of {_describe(first)}" if others == [...] else f"a list of {1 + len(others)} numbers"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    return names.get(kind, "a table")


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return json.dumps(value)  # strings, numbers and booleans are written alike in TOML


def _flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
