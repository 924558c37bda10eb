"""``vos-run batch``: many clips, one process per group of cores, one report."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from vosrt._files import check_writable, locked
from vosrt._results import Results, check_results, open_results
from vosrt._signals import stoppable
from vosrt.bench.machine import usable_cores
from vosrt.cli.app import EXIT_INTERRUPTED
from vosrt.cli.batch_report import Row, print_rows, write_report
from vosrt.cli.clip_worker import Outcome, begin, run_clip
from vosrt.cli.clips import Clip, list_clips
from vosrt.cli.report import Steps
from vosrt.cli.segment import Request
from vosrt.console import complain, note
from vosrt.errors import OptionError

CLIPS = "clips"
ATTEMPTS = 2
GROUP = 2  # cores of a process
POLL_S = 0.2  # how late a signal is seen
_SIGNALLED_S = 0.5  # how much later than its workers a batch may learn of a signal to all

Job = tuple[str, Request]
Runner = Callable[[list[Job], threading.Event], Iterator[tuple[str, Outcome]]]


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """Options of the command; see ``vos-run batch --help``.

    Attributes:
        ray: address of the cluster that runs the clips; None runs them in processes of this machine.
        settings: all that results depend on, which a resumed batch must have too; JSON.
        request: makes the request of a clip of its source, folder and own options.
    """

    given: tuple[str, ...]
    out: Path
    marks: Path | None
    workers: int
    threads: int
    ray: str | None
    resume: bool
    quiet: bool
    json: bool
    settings: dict[str, Any]
    request: Callable[[dict[str, Any]], Request]


def run_batch(asked: BatchRequest) -> int:
    """Run all clips, the failed ones twice.

    Returns:
        0, 1 where a clip failed, 130 after an interruption.

    Raises:
        VosrtError: before the first clip; nothing was written.
    """
    if asked.workers < 0:
        raise OptionError(f"--jobs is {asked.workers}; expected 0 (one per {GROUP} cores) or more")
    clips = list_clips(asked.given, asked.marks)
    check_writable(asked.out)
    check_results(asked.out, resume=asked.resume)
    with (
        _runner(asked) as (run, threads),
        locked(asked.out),
        open_results(asked.out, "vos-run batch", asked.settings, resume=asked.resume) as results,
        stoppable() as stop,
    ):
        jobs = [(clip.name, _request(asked, clip, threads)) for clip in clips]
        rows = {clip.name: Row(clip.name, clip.source, f"{CLIPS}/{clip.name}") for clip in clips}
        write_report(results, list(rows.values()))
        silent = asked.quiet or asked.json
        with Steps(len(jobs), visible=not silent) as progress:
            _run_all(jobs, rows, run, results, stop, progress, silent=silent)
        return _finish(asked, results, list(rows.values()), interrupted=stop.is_set())


@contextmanager
def _runner(asked: BatchRequest) -> Iterator[tuple[Runner, int]]:
    """What runs the clips, and the threads of each."""
    if asked.ray is None:
        workers, threads = split_cores(usable_cores(), asked.workers, asked.threads)
        yield partial(run_locally, workers=workers, threads=threads), threads
        return
    from vosrt.cli.batch_on_ray import cluster

    threads = asked.threads or GROUP
    with cluster(asked.ray, asked.out, asked.workers, threads) as run:
        yield run, threads


def split_cores(cores: int, workers: int, threads: int) -> tuple[int, int]:
    """Return how many processes run, and the threads of each.

    A process of two threads has most of the speed-up that threads bring, and the next process brings all of it.

    Args:
        workers: asked for; 0 chooses.
        threads: asked for each; 0 shares out the cores.
    """
    workers = workers or max(1, cores // (threads or GROUP))
    return workers, threads or max(1, cores // workers)


def _request(asked: BatchRequest, clip: Clip, threads: int) -> Request:
    own = {"source": clip.source, "out": asked.out / CLIPS / clip.name, "threads": threads, **clip.options}
    return replace(asked.request(own), resume=True, json=True)


def _run_all(
    jobs: list[Job],
    rows: dict[str, Row],
    run: Runner,
    results: Results,
    stop: threading.Event,
    progress: Steps,
    *,
    silent: bool,
) -> None:
    waiting = dict(jobs)
    for attempt in range(1, ATTEMPTS + 1):
        for name, outcome in run(list(waiting.items()), stop):
            if outcome.code == EXIT_INTERRUPTED:
                continue
            rows[name].take(outcome, attempt)
            if outcome.picture:
                results.write(rows[name].picture_name, outcome.picture)
            if outcome.code == 0 or attempt == ATTEMPTS:
                progress.advance(name)
            if not silent:
                again = ", once more at the end" if outcome.code and attempt < ATTEMPTS else ""
                note(f"{name}: {outcome.error or rows[name].said}{again}")
            elif outcome.code and attempt == ATTEMPTS:
                complain(f"{name}: {outcome.error}")
        waiting = {name: waiting[name] for name in waiting if rows[name].state == "failed"}
        if not waiting or stop.is_set():
            return


def _finish(asked: BatchRequest, results: Results, rows: list[Row], *, interrupted: bool) -> int:
    write_report(results, rows)
    failed = sum(row.state == "failed" for row in rows)
    done = sum(row.state == "done" for row in rows)
    if done == len(rows):
        results.complete()
    print_rows(asked.out, rows, as_json=asked.json, quiet=asked.quiet)
    if interrupted and done + failed < len(rows):
        note(f"interrupted: {done} of {len(rows)} clips are done; --resume goes on")
        return EXIT_INTERRUPTED
    return 1 if failed else 0


def run_locally(jobs: list[Job], stop: threading.Event, workers: int, threads: int) -> Iterator[tuple[str, Outcome]]:
    """Run jobs in processes, each on cores of its own; yield outcomes as they come.

    A process that dies fails its clip and no other one.

    Args:
        stop: once set, no clip begins, and those that run are interrupted.
        threads: cores of each.
    """
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[str, Outcome] | None] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    count = min(workers, len(jobs))
    runners = [threading.Thread(target=_drain, args=(waiting, done, stop, _cores(i, threads))) for i in range(count)]
    for runner in runners:
        runner.start()
    told = False
    try:
        while count:
            with suppress(queue.Empty):
                finished = done.get(timeout=POLL_S)
                if finished is None:
                    count -= 1
                else:
                    yield finished
            if stop.is_set() and not told:
                told = True
                _interrupt_children()
    finally:
        stop_was_set = stop.is_set()
        if count and not stop_was_set:  # an error above, such as a full disk
            stop.set()
            _interrupt_children()
        for runner in runners:
            runner.join()


def _drain(
    waiting: queue.SimpleQueue[Job],
    done: queue.SimpleQueue[tuple[str, Outcome] | None],
    stop: threading.Event,
    cores: frozenset[int],
) -> None:
    """Run jobs in one process, or in the next one where it died."""
    pool: ProcessPoolExecutor | None = None
    try:
        while not stop.is_set():
            try:
                name, request = waiting.get_nowait()
            except queue.Empty:
                return
            pool = pool or ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin, (cores,))
            try:
                outcome = pool.submit(run_clip, request).result()
            except BrokenProcessPool:
                pool = None
                # Ctrl-C in a terminal and systemd signal all processes, this one perhaps a moment later.
                interrupted = stop.wait(_SIGNALLED_S)
                why = "its process was killed; is there enough memory? --jobs 1 needs less"
                outcome = Outcome(EXIT_INTERRUPTED) if interrupted else Outcome(1, why)
            done.put((name, outcome))
    finally:
        if pool is not None:
            pool.shutdown()
        done.put(None)


def _cores(place: int, count: int) -> frozenset[int]:
    """Cores of the process number ``place``; empty, which means all, where they do not suffice."""
    if not hasattr(os, "sched_getaffinity"):
        return frozenset()
    cores = sorted(os.sched_getaffinity(0))
    return frozenset(cores[place * count : (place + 1) * count]) if (place + 1) * count <= len(cores) else frozenset()


def _interrupt_children() -> None:
    for child in multiprocessing.active_children():
        with suppress(ProcessLookupError):
            os.kill(child.pid or 0, signal.SIGINT)
