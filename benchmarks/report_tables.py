"""What every table of the report is made with: results read, a row of Markdown written."""

from __future__ import annotations

import json
from typing import Any

from machine import RESULTS

MISSING = "not measured"


def read(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
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


def table(head: list[str], rows: list[list[object]]) -> str:
    """A Markdown table; all columns but the first are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def on(machine: dict[str, Any]) -> str:
    """The machine in a line."""
    if not machine:
        return f"({MISSING})"
    sets = ", ".join(flag.replace("_", "-").upper() for flag in machine["instruction_sets"])
    cores = f"{machine['cores']} {'core' if machine['cores'] == 1 else 'cores'}"
    return f"{machine['processor']}, {cores}, {machine['memory_gib']:.0f} GiB; {sets}."
