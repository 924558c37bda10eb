"""What the bounded search saves: match with bounds beside every product, on embeddings of real frames, in one process.

    python -m benchmarks.kernels.bound DAVIS --sequences camel bmx-trees  # minutes; writes results/bound.jsonl
    python -m benchmarks.kernels.bound --toy                              # seconds, noise, writes nothing

Random features are alike and prune little, so the frames are those of a data set in the layout of DAVIS. Both memories
get the same embeddings frame by frame. Processor time counts, which other programs disturb less than the clock, and
neighbours are compared bit by bit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import write
from vosrt import Model
from vosrt.core import native
from vosrt.types import F32Array, U8Array
from vosrt.video.images import ImageFolderSource
from vosrt_train.validate import find_sequences, read_annotations

NAME = "bound"
WARM_UP = 5  # frames until both memories hold what takes long


def memory(mode: str, shape: tuple[int, ...], threads: int) -> native.Memory:
    """Create a memory whose search is ``"full"`` or ``"auto"``."""
    os.environ["VOSRT_MATCH"] = mode
    try:
        return native.Memory(*shape, align_corners=False, threads=threads)
    finally:
        del os.environ["VOSRT_MATCH"]


def compare(embeddings: list[F32Array], mask: U8Array, threads: int) -> dict[str, Any]:
    """Track with both searches.

    Args:
        embeddings: f32 [h, w, K] of one video.
        mask: u8 [H, W], the first annotation.
        threads: of both searches.

    Returns:
        Medians over the frames after the warm-up.
    """
    full, bounded = (memory(mode, embeddings[0].shape, threads) for mode in ("full", "auto"))
    times: list[tuple[float, float]] = []
    survivors: list[float] = []
    for number, embedding in enumerate(embeddings):
        took = []
        for each in (full, bounded):
            began = time.process_time()
            each.push(embedding)
            took.append(1e3 * (time.process_time() - began))
            if number == 0:
                each.annotate(mask)
        if number > WARM_UP:
            times.append((took[0], took[1]))
            survivors.append(bounded.info["survivors"])
            same = zip(vars(full.top_k()).values(), vars(bounded.top_k()).values(), strict=True)
            assert all(np.array_equal(a, b) for a, b in same), "the searches differ"
    return {
        "cells": list(embeddings[0].shape[:2]),
        "channels": embeddings[0].shape[2],
        "threads": threads,
        "frames": len(times),
        "full_ms": round(statistics.median(full for full, _ in times), 1),
        "bounded_ms": round(statistics.median(bounded for _, bounded in times), 1),
        "ratio": round(statistics.median(bounded / full for full, bounded in times), 3),
        "survivors": round(statistics.median(survivors), 4),
    }


def main() -> None:
    """Compare on every sequence."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("davis", type=Path, nargs="?")
    parser.add_argument("--sequences", nargs="*", default=[])
    parser.add_argument("--bundle", default="default")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--toy", action="store_true")
    arguments = parser.parse_args()
    if arguments.toy:
        random = np.random.default_rng(0)
        noise = [random.standard_normal((8, 12, 64)).astype(np.float32) for _ in range(WARM_UP + 3)]
        unit = [each / np.linalg.norm(each, axis=-1, keepdims=True) for each in noise]
        mask = np.zeros((64, 96), np.uint8)
        mask[:32] = 1
        print(compare(unit, mask, 1))
        return
    if arguments.davis is None:
        parser.error("the folder of a data set in the layout of DAVIS is missing")
    model, rows = Model.load(arguments.bundle), []
    for sequence in find_sequences(arguments.davis, arguments.sequences):
        source = ImageFolderSource(sequence.frames)
        mask = read_annotations(sequence, source)[0]
        with model.stream(size=480) as stream:
            frames = [frame.image for _, frame in zip(range(arguments.frames), source, strict=False)]
            embeddings = [stream.encoder.encode(frame, 480).array for frame in frames]
        row = {"bundle": arguments.bundle, "sequence": sequence.name, **compare(embeddings, mask, arguments.threads)}
        rows.append(row)
        print(row, flush=True)
    print(write(NAME, rows))


if __name__ == "__main__":
    main()
