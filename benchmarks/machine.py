"""What a figure was measured on, and how much of the machine other processes took meanwhile."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_INTERESTING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def describe() -> dict[str, Any]:
    """Processor, cores, memory and the instruction sets that matter here."""
    model, flags = platform.processor(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            elif name.strip() == "flags":
                flags = set(value.split())
    except OSError:
        pass
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory_gib, 1) if memory_gib else None,
        "instruction_sets": [flag for flag in _INTERESTING_FLAGS if flag in flags],
        "python": platform.python_version(),
    }


@dataclass
class Watch:
    """Counts the processor time that others used between entry and exit.

    Attributes:
        foreign_cores: mean number of cores that other processes kept busy; -1 where the system does not tell.
    """

    foreign_cores: float = -1.0
    _began: tuple[float, float, float] = field(default=(0.0, 0.0, 0.0), repr=False)

    def __enter__(self) -> Watch:
        """Start counting."""
        self._began = _times()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop counting."""
        wall, all_busy, own = (now - then for now, then in zip(_times(), self._began, strict=True))
        if all_busy > 0:
            self.foreign_cores = round(max(0.0, all_busy - own) / wall, 3)


def _times() -> tuple[float, float, float]:
    """Wall clock; busy seconds of all processors, stolen ones included; those of this process and its children."""
    try:
        fields = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        user, nice, system, _, _, irq, softirq, steal = fields[:8]
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        busy = 0.0
    return time.perf_counter(), busy, sum(os.times()[:4])


def resident_mib() -> float:
    """Resident memory of this process, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def write(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write JSON lines to results/NAME.jsonl, the machine first."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    lines = [json.dumps(row) for row in [{"machine": describe()}, *rows]]
    path.write_text("\n".join(lines) + "\n")
    return path
