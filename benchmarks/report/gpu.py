"""Tables of what `benchmarks.kernels.gpu` measured."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.report.tables import Row, table


def tables(path: Path) -> str:
    """Markdown of a file of results; one line where there is none."""
    if not path.exists():
        return "(not measured)"
    header, *rows = (json.loads(line) for line in path.read_text().splitlines())
    gpu = header.get("gpu") or {}
    driver = f", driver {gpu['driver_version']}" if gpu else ""
    title = f"{gpu.get('name', 'Emulated kernels')}{driver}, Python {header['python']}."
    parts = [_frames(rows), _kernels(rows), _streams(rows), _checks(rows), _missing(rows)]
    return "\n\n".join([title, *filter(None, parts)])


def _frames(rows: list[Row]) -> str:
    found = [row for row in rows if row["what"] == "frames"]
    body: list[list[object]] = [
        [
            row.get("peer") or f"{row['bundle']}, {row['engine']}, {row['way']}, R = {row['refine']}",
            row["size"],
            row["objects"],
            f"**{row['fps']}**",
            row.get("joules", "–"),
        ]
        for row in sorted(found, key=lambda row: (row["size"], row["objects"], -row["fps"]))
    ]
    return table(["whole frames", "size", "objects", "FPS", "J a frame"], body) if body else ""


def _kernels(rows: list[Row]) -> str:
    body: list[list[object]] = []
    for row in rows:
        if "ms" in row and "grid" in row:
            floor = row.get("floors_at_published_peaks", {}).get("H200", {})
            body.append(
                [row["what"], row["grid"], row["channels"], row["objects"], row["ms"], floor.get("useful_ms", ""),
                 floor.get("memory_ms", "")]
            )  # fmt: skip
    head = ["kernels", "grid", "K", "objects", "ms", "floor of products, H200", "floor of bytes, H200"]
    return table(head, body) if body else ""


def _streams(rows: list[Row]) -> str:
    body: list[list[object]] = [
        [row["what"], row["fps"], row["fairness"], row["wait_p50_ms"], row["wait_p95_ms"]]
        for row in rows
        if "fairness" in row
    ]
    return table(["streams", "FPS together", "fairness", "wait p50, ms", "p95"], body) if body else ""


def _checks(rows: list[Row]) -> str:
    told = ("with", "bundle", "grid", "channels", "similarity_difference", "masks_difference", "labels_changed")
    body: list[list[object]] = [
        [row["what"], ", ".join(f"{name.replace('_', ' ')} {row[name]}" for name in told if name in row)]
        for row in rows
        if "labels_changed" in row
    ]
    body += [[f"compute-sanitizer {row['part']}", row["found"]] for row in rows if "found" in row]
    body += [["bf16 GEMM", f"{row['tflop_s']} TFLOP/s"] for row in rows if "tflop_s" in row]
    return table(["check", "found"], body) if body else ""


def _missing(rows: list[Row]) -> str:
    body: list[list[object]] = [[row["part"], row["why_not"].replace("|", "/")] for row in rows if "why_not" in row]
    return table(["not measured", "why"], body) if body else ""
