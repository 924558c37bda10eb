"""The settings that fit a time budget, out of those that were measured."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any


def fitting(rows: Sequence[dict[str, Any]], budget_ms: float) -> list[dict[str, Any]]:
    """Rows whose frame takes at most ``budget_ms`` in 95 of 100 cases, best first.

    Larger frames come first, then longer contexts, then more objects: the first two raise quality, and objects cost
    little. Rows that another row equals or exceeds in all three, in less time, are left out.

    Args:
        rows: of `vosrt.bench.runner.measure_group`.
        budget_ms: milliseconds for one frame, from decoding to writing.
    """
    fit = [row for row in rows if _time(row) <= budget_ms]
    best = [row for row in fit if not any(_beats(other, row) for other in fit)]
    return sorted(best, key=lambda row: (*_value(row), -_time(row)), reverse=True)


def command_for(row: dict[str, Any]) -> str:
    """The options of ``vos-run`` that give this row."""
    return " ".join(
        [
            "vos-run SOURCE --mask FIRST.png -o OUT",
            *([] if row["asked_bundle"] == "default" else [f"--bundle {shlex.quote(row['asked_bundle'])}"]),
            f"--size {row['size']} --context {row['context']}",
            f"--engine {row['engine']} --precision {row['asked_precision']} --threads {row['threads']}",
            *([] if row.get("device", "cpu") == "cpu" else [f"--device {row['device']}"]),
        ]
    )


def _time(row: dict[str, Any]) -> float:
    return float(row["stages_ms"]["frame"]["p95"])


def _value(row: dict[str, Any]) -> tuple[int, int, int]:
    return row["size"], row["context"], row["objects"]


def _beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether a setting is faster and in nothing worse."""
    return all(a >= b for a, b in zip(_value(one), _value(other), strict=True)) and _time(one) < _time(other)
