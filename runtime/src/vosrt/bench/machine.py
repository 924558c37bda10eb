"""Description of the machine, and the share of it that other processes take during a measurement."""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_INTERESTING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def describe() -> dict[str, Any]:
    """Processor, cores, memory and the instruction sets of the kernels."""
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
        "cores": usable_cores(),
        "memory_gib": round(memory_gib, 1) if memory_gib else None,
        "instruction_sets": [flag for flag in _INTERESTING_FLAGS if flag in flags],
        "python": platform.python_version(),
    }


def usable_cores() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class Watch:
    """Counts the processor time that others used between entry and exit.

    Linux counts it in steps of 10 ms, so watch a second or more where the figure matters.

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
    """Resident memory of this process, MiB; NaN where the system does not tell."""
    kilobytes = _status("VmRSS")
    return float("nan") if kilobytes is None else kilobytes / 1024


def peak_memory_mb() -> float | None:
    """Return the largest resident memory of this process so far, in MB (10⁶ bytes), None where unknown."""
    if (kilobytes := _status("VmHWM")) is not None:
        return round(kilobytes * 1024 / 1e6, 1)
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def _status(name: str) -> int | None:
    """A value of ``/proc/self/status``, in units of 1024 bytes."""
    try:
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    except OSError:
        pass
    return None
