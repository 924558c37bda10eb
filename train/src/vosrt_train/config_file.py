"""Configuration files: TOML to dataclasses and back; unknown keys are refused."""

from __future__ import annotations

import difflib
import inspect
import json
import re
import textwrap
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import Field, asdict, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vosrt._reading import read_text
from vosrt.errors import OptionError
from vosrt_train.config import TrainConfig
from vosrt_train.ranges import range_of

T = TypeVar("T")

CONFIG_NAME = "config.toml"  # in the folder of a run

_PACKAGE = Path(__file__).parent
# Beside the modules where the package is installed, beside `src` in a checkout.
_PRESET_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parents[1] / "configs")


def presets() -> dict[str, Path]:
    """Return the configuration files of the package by name."""
    files = (path for folder in _PRESET_FOLDERS for path in folder.glob("*.toml"))
    return {path.stem: path for path in sorted(files)}


def load_config(preset: str, changes: Iterable[str] = ()) -> TrainConfig:
    """Read a configuration and change some of its values.

    Args:
        preset: the name of a preset, or the path of a TOML file.
        changes: each ``"table.key=value"`` with the value in TOML; a bare word is a string.

    Raises:
        OptionError: the preset or file does not exist, a key is unknown, or a value is out of range.
    """
    path = presets().get(preset, Path(preset))
    if not path.is_file():
        raise OptionError(f"no preset or file {preset!r}; choose from {', '.join(presets())}, or name a TOML file")
    try:
        document = tomllib.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise OptionError(f"{path} cannot be read as TOML: {error}") from error
    for change in changes:
        _apply(change, document)
    return build(TrainConfig, document)


def build(kind: type[T], document: Mapping[str, Any], where: str = "") -> T:
    """Build a dataclass, nested ones included, from the tables of a document.

    Args:
        document: values by name; missing ones have their defaults.
        where: prefix of names in error messages, e.g. ``"clips."``.

    Raises:
        OptionError: a key is unknown, or a value has the wrong type or is out of range.
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
    """Write the whole configuration as a TOML document that `load_config` reads."""
    document = asdict(config)
    lines = [f"{name} = {_toml(value)}" for name, value in document.items() if not isinstance(value, dict)]
    for table, values in document.items():
        if isinstance(values, dict):
            lines += ["", f"[{table}]", *(f"{name} = {_toml(value)}" for name, value in values.items())]
    return "\n".join(lines) + "\n"


def differences(one: TrainConfig, other: TrainConfig) -> list[str]:
    """Return a line, the name and both values, for each setting in which two configurations differ."""
    ours, theirs = _flatten(asdict(one)), _flatten(asdict(other))
    return [f"{name}: {ours[name]} and {theirs[name]}" for name in ours if ours[name] != theirs[name]]


def settings_page(config: TrainConfig | None = None) -> str:
    """List every setting: its name, its value in ``config``, its range, and its meaning."""
    lines: list[str] = []
    shown = config or TrainConfig()
    for each in fields(TrainConfig):
        value = getattr(shown, each.name)
        if is_dataclass(value):
            meanings = attribute_docs(type(value))
            lines += ["", f"[{each.name}]  {inspect.getdoc(type(value)).splitlines()[0]}"]  # type: ignore[union-attr]
            kinds = get_type_hints(type(value))
            for inner in fields(value):
                setting = _setting(f"{each.name}.{inner.name}", getattr(value, inner.name), kinds[inner.name], inner)
                lines += [
                    setting,
                    *textwrap.wrap(meanings[inner.name], 76, initial_indent="    ", subsequent_indent="    "),
                ]
        else:
            kind = get_type_hints(TrainConfig)[each.name]
            lines += [_setting(each.name, value, kind, each), f"    {attribute_docs(TrainConfig)[each.name]}"]
    return "\n".join(lines)


def attribute_docs(kind: type) -> dict[str, str]:
    """Read the meaning of each field from the docstring of a dataclass."""
    _, _, text = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    for line in text.splitlines():
        if match := re.match(r"    (\w+): (.*)", line):
            name = match[1]
            found[name] = match[2]
        elif line.strip():
            found[name] += f" {line.strip()}"
    return {name: meaning.replace("``", "") for name, meaning in found.items()}


def _setting(name: str, value: Any, kind: Any, setting: Field[Any]) -> str:
    limits = range_of(setting.metadata)
    return f"  {name} = {_toml(value)}  ({limits or _describe(kind)})"


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
    """Convert a value of a TOML document to the type of a field."""
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
    """Return the values of a Literal, or of a union of Literals."""
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
