"""Measure what a call from Python into libvosrt costs: on a grid of one cell there is next to nothing to compute."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from benchmarks.machine import parser_of
from vosrt.core import native


def microseconds(call: Callable[[], object], calls: int) -> float:
    """Median time of a call; a few calls come before it is taken."""
    taken = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return 1e6 * statistics.median(taken[calls // 10 :])


def main() -> None:
    parser = parser_of(__doc__)
    calls = 100 if parser.parse_args().toy else 20000
    memory = native.Memory(1, 1, 1, context=0, threads=1)
    embedding, mask = np.ones((1, 1, 1), np.float32), np.ones((1, 1), np.uint8)
    memory.push(embedding)
    memory.annotate(mask)
    masks = memory.soft_masks()
    rows: dict[str, Callable[[], object]] = {
        "push": lambda: memory.push(embedding),
        "object_ids": lambda: memory.object_ids,
        "info": lambda: memory.info,
        "labels": lambda: memory.labels(1, 1),
        "soft_masks": memory.soft_masks,
        "set_soft_masks": lambda: memory.set_soft_masks(masks),
        "guide": lambda: memory.guide(np.zeros((1, 1, 3), np.uint8)),
        "top_k": memory.top_k,
    }
    for name, call in rows.items():
        print(f"{name:15} {microseconds(call, calls):6.1f} µs")


if __name__ == "__main__":
    main()
