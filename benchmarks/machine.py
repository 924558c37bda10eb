"""What every benchmark has: its options, the description of the machine, the folder of results."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vosrt.bench import machine
from vosrt.bench.machine import Watch, resident_mib
from vosrt.engines.nvidia import find_gpu
from vosrt.errors import EngineError

__all__ = ["RESULTS", "ROOT", "Watch", "describe", "merged", "parser_of", "resident_mib", "write"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def describe() -> dict[str, Any]:
    """The machine as vos-bench describes it, and its first NVIDIA GPU: name, architecture and newest CUDA, or None."""
    try:
        gpu = asdict(find_gpu())
    except EngineError:
        gpu = None
    return {**machine.describe(), "gpu": gpu}


def parser_of(doc: str | None, *, toy: bool = True) -> argparse.ArgumentParser:
    """A parser for the options of a module with this docstring, most of which can be tried on a tiny problem."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if toy:
        parser.add_argument("--toy", action="store_true", help="a tiny problem, nothing written")
    return parser


def merged(name: str, rows: list[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """The rows of results/NAME.jsonl, where it exists, with those that have the same values of ``keys`` replaced."""
    path = RESULTS / f"{name}.jsonl"
    old = [json.loads(line) for line in path.read_text().splitlines()[1:]] if path.exists() else []
    fresh = {tuple(row.get(key) for key in keys) for row in rows}
    return [row for row in old if tuple(row.get(key) for key in keys) not in fresh] + rows


def write(name: str, rows: list[dict[str, Any]], *, toy: bool = False, show: bool = False, **more: Any) -> None:
    """Write JSON lines to results/NAME.jsonl, the machine (and ``more`` that holds for all rows) first.

    It names the file on standard output, after the rows if ``show`` says so. Rows of a tiny problem are not written.
    """
    for row in rows if show else ():
        print(" | ".join(str(value) if name == "what" else f"{name}: {value}" for name, value in row.items()))
    if toy:
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    lines = [json.dumps(row) for row in [{"machine": describe(), **more}, *rows]]
    path.write_text("\n".join(lines) + "\n")
    print(path)
