r"""vosrt beside other methods: time a frame and peak memory, one clip, one machine, the same threads, one run.

    python -m benchmarks.peers        # 480p, one and five objects; about twelve minutes on two quiet cores
    python -m benchmarks.peers --toy  # seconds, for tests: what needs no further package, tiny

Dense label propagation is `benchmarks/kernels/dense.py`, which tests/parity compares with vosrt. The others come from
PyPI and are no dependencies of vosrt. Their own dependencies would replace PyTorch by a build for GPUs, hence:

    pip install --no-deps rf-cutie sam2 einops omegaconf antlr4-python3-runtime==4.9.3 pyyaml \
        hydra-core iopath portalocker tqdm

To keep an environment clean, install them into another one and name it: `--python OTHER/bin/python`. It must find
vosrt, PyTorch and NumPy as well (benchmarks/README.md). The results name what is not installed.

Each method has a process of its own. They take turns, and a turn during which other processes took more than 0.15 cores
is repeated, not counted.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import parser_of, write
from benchmarks.untrained import PAPER_SETTINGS, export_paper
from vosrt.bench.machine import usable_cores
from vosrt.bench.runner import Turns, take_turns
from vosrt.bench.worker import Turn, Worker, WorkerFailedError
from vosrt.bundle import packaged_bundles

SIZE, OBJECTS, ROUNDS, QUIET_CORES = 480, (1, 5), 2, 0.15
CUTIE = "pip install --no-deps rf-cutie einops omegaconf antlr4-python3-runtime==4.9.3 pyyaml"
SAM = "pip install --no-deps sam2 hydra-core omegaconf antlr4-python3-runtime==4.9.3 pyyaml iopath portalocker tqdm"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A method and how long it is measured.

    Attributes:
        method: of `peer.py`.
        warm_up: untimed frames, until its memory is full.
        frames: timed frames a turn.
        install: what brings it, where it is neither PyTorch nor vosrt.
        package: on PyPI, for its version.
        more: for `peer.py`.
    """

    title: str
    method: str
    warm_up: int
    frames: int
    install: str = ""
    package: str = ""
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What all methods have in common.

    Attributes:
        size: short side of the frames in pixels.
        python: the interpreter that has the packages of others.
        quiet_cores: a turn counts if other processes kept at most this many cores busy.
        deadline_s: on the monotonic clock; after it, disturbed turns are not repeated.
    """

    size: int
    threads: int
    python: str
    quiet_cores: float
    deadline_s: float


def vosrt_with(title: str, bundle: str, *, engine: str = "auto", precision: str = "auto") -> Peer:
    """The runtime with one bundle."""
    more = {"bundle": bundle, "engine": engine, "precision": precision}
    return Peer(title=f"vosrt, {title}", method="vosrt", warm_up=23, frames=8, more=more)


def all_peers(paper: Path) -> list[Peer]:
    """Every method; `paper` is a bundle of the network that dense PyTorch runs."""
    cutie = (
        ("Cutie-small", "cutie-small"),
        ("Cutie-small, bf16 autocast", "cutie-small-bf16"),
        ("Cutie-base", "cutie-base"),
    )
    return [
        *(vosrt_with(f"{name} bundle", name) for name in packaged_bundles()),
        vosrt_with(PAPER_SETTINGS, str(paper)),
        vosrt_with(f"{PAPER_SETTINGS}, bf16", str(paper), precision="bf16"),
        vosrt_with(f"{PAPER_SETTINGS}, fp32", str(paper), precision="fp32"),
        Peer(title="dense PyTorch", method="dense", warm_up=1, frames=1),
        # The first frame compiles; the second one shows whether it has to compile again.
        Peer(title="dense PyTorch, torch.compile", method="dense-compiled", warm_up=2, frames=1),
        # Cutie remembers every fifth frame, which costs more: turns are whole rounds of its memory.
        *(
            Peer(title=title, method=method, warm_up=25, frames=5, install=CUTIE, package="rf-cutie")
            for title, method in cutie
        ),
        Peer(title="SAM 2.1-tiny", method="sam2.1-tiny", warm_up=7, frames=1, install=SAM, package="sam2"),
    ]


def toy_peers() -> list[Peer]:
    """Return the methods that need no further package and compile nothing."""
    return [
        vosrt_with("default bundle", "default", engine="cpu"),
        Peer(title="dense PyTorch", method="dense", warm_up=1, frames=2),
    ]


def measure(peers: list[Peer], objects: int, run: Run) -> list[dict[str, Any]]:
    """Rows of all methods with this many objects, measured in turns."""
    rows = {peer.title: {"title": peer.title, "method": peer.method, "objects": objects} for peer in peers}
    with ExitStack() as stack:
        running: list[tuple[Peer, Worker]] = []
        for peer in peers:
            given = {"method": peer.method, "objects": objects, "size": run.size, "threads": run.threads, **peer.more}
            command = [run.python if peer.install else sys.executable, "-m", "benchmarks.peers.peer", json.dumps(given)]
            began = time.monotonic()
            try:
                worker = stack.enter_context(Worker(command, threads=run.threads))
                worker.turn(peer.warm_up)
                running.append((peer, worker))
            except WorkerFailedError as error:
                missing = peer.install and error.kind in ("ImportError", "ModuleNotFoundError")
                rows[peer.title] |= {"not_installed": peer.install} if missing else {"failed": str(error)}
                print(f"{peer.title}: {f'{error}; not installed: {peer.install}' if missing else error}", flush=True)
                continue
            print(f"{peer.title}, objects: {objects}, warm after {time.monotonic() - began:.0f} s", flush=True)
        all_turns = take_turns(
            [partial(take_turn, worker, peer, rows[peer.title]) for peer, worker in running],
            rounds=ROUNDS,
            quiet_cores=run.quiet_cores,
            deadline_s=run.deadline_s,
        )
        for (peer, worker), turns in zip(running, all_turns, strict=True):
            if "failed" in rows[peer.title]:
                continue
            version = {"version": version_of(peer.package, run.python)} if peer.package else {}
            rows[peer.title] |= {**worker.description, **version, **figures(turns)}
            print(json.dumps(rows[peer.title]), flush=True)
    return list(rows.values())


def take_turn(worker: Worker, peer: Peer, row: dict[str, Any]) -> Turn:
    """A turn; of a method that broke down, one that never counts, so that the others go on."""
    if "failed" not in row:
        try:
            return worker.turn(peer.frames)
        except WorkerFailedError as error:
            row["failed"] = str(error)
            print(f"{peer.title}: {error}", flush=True)
    return Turn([], math.inf, None, {})


def figures(turns: Turns) -> dict[str, Any]:
    """Median and 95th percentile of the quiet turns' frames; without quiet turns, how loud it was."""
    loudest = turns.foreign_cores([*turns.quiet, *turns.disturbed])
    if not turns.quiet:
        return {"too_loud": f"other processes took up to {loudest:.2f} cores in every turn"}
    times = [frame["frame"] for turn in turns.quiet for frame in turn.frames]
    p50, p95 = (round(float(value), 1) for value in np.percentile(times, (50, 95)))
    return {
        "frames": len(times),
        "frame_p50_ms": p50,
        "frame_p95_ms": p95,
        "peak_memory_mb": turns.quiet[-1].peak_memory_mb,
        "foreign_cores": turns.foreign_cores(turns.quiet),
        "turns_discarded": len(turns.disturbed),
    }


def version_of(package: str, python: str) -> str:
    """Version of a distribution in another interpreter."""
    code = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Parse options, measure, write results/peers.jsonl."""
    parser = parser_of(__doc__)
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the packages of others")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of every method")
    parser.add_argument("--minutes", type=float, default=12, help="after that, disturbed turns are not repeated")
    parser.add_argument("--only", default="", metavar="WORD", help="methods with this word in their title")
    parser.add_argument("--size", type=int, default=SIZE, help="short side in pixels; only 480 is written to results")
    options = parser.parse_args()
    run = Run(
        size=64 if options.toy else options.size,
        threads=1 if options.toy else options.threads,
        python=options.python,
        quiet_cores=float("inf") if options.toy else QUIET_CORES,
        deadline_s=time.monotonic() + 60 * options.minutes,
    )
    with tempfile.TemporaryDirectory() as folder:
        peers = toy_peers() if options.toy else all_peers(export_paper(Path(folder)))
        chosen = [peer for peer in peers if options.only.lower() in peer.title.lower()]
        rows = [row for objects in OBJECTS for row in measure(chosen, objects, run)]
    if options.toy and (broken := [row for row in rows if "frames" not in row]):
        raise SystemExit(f"not measured: {broken}")
    if not options.toy and options.size == SIZE and not options.only:
        write("peers", rows, threads=run.threads, size=SIZE)


if __name__ == "__main__":
    main()
