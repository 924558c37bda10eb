"""Measuring a grid of cases: one process each, turn by turn, quiet turns only where the machine has any."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vosrt.bench.cases import AUTO, Case
from vosrt.bench.worker import Turn, Worker, WorkerFailedError
from vosrt.types import STEP_STAGES

# Stages in the order of a frame; others that a model reports come before "write".
STAGES = ("decode", *STEP_STAGES, "write")
_PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a measurement.

    Attributes:
        source: for a working size (short side in pixels), the video to measure on.
        bundle: as for ``Model.load``.
        threads: of the engine and the core; at least 1.
        rounds: turns of each case that count.
        frames: timed frames in each turn, at least.
        seconds: length of each turn, at least.
        warm_up: frames before, besides those that fill the memory.
        quiet_cores: a turn counts as quiet if other processes kept at most this many cores busy.
    """

    source: Callable[[int], str]
    bundle: str = "default"
    threads: int = 1
    rounds: int = 3
    frames: int = 10
    seconds: float = 1.0
    warm_up: int = 5
    quiet_cores: float = 0.15


@dataclass
class Turns:
    """The turns of one worker, sorted into quiet and disturbed ones.

    Attributes:
        quiet: turns that count.
        disturbed: turns during which others took more.
    """

    quiet_cores: float
    quiet: list[Turn] = field(default_factory=list)
    disturbed: list[Turn] = field(default_factory=list)

    def add(self, turn: Turn) -> None:
        """Sort one in."""
        (self.quiet if turn.foreign_cores <= self.quiet_cores else self.disturbed).append(turn)

    def foreign_cores(self, turns: Iterable[Turn]) -> float:
        """The largest share that others took during these turns; -1 where unknown."""
        return max((turn.foreign_cores for turn in turns), default=-1.0)


def take_turns(
    turns_of: Sequence[Callable[[], Turn]], *, rounds: int, quiet_cores: float, deadline_s: float = math.inf
) -> list[Turns]:
    """Let workers take turns until each has its quiet rounds, at most twice as many rounds as were asked for.

    Args:
        turns_of: for every worker, what takes a turn; ready and warm.
        rounds: quiet turns that each is to have.
        deadline_s: on the monotonic clock; after it, disturbed turns are not repeated any more.

    Raises:
        WorkerFailedError: one of them failed.
    """
    all_turns = [Turns(quiet_cores) for _ in turns_of]
    for attempt in range(2 * rounds):
        for take, turns in zip(turns_of, all_turns, strict=True):
            if len(turns.quiet) < rounds and (attempt < rounds or time.monotonic() < deadline_s):
                turns.add(take())
    return all_turns


def measure_group(
    cases: Sequence[Case], settings: Settings, report: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[WorkerFailedError]]:
    """Measure cases that take turns.

    Args:
        report: called with the present stage, a few words.

    Returns:
        A row per case that could run, and the errors of those that could not.
    """
    failures: list[WorkerFailedError] = []
    with ExitStack() as stack:
        running: list[tuple[Case, Worker]] = []
        for case in cases:
            report(f"loading {case}")
            try:
                worker = stack.enter_context(_start(case, settings))
                worker.turn(worker.description["context"] + settings.warm_up)
                running.append((case, worker))
            except WorkerFailedError as error:
                failures.append(WorkerFailedError(f"left out: {case}: {error}", error.kind))
        report(f"measuring {cases[0]}")
        all_turns = take_turns(
            [partial(worker.turn, settings.frames, settings.seconds) for _, worker in running],
            rounds=settings.rounds,
            quiet_cores=settings.quiet_cores,
        )
        rows = [
            _row(case, worker.description, turns, settings)
            for (case, worker), turns in zip(running, all_turns, strict=True)
        ]
    return rows, failures


def measure_rates(threads: int, quiet_cores: float, *, toy: bool = False) -> dict[str, Any]:
    """Measure the machine's rates in a fresh process, and repeat a disturbed measurement.

    Returns:
        What `vosrt.bench.roofline.measure_rates` does, with ``threads``, ``foreign_cores`` and ``disturbed``.

    Raises:
        WorkerFailedError: it failed.
    """
    command = [sys.executable, "-m", "vosrt.bench.rates", str(threads), *(["--toy"] if toy else [])]
    with Worker(command, threads=threads) as worker:
        (turns,) = take_turns([partial(worker.turn, 1)], rounds=1, quiet_cores=quiet_cores)
    turn = (turns.quiet or turns.disturbed)[-1]
    return {**turn.more, "threads": threads, "foreign_cores": turn.foreign_cores, "disturbed": not turns.quiet}


def summarise(frames: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Percentiles by stage, in the order of a frame: ``{"encoder": {"p50": …, "p95": …, "p99": …}, …}``."""
    seen = list(dict.fromkeys(name for frame in frames for name in frame))
    others = [name for name in seen if name not in STAGES]
    ordered = [name for name in STAGES[:-1] if name in seen] + [name for name in others if name != "frame"]
    ordered += [name for name in (STAGES[-1], "frame") if name in seen]
    return {
        name: {
            f"p{percent}": round(float(value), 3)
            for percent, value in zip(
                _PERCENTILES, np.percentile([frame.get(name, 0.0) for frame in frames], _PERCENTILES), strict=True
            )
        }
        for name in ordered
    }


def _start(case: Case, settings: Settings) -> Worker:
    given = {
        "case": asdict(case),
        "source": str(Path(settings.source(case.size)).absolute()),
        "bundle": settings.bundle,
        "threads": settings.threads,
    }
    isa = {} if case.isa == AUTO else {"VOSRT_ISA": case.isa}
    command = [sys.executable, "-m", "vosrt.bench.session", json.dumps(given)]
    return Worker(command, threads=settings.threads, environment=isa)


def _row(case: Case, what: dict[str, Any], turns: Turns, settings: Settings) -> dict[str, Any]:
    counted = turns.quiet or turns.disturbed
    frames = [frame for turn in counted for frame in turn.frames]
    stages = summarise(frames)
    row: dict[str, Any] = {
        "size": case.size,
        "objects": case.objects,
        "asked_precision": case.precision,
        "asked_bundle": settings.bundle,
        **what,
        "threads": settings.threads,
        "frames": len(frames),
        "warm_up": what["context"] + settings.warm_up,
        "stages_ms": stages,
        "fps": round(1e3 / stages["frame"]["p50"], 2),
        "peak_memory_mb": counted[-1].peak_memory_mb,
        "foreign_cores": turns.foreign_cores(counted),
        "disturbed": not turns.quiet,
        "turns_discarded": len(turns.disturbed) if turns.quiet else 0,
    }
    if memory := counted[-1].more.get("memory"):
        row["memory"] = memory
    if (gpu := counted[-1].more.get("gpu")) is not None:
        spent = [turn.more["gpu"]["energy_j"] for turn in counted]
        total = None if None in spent else sum(spent)
        row["gpu"] = {**gpu, "energy_j": None, "energy_per_frame_j": None if total is None else total / len(frames)}
    packages = [turn.more["packages_j"] for turn in counted if "packages_j" in turn.more]
    row["energy_per_frame_j"] = round(math.fsum(packages) / len(frames), 4) if packages else None
    return row
