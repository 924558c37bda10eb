"""Clips of a batch on a Ray cluster: actors that do what the processes of a local batch do, with one model each."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import vosrt
from vosrt.bench.machine import usable_cores
from vosrt.cli.app import require
from vosrt.cli.batch import POLL_S, Job, Runner
from vosrt.cli.clip_worker import Outcome, begin, run_clip
from vosrt.cli.segment import Request
from vosrt.console import note
from vosrt.errors import OptionError, OutputError, WorkError

_REACH_S = 5.0
_PATIENCE_S = 30.0  # until it is said that no core is free


@contextmanager
def cluster(address: str, out: Path, workers: int, threads: int) -> Iterator[Runner]:
    """Connect to a cluster, or begin one of this machine alone.

    Args:
        address: ``local``, or what `ray.init` takes: ``auto`` or ``host:port``.
        out: folder of the batch, which all nodes share.
        workers: number of actors; 0 is as many as the cores of the cluster suffice for.
        threads: cores of each.

    Yields:
        What runs jobs there; see `run_on_ray`.

    Raises:
        MissingExtraError: Ray is not installed.
        OptionError: no cluster answers, or no node of it has enough cores.
    """
    require("ray", "Ray", "ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of ours reports nothing to Ray's makers
    import ray

    own: dict[str, Any] = {"num_cpus": usable_cores(), "include_dashboard": False} if address == "local" else {}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _check_reachable(address)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **own)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise OptionError(
            f"--ray {address}: {reason}; expected local, auto, or host:port of a running cluster"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # ray.init puts its own there, which would not finish files
    try:
        cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        if max(cores, default=0) < threads:
            raise OptionError(f"--threads is {threads}; expected at most the {max(cores, default=0)} cores of a node")
        yield partial(run_on_ray, out=out, workers=workers or sum(count // threads for count in cores), threads=threads)
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise OSError where nothing listens; `ray.init` would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "://" not in host:
        socket.create_connection((host, int(port)), timeout=_REACH_S).close()


@dataclass(frozen=True)
class _Known:
    """What the driver knows of an actor.

    Attributes:
        place: its node and the number of its process; empty until it is ready.
        clip: that it runs; empty while it begins.
    """

    actor: Any
    place: tuple[str, int] = ("", 0)
    clip: str = ""


class _Actor:
    """Process of a node that runs clips one after the other, and keeps its model."""

    def prepare(self, folder: str, out: str, version: str) -> tuple[str, int]:
        """Go to the folder that paths begin in; return the node and the number of the process.

        Raises:
            VosrtError: this node cannot work on the batch.
        """
        import ray

        place = ray.get_runtime_context().get_node_id()
        if version != vosrt.__version__:
            raise OptionError(f"node {place} has vosrt {vosrt.__version__}; expected {version}: install it there")
        for path in (folder, out):
            if not os.path.isdir(path):
                raise OutputError(f"{path}: is no folder on node {place}; expected one that all nodes share")
        os.chdir(folder)
        begin(frozenset())
        return place, os.getpid()

    def run(self, request: Request) -> Outcome:
        """Run one clip."""
        return run_clip(request)


def run_on_ray(
    jobs: list[Job], stop: threading.Event, out: Path, workers: int, threads: int
) -> Iterator[tuple[str, Outcome]]:
    """Run jobs in actors; yield outcomes as they come.

    An actor gets its next job when it has done the one before, so that no job waits where a node is lost. An actor that
    is lost fails its clip and no other one; a new one begins where cores are free.

    Args:
        stop: once set, no clip begins, and those that run are interrupted.
        workers: largest number of actors.
        threads: cores of each.

    Raises:
        WorkError: no node can work on the batch.
    """
    import ray

    gpus = int(bool(jobs) and jobs[0][1].device.startswith("cuda"))
    kind = ray.remote(_Actor).options(num_cpus=threads, num_gpus=gpus, max_restarts=0, max_task_retries=0)
    begin_actor = partial(_begin_actor, kind, os.getcwd(), str(out.absolute()))
    waiting = deque(jobs)
    pending = dict(begin_actor() for _ in range(min(workers, len(jobs))))
    spare = 2 * workers  # actors that may be lost before they are ready, as on a node that is lost at the same time
    refusal, told, deadline = "", False, time.monotonic() + _PATIENCE_S
    try:
        while waiting or any(each.clip for each in pending.values()):
            if not pending:
                raise WorkError(f"no node of the cluster can work on the batch: {refusal}")
            ready, _ = ray.wait(list(pending), timeout=POLL_S)
            for reference in ready:
                known = pending.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayError as error:
                    refusal = str(getattr(error, "cause", None) or error).split("\n")[0]
                    ray.kill(known.actor)
                    refused = isinstance(error, ray.exceptions.RayTaskError)
                    if known.clip:
                        yield known.clip, Outcome(1, "its process or its node was lost; is there enough memory?")
                    elif refused or not spare:
                        continue
                    else:
                        spare -= 1
                    pending.update([begin_actor()])
                    continue
                if known.clip:
                    yield known.clip, result
                else:
                    known = replace(known, place=result)
                if waiting:
                    clip, request = waiting.popleft()
                    pending[known.actor.run.remote(request)] = replace(known, clip=clip)
                else:
                    ray.kill(known.actor)
            if stop.is_set() and not told:
                told = True
                waiting.clear()
                _interrupt([known.place for known in pending.values() if known.clip])
            if ready:
                deadline = float("inf")
            elif time.monotonic() > deadline:
                deadline = float("inf")
                note(f"no node has {threads} free cores yet; waiting for the cluster")
    finally:
        for known in pending.values():
            ray.kill(known.actor)


def _begin_actor(kind: Any, folder: str, out: str) -> tuple[Any, _Known]:
    """Begin an actor; return what comes once it is ready, and what is known of it."""
    actor = kind.remote()
    return actor.prepare.remote(folder, out, vosrt.__version__), _Known(actor)


def _interrupt(places: list[tuple[str, int]]) -> None:
    """Send Ctrl-C to processes, each from a process on its node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for node, process in places:
        on = NodeAffinitySchedulingStrategy(node, soft=False)
        ray.remote(_send).options(num_cpus=0, scheduling_strategy=on, max_retries=0).remote(process)


def _send(process: int) -> None:
    os.kill(process, signal.SIGINT)
