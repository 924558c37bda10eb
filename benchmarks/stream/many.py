"""Many videos of one model: frames a second and how evenly they are served, encoded together or each on its own.

    python -m benchmarks.stream.many                # 1, 4, 16 streams on this machine's fastest engine, 480p
    python -m benchmarks.stream.many --device cuda  # on an NVIDIA GPU; benchmarks/kernels/gpu.py does this too
    python -m benchmarks.stream.many --toy          # a tiny problem, nothing written

Ways that streams are driven, each for the same number of seconds, in turns:
    in turn     one thread steps one stream after the other
    threads     a thread per stream; they share the engine
    batched     one thread, `vosrt.step_all`: one run of the encoder for all

Frames come from memory as u8, labels go back there. `fairness` is what the slowest stream got through in that time,
over the fastest. `wait` is how long a stream waits for a frame's labels.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.machine import parser_of, write
from vosrt import Model, StepResult, step_all
from vosrt.bench.clip import PERIOD, mark_objects, render, size_of
from vosrt.errors import VosrtError
from vosrt.types import U8Array

Row = dict[str, Any]
_WARM_UP = 3


class Videos:
    """Streams of one model on the same endless clip, each beginning elsewhere in it.

    Args:
        clip: frames u8 [H, W, 3].
    """

    def __init__(self, model: Model, clip: list[U8Array], count: int, *, size: int, objects: int) -> None:
        self._clip = clip
        self.streams = [model.stream(size=size) for _ in range(count)]
        self.done = [0] * count
        self.waits_ms: list[float] = []
        height, width = clip[0].shape[:2]
        mask = mark_objects(height, width, objects)
        for stream in self.streams:
            stream.start(clip[0], mask)

    def step(self, number: int) -> None:
        """One stream's next frame."""
        began = time.perf_counter()
        self.streams[number].step(self._next(number))
        self._count(number, began)

    def step_all(self) -> None:
        """Every stream's next frame, together.

        Raises:
            VosrtError: one of them failed.
        """
        began = time.perf_counter()
        for outcome in step_all(self.streams, [self._next(number) for number in range(len(self.streams))]):
            if not isinstance(outcome, StepResult):
                raise outcome
        for number in range(len(self.streams)):
            self._count(number, began)

    def have_done(self, frames: int) -> bool:
        """Return whether every stream has taken so many frames."""
        return min(self.done) >= frames

    def _next(self, number: int) -> U8Array:
        return self._clip[(self.done[number] + number) % len(self._clip)]

    def _count(self, number: int, began: float) -> None:
        self.waits_ms.append(1e3 * (time.perf_counter() - began))
        self.done[number] += 1


def _in_turn(videos: Videos, until: Callable[[], bool]) -> None:
    while not until():
        for number in range(len(videos.streams)):
            videos.step(number)


def _threads(videos: Videos, until: Callable[[], bool]) -> None:
    failures: list[VosrtError] = []

    def work(number: int) -> None:
        try:
            while not until() and not failures:
                videos.step(number)
        except VosrtError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(videos.streams))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _batched(videos: Videos, until: Callable[[], bool]) -> None:
    while not until():
        videos.step_all()


WAYS: dict[str, Callable[[Videos, Callable[[], bool]], None]] = {
    "in turn": _in_turn,
    "threads": _threads,
    "batched": _batched,
}


def measure(
    model: Model, counts: tuple[int, ...], *, size: int, objects: int, seconds: float, rounds: int = 3
) -> list[Row]:
    """Every number of streams, every way, in turns; the median round of each.

    Raises:
        VosrtError: the model cannot run, or a stream failed.
    """
    height, width = size_of(size)
    clip = [render(height, width, t) for t in range(PERIOD)]
    description = model.describe()
    encoder = description["engines"]["encoder"]
    rows = []
    for count in counts:
        turns: dict[str, list[Row]] = {way: [] for way in WAYS}
        opened = {way: Videos(model, clip, count, size=size, objects=objects) for way in WAYS}
        for way, drive in WAYS.items():
            videos = opened[way]
            drive(videos, partial(videos.have_done, videos.done[0] + _WARM_UP))
        for _ in range(rounds):
            for way, drive in WAYS.items():
                turns[way].append(_turn(opened[way], drive, seconds))
        for way, results in turns.items():
            middle = {name: round(statistics.median(each[name] for each in results), 3) for name in results[0]}
            rows.append(
                {
                    "what": f"{count} streams, {way}",
                    "streams": count,
                    "way": way,
                    "size": size,
                    "objects": objects,
                    "bundle": description["bundle"],
                    "engine": f"{encoder['name']} {encoder['precision']}",
                    "core": description["core"],
                    **middle,
                }
            )
    return rows


def _turn(videos: Videos, drive: Callable[[Videos, Callable[[], bool]], None], seconds: float) -> Row:
    videos.done, videos.waits_ms = [0] * len(videos.streams), []
    began = time.perf_counter()
    drive(videos, lambda: time.perf_counter() - began >= seconds and min(videos.done) > 0)
    took = time.perf_counter() - began
    p50, p95 = np.percentile(videos.waits_ms, (50, 95))
    return {
        "fps": sum(videos.done) / took,
        "fairness": min(videos.done) / max(videos.done),
        "wait_p50_ms": float(p50),
        "wait_p95_ms": float(p95),
    }


def main() -> None:
    """Parse options, measure, write results/streams.jsonl."""
    parser = parser_of(__doc__)
    parser.add_argument("--bundle", default="default", help="folder made by vos-export")
    parser.add_argument("--engine", default="auto", help="as for vos-run")
    parser.add_argument("--device", default="cpu", help="as for vos-run")
    parser.add_argument("--streams", default="1,4,16", metavar="N,…", help="how many at once")
    parser.add_argument("--size", type=int, default=480, help="short side of frames and working frames")
    parser.add_argument("--objects", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10, help="of each turn")
    options = parser.parse_args()
    counts = tuple(int(part) for part in options.streams.split(","))
    size, seconds, rounds = (64, 0.1, 1) if options.toy else (options.size, options.seconds, 3)
    try:
        model = Model.load(options.bundle, engine=options.engine, device=options.device)
        rows = measure(model, counts, size=size, objects=options.objects, seconds=seconds, rounds=rounds)
    except VosrtError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    write("streams", rows, toy=options.toy, show=True)


if __name__ == "__main__":
    main()
