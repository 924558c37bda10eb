"""Whole frames at 480p: milliseconds per stage, frames per second, resident memory.

    python -m benchmarks.stream.frames                # paper settings and the packaged bundles, every engine
    python -m benchmarks.stream.frames --memory 2000  # resident memory at frame 100 and at frame 2000 instead
    python -m benchmarks.stream.frames --toy          # seconds, for tests

"Paper settings" is the full network (res4, 512 channels), untrained, exported on the spot: speed does not depend on
weights. Frames come from the clip that `vos-run demo` uses, brought to 854 x 480. Stages run one after the other,
which separates their times; `vos-run` overlaps them. The engines take turns, round by round, in one process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.machine import Watch, parser_of, resident_mib, write
from benchmarks.untrained import PAPER_SETTINGS, export_paper
from vosrt import Model, Stream, VosrtError
from vosrt.bundle import packaged_bundles
from vosrt.cli.demo import CLIP
from vosrt.core.native import resize_bgr
from vosrt.types import U8Array
from vosrt.video.source import open_source

STAGES = ("resize", "encoder", "match", "upsample")
HEIGHT, WIDTH = 480, 854
# Each with the core's precision following the engine's, but for "cpu", whose fp32 encoder goes with bf16 matching.
ENGINES = (
    ("openvino", "int8"),
    ("openvino", "bf16"),
    ("openvino", "fp32"),
    ("cpu", "auto"),
)


def load_frames(count: int, height: int, width: int) -> list[U8Array]:
    """Read the first frames of the demo clip, resized, u8 [H, W, 3] BGR."""
    source = open_source(str(CLIP))
    try:
        return [resize_bgr(frame.image, height, width) for frame in itertools.islice(source, count)]
    finally:
        source.close()


def forth_and_back(frames: list[U8Array]) -> Iterator[U8Array]:
    """An endless video without jumps."""
    return itertools.cycle([*frames, *frames[-2:0:-1]])


def square(height: int, width: int) -> U8Array:
    """One object in the middle of the frame."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : 3 * height // 4, width // 3 : 2 * width // 3] = 1
    return mask


class Run:
    """One model on one endless video."""

    def __init__(self, label: str, model: Model, frames: list[U8Array]) -> None:
        self.label, self.model = label, model
        self.video = forth_and_back(frames)
        self.stream: Stream = model.stream()
        first = next(self.video)
        self.stream.start(first, square(*first.shape[:2]))
        self.times: dict[str, list[float]] = {stage: [] for stage in (*STAGES, "frame")}
        self.foreign: list[float] = []

    def step(self, *, timed: bool) -> None:
        """Track one frame."""
        frame = next(self.video)
        with Watch() as watch:
            began = time.perf_counter()
            result = self.stream.step(frame)
            took = time.perf_counter() - began
        if timed:
            self.times["frame"].append(1e3 * took)
            self.foreign.append(watch.foreign_cores)
            for stage in STAGES:
                self.times[stage].append(result.timings_ms[stage])

    def row(self) -> dict[str, object]:
        """Return the row of results."""
        description = self.model.describe()
        row: dict[str, object] = {
            "model": self.label,
            "engine": description["engines"]["encoder"]["name"],
            "precision": description["engines"]["encoder"]["precision"],
            "core": description["core"],
            "frames": len(self.times["frame"]),
            "fps": round(1e3 / float(np.median(self.times["frame"])), 2),
            "foreign_cores": round(float(np.mean(self.foreign)), 3),
        }
        for stage, times in self.times.items():
            row[f"{stage}_p50_ms"], row[f"{stage}_p95_ms"] = (
                round(float(v), 2) for v in np.percentile(times, (50, 95))
            )
        return row


def memory_rows(bundle: str, label: str, frames: list[U8Array], count: int) -> list[dict[str, object]]:
    """Resident memory along one long stream, in this process (start it fresh)."""
    run = Run(label, Model.load(bundle), frames)
    rows: list[dict[str, object]] = []
    for t in range(1, count + 1):
        run.step(timed=False)
        if t in (100, count):
            rows.append({"model": label, "memory_at_frame": t, "resident_mib": round(resident_mib(), 1)})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def long_run(label: str, bundle: str, count: int) -> list[dict[str, object]]:
    """Resident memory of a fresh process."""
    command = [sys.executable, "-m", "benchmarks.stream.frames", "--memory", str(count), "--memory-of", bundle]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [{**json.loads(line), "model": label} for line in output.splitlines()]


def speed_rows(bundles: dict[str, str], frames: list[U8Array], warm_up: int, timed: int) -> list[dict[str, object]]:
    """Milliseconds per stage of every bundle on every engine."""
    runs: list[Run] = []
    for (label, bundle), (engine, precision) in itertools.product(bundles.items(), ENGINES):
        try:
            runs.append(Run(label, Model.load(bundle, engine=engine, precision=precision), frames))
        except VosrtError as error:
            print(f"left out: {label}, {engine} {precision}: {error}", flush=True)
    for t in range(warm_up + timed):
        for run in runs:
            run.step(timed=t >= warm_up)
    rows = [run.row() for run in runs]
    for row in rows:
        print(row, flush=True)
    return rows


def main() -> None:
    """Parse options, measure, write results/stream.jsonl or results/memory.jsonl."""
    parser = parser_of(__doc__)
    parser.add_argument("--frames", type=int, default=60, help="timed frames per engine, after 25 to fill the memory")
    parser.add_argument("--memory", type=int, default=0, metavar="N", help="instead, memory along N frames")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    height, width = (96, 160) if options.toy else (HEIGHT, WIDTH)
    frames = load_frames(5 if options.toy else 48, height, width)
    if options.memory_of:
        memory_rows(options.memory_of, Path(options.memory_of).name, frames, options.memory)
        return
    with tempfile.TemporaryDirectory() as folder:
        bundles = {f"{name} bundle": name for name in packaged_bundles()}
        if not options.toy:
            bundles[PAPER_SETTINGS] = str(export_paper(Path(folder)))
        if options.memory:
            write("memory", [row for item in bundles.items() for row in long_run(*item, options.memory)])
            return
        warm_up, timed = (2, 3) if options.toy else (25, options.frames)
        rows = speed_rows(bundles, frames, warm_up, timed)
    write("stream", rows, toy=options.toy)


if __name__ == "__main__":
    main()
