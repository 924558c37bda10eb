"""Output of ``vos-bench``: a table, one line per finding, JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from vosrt._files import write_file
from vosrt._reading import read_text
from vosrt.console import Cell, Column, RichTable, styled, table
from vosrt.text import counted

RESULTS = "bench.jsonl"

Row: TypeAlias = dict[str, Any]

_NOT_MODEL = ("decode", "write", "frame")
_KEY = ("size", "context", "engine", "precision", "isa")


def write_rows(path: Path, header: Row, rows: Sequence[Row], write: Callable[[Path, bytes], None] = write_file) -> None:
    """Write JSON lines, ``header`` first, with ``write``.

    Raises:
        WorkError: they cannot be written.
    """
    write(path, "".join(json.dumps(line) + "\n" for line in [header, *rows]).encode())


def tables_of(rows: Sequence[Row]) -> list[RichTable | str]:
    """Return for each engine and core a table of whole frames and one of their stages, at most 80 columns wide."""
    parts: list[RichTable | str] = []
    for engine, precision, isa in dict.fromkeys((row["engine"], row["precision"], row["isa"]) for row in rows):
        chosen = [row for row in rows if (row["engine"], row["precision"], row["isa"]) == (engine, precision, isa)]
        parts += [f"{engine} {precision}, core {isa}", _frame_table(chosen), "", _stage_table(chosen), ""]
    return parts


def _frame_table(rows: Sequence[Row]) -> RichTable:
    def cells(row: Row) -> list[Cell]:
        frame, others = row["stages_ms"]["frame"], row["foreign_cores"]
        return [
            *_settings(row),
            *(f"{frame[percent]:.1f}" for percent in ("p50", "p95", "p99")),
            f"{row['fps']:.1f}",
            "" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:.0f}",
            styled("?" if others < 0 else f"{others:.2f}", "red" if row["disturbed"] else ""),
        ]

    return _setting_table(["frame p50, ms", "p95", "p99", "FPS", "MB", "others"], map(cells, rows))


def _stage_table(rows: Sequence[Row]) -> RichTable:
    """A column per stage that exists; medians in milliseconds."""
    stages = list(dict.fromkeys(stage for row in rows for stage in row["stages_ms"] if stage != "frame"))

    def cells(row: Row) -> list[Cell]:
        times = row["stages_ms"]
        return [*_settings(row), *(f"{times[stage]['p50']:.1f}" if stage in times else "" for stage in stages)]

    return _setting_table(stages, map(cells, rows))


def _setting_table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> RichTable:
    return table([Column(name, justify="right") for name in ("size", "objects", "context", *columns)], rows)


def _settings(row: Row) -> tuple[str, str, str]:
    return str(row["size"]), str(row["objects"]), str(row["context"])


def findings(rows: Sequence[Row]) -> list[str]:
    """Return what the rows say about objects, GPUs and disturbance, a sentence each."""
    said = [
        f"{more['objects']} objects cost {model:.2f} × {counted(first['objects'], 'object')}, with decoding and "
        f"writing {frame:.2f} × ({_setting(first)})"
        for first, more, model, frame in object_costs(rows)
    ]
    for row in rows:
        if (gpu := row.get("gpu")) is not None:
            energy = gpu["energy_per_frame_j"]
            said.append(
                f"{_setting(row)}: {gpu['name']}, {_or_unknown(gpu['power_w'], 'W')}, "
                f"{_or_unknown(gpu['sm_clock_mhz'], 'MHz')}, {_or_unknown(energy, 'J a frame')}"
            )
    said += [
        f"{_setting(row)}: {row['energy_per_frame_j']:.3g} J a frame in the processor's packages, other work included"
        for row in rows
        if row.get("energy_per_frame_j") is not None
    ]
    said += [
        f"{_setting(row)}: {100 * memory['survivors']:.1f} % of the products that heads of {memory['head']} channels "
        "bounded were computed in full"
        for row in rows
        if (memory := row.get("memory", {})).get("head", 0) > 0 and memory["survivors"] < 1
    ]
    disturbed = [row for row in rows if row["disturbed"]]
    if disturbed:
        worst = max(row["foreign_cores"] for row in disturbed)
        said.append(
            f"no quiet turn for {len(disturbed)} of {len(rows)} settings (red): other processes took up to {worst:.2f} "
            "cores; measure again on a quiet machine"
        )
    return said


def object_costs(rows: Sequence[Row]) -> list[tuple[Row, Row, float, float]]:
    """Pairs of quiet rows that differ in objects alone, the one with fewest objects first.

    Returns:
        Both rows; how many times as long the second one's model takes (all stages but decode and write); and its
        whole frame. Medians.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["disturbed"]:
            continue
        groups.setdefault(tuple(row[name] for name in _KEY), []).append(row)
    pairs = []
    for group in groups.values():
        first, *others = sorted(group, key=lambda row: int(row["objects"]))
        for other in others:
            frame = other["stages_ms"]["frame"]["p50"] / first["stages_ms"]["frame"]["p50"]
            pairs.append((first, other, _model_ms(other) / _model_ms(first), frame))
    return pairs


def _model_ms(row: Row) -> float:
    return sum(float(times["p50"]) for stage, times in row["stages_ms"].items() if stage not in _NOT_MODEL)


def read_rows(path: Path) -> tuple[Row, list[Row]]:
    """Header and rows of a file that `write_rows` wrote."""
    header, *rows = (json.loads(line) for line in read_text(path).splitlines())
    return header, rows


def _setting(row: Row) -> str:
    return f"{row['size']}p, context {row['context']}, {row['engine']} {row['precision']}, {row['isa']}"


def _or_unknown(value: float | None, unit: str) -> str:
    return f"{unit}: not told" if value is None else f"{value:.4g} {unit}"
