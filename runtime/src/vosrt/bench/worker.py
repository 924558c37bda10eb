"""One process per measured thing, so that each has its own peak memory, threads and instruction set.

The measuring process starts workers and lets them take turns; a worker that waits uses no processor time. They speak
JSON lines: the worker says once what it is (``describe``), then answers every ``{"frames": n, "seconds": s}`` with
what it measured, until its input ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from vosrt.bench.machine import Watch, peak_memory_mb
from vosrt.errors import VosrtError, WorkError
from vosrt.locking import Closing

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_STOP_S = 10.0


class Task(Protocol):
    """Measurement that a worker performs."""

    def describe(self) -> dict[str, Any]:
        """Describe the measurement in plain values."""

    def step(self) -> dict[str, float]:
        """Do one frame; milliseconds by stage, ``"frame"`` being all of it."""


@dataclass(frozen=True)
class Turn:
    """Result of one turn of a worker.

    Attributes:
        frames: per frame, milliseconds by stage.
        foreign_cores: mean number of cores that other processes kept busy meanwhile; -1 where unknown.
        peak_memory_mb: largest resident memory of the worker so far, in MB; None where unknown.
        more: what else the worker measured.
    """

    frames: list[dict[str, float]]
    foreign_cores: float
    peak_memory_mb: float | None
    more: dict[str, Any]


class WorkerFailedError(WorkError):
    """A worker could not start or go on.

    Args:
        kind: name of the exception in the worker.
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class Worker(Closing):
    """A running worker, seen from the measuring process.

    Args:
        command: starts a process that calls `serve`.
        threads: number of threads, set through the variables that numerical libraries read.

    Raises:
        WorkerFailedError: the worker could not get ready.
    """

    def __init__(self, command: Sequence[str], *, threads: int, environment: Mapping[str, str] | None = None) -> None:
        limits = {name: str(threads) for name in THREAD_VARIABLES}
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed with the worker)
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **limits, **(environment or {})},
        )
        try:
            self.description: dict[str, Any] = self._receive()
        except BaseException:
            self.close()
            raise

    def turn(self, frames: int, seconds: float = 0.0) -> Turn:
        """Let the worker do at least this many frames and at least this many seconds of work.

        Raises:
            WorkerFailedError: it failed.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended; the answer says why
            self._process.stdin.write(json.dumps({"frames": frames, "seconds": seconds}) + "\n")
            self._process.stdin.flush()
        answer = self._receive()
        return Turn(answer["frames"], answer["foreign_cores"], answer["peak_memory_mb"], answer["more"])

    def close(self) -> None:
        """End the worker."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            last = (self._log.read().strip().splitlines() or ["it said nothing"])[-1]
            raise WorkerFailedError(f"a measured process ended with code {code}: {last}", "")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerFailedError(answer["error"], answer["kind"])
        return answer


def serve(open_task: Callable[[], Task], *, around: Callable[[], Mapping[str, Any]] | None = None) -> None:
    """Be a worker: open the task, then measure turns until stdin ends. Errors are sent, not raised.

    Args:
        open_task: makes ready; not measured.
        around: called at the end of each turn; what it returns is sent along as ``more``.
    """
    # Libraries print. Their output must not come between the lines of the protocol.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(message: Mapping[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        task = open_task()
        send(task.describe())
        for line in sys.stdin:
            wanted = json.loads(line)
            frames: list[dict[str, float]] = []
            with Watch() as watch:
                began = time.perf_counter()
                while len(frames) < wanted["frames"] or time.perf_counter() - began < wanted["seconds"]:
                    frames.append(task.step())
            send(
                {
                    "frames": frames,
                    "foreign_cores": watch.foreign_cores,
                    "peak_memory_mb": peak_memory_mb(),
                    "more": dict(around()) if around else {},
                }
            )
    except (VosrtError, ImportError, MemoryError) as error:
        send({"error": " ".join(str(error).split()), "kind": type(error).__name__})
