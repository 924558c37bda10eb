"""Where results go; what they were measured on comes from the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vosrt.benchmark.machine import Watch, describe, resident_mib

__all__ = ["RESULTS", "Watch", "describe", "resident_mib", "write"]

RESULTS = Path(__file__).parent / "results"


def write(name: str, rows: list[dict[str, Any]], **more: Any) -> Path:
    """Write JSON lines to results/NAME.jsonl, the machine (and ``more`` that holds for all rows) first."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    lines = [json.dumps(row) for row in [{"machine": describe(), **more}, *rows]]
    path.write_text("\n".join(lines) + "\n")
    return path
