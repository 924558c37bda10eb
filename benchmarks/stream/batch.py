"""Throughput of `vos-run batch`: one and two processes of one thread each, and one of two threads, in turns.

    python -m benchmarks.stream.batch          # copies of the demo clip, three rounds, minutes
    python -m benchmarks.stream.batch --toy    # a tiny problem, nothing written

`fps` is by the wall clock, start of the processes included. `cpu_ms` is processor time for a frame. On a machine where
other programs run, the clock measures those too; then `ideal_fps`, cores in use over `cpu_ms`, says what free cores
would give at most.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import Watch, parser_of, write
from vosrt.cli.demo import CLIP, POLYGON
from vosrt.cli.run import main as vos_run

WAYS = {"1 process, 1 thread": (1, 1), "2 processes, 1 thread each": (2, 1), "1 process, 2 threads": (1, 2)}


def turn(clips: Path, out: Path, workers: int, threads: int, frames: int, model: list[str]) -> dict[str, float]:
    """Run the batch once.

    Raises:
        SystemExit: it failed.
    """
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    how = ["--jobs", str(workers), "--threads", str(threads), "--quiet", *model]
    with Watch() as watch:
        if code := vos_run(["batch", str(clips), "-o", str(out), *how]):
            raise SystemExit(code)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(out)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "fps": frames / took,
        "cpu_ms": 1e3 * cpu_s / frames,
        "ideal_fps": workers * threads * frames / cpu_s,
        "foreign_cores": watch.foreign_cores,
    }


def main() -> None:
    """Parse options, measure, write results/batch.jsonl."""
    parser = parser_of(__doc__)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--frames", type=int, default=60, help="of each clip, at most 60")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bundle", default="default", help="as for vos-run")
    options = parser.parse_args()
    count, frames, rounds = (2, 2, 1) if options.toy else (options.clips, options.frames, options.rounds)
    turns: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        clips = Path(folder) / "clips.csv"
        lines = [f"{CLIP},clip{index},{POLYGON},{frames}" for index in range(count)]
        clips.write_text("\n".join(["source,name,polygon,end", *lines]) + "\n")
        model = ["--bundle", options.bundle, *(["--engine", "fake", "--size", "64"] if options.toy else [])]
        for _ in range(rounds):
            for way, (workers, threads) in WAYS.items():
                turns[way].append(turn(clips, Path(folder) / "out", workers, threads, count * frames, model))
    rows: list[dict[str, Any]] = []
    for way, results in turns.items():
        middle = {name: round(statistics.median(each[name] for each in results), 3) for name in results[0]}
        rows.append({"what": way, "clips": count, "frames": frames, "bundle": options.bundle, **middle})
    write("batch", rows, toy=options.toy, show=True)


if __name__ == "__main__":
    main()
