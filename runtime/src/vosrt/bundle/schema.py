"""The table ``schema.txt``: what a manifest may hold, and the check that a document holds that and nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vosrt.errors import BundleError
from vosrt.text import quoted

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "any": (dict,),
    "graphs": (dict,),
    "integer": (int,),
    "size": (int, type(None)),
    "number": (int, float),
    "flag": (bool,),
    "choice": (str,),
    "text": (str,),
}


@dataclass(frozen=True)
class Rule:
    """One line of the table.

    Attributes:
        kind: of the value.
        optional: whether the key may be left out.
        bounds: depend on the kind, see the table.
        words: what is expected, where the kind does not say it.
    """

    kind: str
    optional: bool
    bounds: tuple[str, ...]
    words: str = ""

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest number, or length of a text."""
        return int(self.bounds[0]), int(self.bounds[1])

    @property
    def expected(self) -> str:
        """What the value must be, in words."""
        by_kind = {"flag": "true or false", "integer": "a whole number", "number": "a number"}
        if self.kind == "choice":
            return " or ".join(map(repr, self.bounds))
        if self.kind in ("integer", "size") and self.bounds:
            return f"an integer from {self.bounds[0]} to {self.bounds[1]}"
        if self.kind == "text" and not self.words:
            return f"{self.bounds[0]} to {self.bounds[1]} printable characters"
        return self.words if self.kind == "text" else by_kind.get(self.kind, "a JSON object")

    def holds(self, value: Any) -> bool:
        """Whether a value is of this kind and within its bounds; objects are not looked into."""
        if type(value) not in _TYPES[self.kind]:
            return False
        if self.kind == "choice":
            return any(value == each for each in self.bounds)
        if self.kind == "text":
            low, high = self.limits
            return low <= len(value) <= high and bool(value.isprintable()) and self._spells(value)
        if self.kind in ("integer", "size") and self.bounds and value is not None:
            return bool(self.limits[0] <= value <= self.limits[1])
        return True

    def _spells(self, value: str) -> bool:
        """Whether a text is made of the table's characters, where that names any."""
        if len(self.bounds) == 2:
            return True
        first, further, *between = self.bounds[2:]
        part = f"[{first}][{further}]*"
        return re.fullmatch("".join([part, *(f"({re.escape(each)}{part})*" for each in between)]), value) is not None


def _read_schema() -> dict[str, dict[str, Rule]]:
    """Rules by the object that they are of, ``""`` for the whole document, and by key."""
    rules: dict[str, dict[str, Rule]] = {}
    for line in Path(__file__).with_name("schema.txt").read_text("utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        key, kind, bounds, words = (part.strip() for part in f"{line}|||".split("|")[:4])
        owner, _, name = key.removesuffix("?").strip().rpartition(".")
        rules.setdefault(owner, {})[name] = Rule(kind, key.endswith("?"), tuple(bounds.split()), words)
    return rules


RULES = _read_schema()


def check_document(document: Any, path: Path) -> None:
    """Have a JSON document be one that the table describes.

    Args:
        document: the whole manifest.
        path: of its file, for messages.

    Raises:
        BundleError: a key is missing or unknown, or a value is not of its kind or out of bounds.
    """
    if not isinstance(document, dict):
        raise BundleError(f"{path}: the manifest is {quoted(document)}; expected a JSON object")
    _check_object(document, "", "", path, document)


def _check_object(values: dict[str, Any], owner: str, where: str, path: Path, document: dict[str, Any]) -> None:
    """Check one object.

    Args:
        values: the object.
        owner: key of the object in the table.
        where: the same with the names of graphs, for messages.
        path: of the file.
        document: the whole manifest, whose family some objects depend on.
    """
    known = set()
    for key, rule in RULES[owner].items():
        if rule.kind == "object" and rule.bounds and document.get("family") not in rule.bounds:
            continue
        known.add(key)
        inner = f"{where}.{key}" if where else key
        if key not in values:
            if not rule.optional:
                raise BundleError(f"{path}: {quoted(inner)} is missing; expected {rule.expected}")
            continue
        value = values[key]
        if not rule.holds(value):
            raise BundleError(f"{path}: {quoted(inner)} is {quoted(value)}; expected {rule.expected}")
        if rule.kind == "graphs":
            _check_graphs(value, rule, path, document)
        elif rule.kind == "object":
            _check_object(value, f"{owner}.{key}" if owner else key, inner, path, document)
    if unknown := sorted(values.keys() - known):
        raise BundleError(
            f"{path}: {quoted(unknown[0])} in {where or 'the manifest'} is not known to this vosrt; "
            "correct it or upgrade vosrt"
        )


def _check_graphs(graphs: dict[str, Any], rule: Rule, path: Path, document: dict[str, Any]) -> None:
    most, *of_names = rule.bounds
    if len(graphs) > int(most):
        raise BundleError(f"{path}: graphs has {len(graphs)} entries; expected at most {most}")
    for name, entry in graphs.items():
        if not Rule("text", False, tuple(of_names)).holds(name):
            raise BundleError(f"{path}: graphs has the entry {quoted(name)}; expected {rule.words}")
        if not isinstance(entry, dict):
            raise BundleError(f"{path}: 'graphs.{name}' is {quoted(entry)}; expected a JSON object")
        _check_object(entry, "graphs.*", f"graphs.{name}", path, document)
