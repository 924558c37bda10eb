"""Tools of every table: reading results, writing rows of Markdown."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.machine import RESULTS

MISSING = "not measured"

Row = dict[str, Any]


def read(name: str) -> tuple[dict[str, Any], list[Row]]:
    """Machine and rows of results/NAME.jsonl; nothing where it was not run."""
    path = RESULTS / f"{name}.jsonl"
    if not path.exists():
        return {}, []
    machine, *rows = (json.loads(line) for line in path.read_text().splitlines())
    return machine["machine"], rows


def header_of(name: str) -> dict[str, Any]:
    """The first line of results/NAME.jsonl: the machine, and what all rows have in common."""
    with (RESULTS / f"{name}.jsonl").open() as lines:
        header: dict[str, Any] = json.loads(next(lines))
    return header


def part(name: str) -> Callable[[Callable[[str, list[Row]], str]], Callable[[], str]]:
    """Make a part of a document of a function that is called with the machine, in a line, and results/NAME.jsonl."""

    def decorate(write: Callable[[str, list[Row]], str]) -> Callable[[], str]:
        @functools.wraps(write)
        def written() -> str:
            machine, rows = read(name)
            return write(on(machine), rows) if rows else f"({MISSING})"

        return written

    return decorate


def distinct(rows: Iterable[Row], *keys: str) -> list[Any]:
    """The values of a key in the rows, each once, in the order in which they come; of several keys tuples."""
    found = ([row[key] for key in keys] for row in rows)
    return list(dict.fromkeys(values[0] if len(keys) == 1 else tuple(values) for values in found))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def listing(rows: Iterable[Row], columns: dict[str, Callable[[Row], object]]) -> str:
    """A table with a line per row; each column has a title and what it shows of a row."""
    return table(list(columns), [[show(row) for show in columns.values()] for row in rows])


def crossed(
    title: str,
    rows: Sequence[Row],
    lines: str,
    columns: Sequence[Any],
    value: Callable[[Row | None], str],
    *,
    key: Callable[[Row], Any],
    name: Callable[[Any], str] = str,
) -> str:
    """A table with a line for each value of ``lines``, and for each of ``columns`` the row that has this ``key``."""
    cells = {(row[lines], key(row)): row for row in rows}
    body = [[line, *(value(cells.get((line, each))) for each in columns)] for line in distinct(rows, lines)]
    return table([title, *map(name, columns)], body)


def on(machine: dict[str, Any]) -> str:
    """The machine in a line."""
    if not machine:
        return f"({MISSING})"
    sets = ", ".join(flag.replace("_", "-").upper() for flag in machine["instruction_sets"])
    gpu = f"; {machine['gpu']['name']}" if machine.get("gpu") else ""
    cores = f"{machine['cores']} {'core' if machine['cores'] == 1 else 'cores'}"
    return f"{machine['processor']}, {cores}, {machine['memory_gib']:.0f} GiB; {sets}{gpu}."
