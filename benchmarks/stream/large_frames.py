"""The cost of large frames: vos-run without options on one scene at 480p, 1080p and 4K; decoding is timed alone.

    python -m benchmarks.stream.large_frames        # about five minutes
    python -m benchmarks.stream.large_frames --engine cpu --bundle fast --turns 5
    python -m benchmarks.stream.large_frames --toy  # small frames, the fake engine, nothing written

Large frames are worked on at 480, so a run should take what it takes at 480p, and what it takes to decode larger frames
more: ``speed`` is the speed in percent of that, and ``work`` the same of processor time, which other programs disturb
less. ``pace`` is its speed in percent of what its slowest stage reaches alone. Each turn runs the sizes one after the
other; medians of the turns are written to results/large_frames.jsonl.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.machine import parser_of, write
from vosrt.bench.clip import mark_objects, size_of, write_clip
from vosrt.pipeline import STAGES
from vosrt.video.source import open_source

RUN = [sys.executable, "-c", "import sys; from vosrt.cli.run import main; sys.exit(main())"]
SIZES = (480, 1080, 2160)
OBJECTS = 2


@dataclass(frozen=True)
class Times:
    """Milliseconds a frame: of a run by clock and processor without start-up, its slowest stage, decoding alone."""

    frame: float
    slowest: float
    work: float
    decode: float
    decode_work: float


def run(folder: Path, size: int, options: list[str], frames: int) -> tuple[float, float, float]:
    """Milliseconds that a frame takes by wall clock and in the slowest stage; processor milliseconds of the run."""
    with tempfile.TemporaryDirectory() as out:
        clip, mask = str(folder / f"{size}.mp4"), str(folder / f"{size}.png")
        command = [*RUN, clip, "--mask", mask, "-o", f"{out}/run", "--json", "--end", str(frames), *options]
        before = _work_of_children()
        summary = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    slowest = max(summary["stages_ms"][stage]["p50"] for stage in STAGES)
    return 1e3 / (summary["fps"] or 1), slowest, _work_of_children() - before


def measure(folder: Path, size: int, options: list[str], frames: int) -> Times:
    """Times of one turn."""
    frame, slowest, work = run(folder, size, options, frames)
    *_, start_up = run(folder, size, options, 1)
    source = open_source(str(folder / f"{size}.mp4"))
    began, began_work = time.perf_counter(), time.process_time()
    count = sum(1 for _ in source)
    decode, decode_work = time.perf_counter() - began, time.process_time() - began_work
    return Times(frame, slowest, (work - start_up) / (frames - 1), 1e3 * decode / count, 1e3 * decode_work / count)


def _work_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e3 * (used.ru_utime + used.ru_stime)


def row_of(size: int, small: list[Times], large: list[Times]) -> dict[str, Any]:
    """Row of one size; shares are taken within a turn, because the machine's pace changes between turns."""
    pairs = list(zip(small, large, strict=True))
    median = statistics.median
    return {
        "size": size,
        "frame_ms": round(median(each.frame for each in large), 1),
        "work_ms": round(median(each.work for each in large), 1),
        "decode_ms": round(median(each.decode for each in large), 1),
        "speed": round(100 * median((a.frame + b.decode) / b.frame for a, b in pairs), 1),
        "pace": round(100 * median(each.slowest / each.frame for each in large), 1),
        "work": round(100 * median((a.work + b.decode_work) / b.work for a, b in pairs), 1),
    }


def main() -> None:
    """Parse options, render, run, write results/large_frames.jsonl."""
    parser = parser_of(__doc__)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--bundle", default="default")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--frames", type=int, default=24, help="of each run, at most 48")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    given = parser.parse_args()
    sizes, turns = ((64, 96), 1) if given.toy else (SIZES, given.turns)
    options = ["--bundle", given.bundle, "--engine", "fake" if given.toy else given.engine]
    times: dict[int, list[Times]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for size in sizes:
            write_clip(folder / f"{size}.mp4", size)
            Image.fromarray(mark_objects(*size_of(size), OBJECTS)).save(folder / f"{size}.png")
        for _ in range(turns):
            for size in sizes:
                times[size].append(measure(folder, size, options, given.frames))
                print(f"{size}p: {times[size][-1]}", flush=True)
    rows = [row_of(size, times[sizes[0]], times[size]) for size in sizes]
    for row in rows:
        print(json.dumps(row))
    if not (given.toy or given.dry):
        about = {"bundle": given.bundle, "objects": OBJECTS, "frames": given.frames, "cores": os.cpu_count()}
        write("large_frames", rows, **about)


if __name__ == "__main__":
    main()
