"""The C++ path beside Python: time a frame, start-up, memory and size, as whole processes in turns.

    python -m benchmarks.stream.embed build/vos_embed  # the example on OpenVINO; runtime/native/README.md builds it
    python -m benchmarks.stream.embed build/vos_embed --toy  # small and quick, nothing written

Both read the same PNG frames and write palette PNGs, with the same bundle, engine (OpenVINO), precision and number of
threads, and both time the call that takes a frame and gives labels: files are outside. Start-up is a process that
segments one frame, from its start to its end. A turn during which other processes took more than 0.15 cores is
repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from benchmarks.machine import Watch, parser_of, write
from vosrt import Model, load_bundle
from vosrt.bench.clip import mark_objects, render, size_of
from vosrt.bench.runner import Turns, take_turns
from vosrt.bench.worker import Turn

FRAMES, ROUNDS, QUIET_CORES = 40, 3, 0.15


def segment_in_python(bundle: str, frames: Path, mask: Path, results: Path, precision: str) -> None:
    """Do in Python what `vos_embed` does; print the median step of all frames but the first, in milliseconds."""
    model = Model.load(bundle, engine="openvino", precision="bf16" if precision == "bf16" else "fp32")
    marks = np.asarray(Image.open(mask))
    palette = Image.open(mask).getpalette()
    results.mkdir()
    times: list[float] = []
    with model.stream() as stream:
        for path in sorted(frames.glob("*.png")):
            frame = np.asarray(cv2.imread(str(path)), np.uint8)
            began = time.perf_counter()
            result = stream.step(frame) if times else stream.start(frame, marks)
            times.append(1e3 * (time.perf_counter() - began))
            picture = Image.fromarray(result.labels, "P")
            picture.putpalette(palette or [])
            picture.save(results / path.name)
    print(f"median step {statistics.median(times[1:] or times):.3f} ms", file=sys.stderr)


def run(command: list[str], folder: Path, frames: Path, precision: str) -> tuple[float, float, float]:
    """Median step in milliseconds, wall time in seconds and peak memory in MB (10⁶ bytes) of one process."""
    with tempfile.TemporaryDirectory(dir=folder) as results:
        bundle = str(load_bundle("default").path)
        arguments = [bundle, str(frames), str(folder / "mask.png"), str(Path(results) / "labels"), precision]
        began = time.perf_counter()
        child = subprocess.Popen([*command, *filter(None, arguments)], stderr=subprocess.PIPE, text=True)
        said = child.stderr.read() if child.stderr else ""
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
    found = re.search(r"median step ([\d.]+) ms", said)
    if child.returncode or not found:
        raise SystemExit(f"{command[0]} failed: {said.strip()}")
    return float(found[1]), wall_s, usage.ru_maxrss * 1024 / 1e6


def turn_of(command: list[str], folder: Path, precision: str) -> Callable[[], Turn]:
    """A turn is one process that starts up and one that runs."""

    def take() -> Turn:
        with Watch() as watch:
            _, start_up_s, _ = run(command, folder, folder / "one", precision)
            step_ms, _, peak_mb = run(command, folder, folder / "all", precision)
        return Turn([{"step": step_ms, "start-up": 1e3 * start_up_s}], watch.foreign_cores, peak_mb, {})

    return take


def row_of(path: str, turns: Turns) -> dict[str, Any]:
    """Medians of the quiet turns; without any, how loud it was."""
    if not turns.quiet:
        loudest = turns.foreign_cores(turns.disturbed)
        return {"path": path, "too_loud": f"other processes took up to {loudest:.2f} cores in every turn"}
    figures = {name: statistics.median(t.frames[0][name] for t in turns.quiet) for name in ("step", "start-up")}
    return {
        "path": path,
        "turns": len(turns.quiet),
        "turns_discarded": len(turns.disturbed),
        "foreign_cores": turns.foreign_cores(turns.quiet),
        "step_p50_ms": round(figures["step"], 2),
        "start_up_ms": round(figures["start-up"]),
        "peak_memory_mb": round(max(t.peak_memory_mb or 0.0 for t in turns.quiet), 1),
    }


def bytes_of(program: Path) -> dict[str, int]:
    """Size of the program and of the library that it loads."""
    linked = re.search(
        r"=> (/.*libvosrt\S*) \(", subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    )
    sizes = {"program_bytes": program.stat().st_size}
    return sizes | ({"libvosrt_bytes": Path(linked[1]).resolve().stat().st_size} if linked else {})


def write_clip(folder: Path, short_side: int, count: int) -> None:
    """The rendered clip as PNG frames, all of them and the first alone, and a mask of one object."""
    height, width = size_of(short_side)
    for name, frames in (("all", count), ("one", 1)):
        (folder / name).mkdir()
        for t in range(frames):
            cv2.imwrite(str(folder / name / f"{t:05d}.png"), render(height, width, t))
    picture = Image.fromarray(mark_objects(height, width, 1), "P")
    picture.putpalette([0, 0, 0, 128, 0, 0])
    picture.save(folder / "mask.png")


def main() -> None:
    """Parse options, measure in turns, write results/embed.jsonl."""
    parser = parser_of(__doc__)
    parser.add_argument("program", type=Path, help="vos_embed, built on OpenVINO")
    parser.add_argument("--size", type=int, default=480, help="short side in pixels")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns that count, of each")
    parser.add_argument("--in-python", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_python:
        bundle, frames, mask, results, *precision = options.in_python
        segment_in_python(bundle, Path(frames), Path(mask), Path(results), "".join(precision))
        return
    program = options.program.resolve()
    paths = {
        "C++": [str(program)],
        "Python": [sys.executable, "-m", "benchmarks.stream.embed", str(program), "--in-python"],
    }
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_clip(folder, 64 if options.toy else options.size, 4 if options.toy else FRAMES)
        for precision in ("",) if options.toy else ("", "bf16"):
            all_turns = take_turns(
                [turn_of(command, folder, precision) for command in paths.values()],
                rounds=1 if options.toy else options.rounds,
                quiet_cores=float("inf") if options.toy else QUIET_CORES,
            )
            found = [row_of(path, turns) for path, turns in zip(paths, all_turns, strict=True)]
            if all("step_p50_ms" in row for row in found):
                found[0]["ratio"] = round(found[0]["step_p50_ms"] / found[1]["step_p50_ms"], 3)
            rows += [{"precision": precision or "fp32", **row} for row in found]
    for row in rows:
        print(json.dumps(row))
    write("embed", rows, size=options.size, frames=FRAMES, **bytes_of(program), toy=options.toy)


if __name__ == "__main__":
    main()
