"""The folder of results, and the description of the machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vosrt.bench.machine import Watch, describe, resident_mib

__all__ = ["RESULTS", "ROOT", "Watch", "describe", "resident_mib", "write"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def write(name: str, rows: list[dict[str, Any]], **more: Any) -> Path:
    """Write JSON lines to results/NAME.jsonl, the machine (and ``more`` that holds for all rows) first."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    lines = [json.dumps(row) for row in [{"machine": describe(), **more}, *rows]]
    path.write_text("\n".join(lines) + "\n")
    return path
