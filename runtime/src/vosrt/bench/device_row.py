"""``vos-bench --submit-row``: one line about this machine for the table of devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vosrt._files import write_file
from vosrt._reading import read_text
from vosrt.errors import InputError

_MACHINE = ("processor", "cores", "memory_gib", "instruction_sets")
_ROW = ("bundle", "engine", "precision", "isa", "device", "threads", "size", "objects", "context", "frame")
_FIGURES = ("fps", "peak_memory_mb", "energy_per_frame_j", "disturbed")


def device_row(header: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Return the line: the machine, the setting, and percentiles of a whole frame in milliseconds.

    Args:
        header: as `vosrt.bench.output.write_rows` writes it.
    """
    gpu = header["gpu"]
    return {
        **{name: header["machine"].get(name) for name in _MACHINE},
        "gpu": None if isinstance(gpu, str) or row["device"] == "cpu" else gpu["name"],
        **{name: row.get(name) for name in _ROW},
        "frame_ms": row["stages_ms"]["frame"],
        **{name: row.get(name) for name in _FIGURES},
    }


def check_table(path: Path) -> str:
    """Return the lines that a table has already.

    Raises:
        InputError: the file is no table of devices.
    """
    text = read_text(path) if path.exists() else ""
    try:
        rows = [json.loads(line) for line in text.splitlines()]
    except ValueError:
        rows = [None]
    if not all(isinstance(row, dict) and "frame_ms" in row for row in rows):
        raise InputError(f"{path} is no table of devices: expected lines that vos-bench --submit-row wrote")
    return text


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Append a line to a table of devices, or begin one; the file is the old one or the new one at every moment.

    Raises:
        InputError: the file is no table of devices.
        WorkError: it cannot be written.
    """
    before = check_table(path)
    write_file(path, f"{before}{'' if before.endswith(chr(10)) or not before else chr(10)}{json.dumps(row)}\n".encode())
