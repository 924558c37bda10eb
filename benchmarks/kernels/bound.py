"""What the bounded search saves: match with bounds beside every product, on embeddings of real frames, in one process.

    python -m benchmarks.kernels.bound DAVIS --sequences camel bmx-trees  # minutes; writes results/bound.jsonl
    python -m benchmarks.kernels.bound --toy                              # seconds, noise, writes nothing

Random features are alike and prune little, so the frames are those of a data set in the layout of DAVIS. Both memories
get the same embeddings frame by frame. Processor time counts, which other programs disturb less than the clock, and
neighbours are compared bit by bit.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import parser_of, write
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


def compare(embeddings: list[F32Array], mask: U8Array, threads: int, times: int) -> dict[str, Any]:
    """Track with both searches, and with bounds once more where objects appear on several frames.

    Args:
        embeddings: f32 [h, w, K] of one video.
        mask: u8 [H, W], the first annotation.
        threads: of all searches.
        times: on how many frames, every second one, objects appear in the third memory.

    Returns:
        Medians over the frames after the warm-up and the last appearance.
    """
    full, bounded, several = (memory(mode, embeddings[0].shape, threads) for mode in ("full", "auto", "auto"))
    took: list[tuple[float, ...]] = []
    survivors: list[float] = []
    for number, embedding in enumerate(embeddings):
        spent = []
        for each in (full, bounded, several):
            began = time.process_time()
            each.push(embedding)
            spent.append(1e3 * (time.process_time() - began))
            if number == 0 or (each is several and number % 2 == 0 and number < 2 * times):
                each.annotate(np.where(mask > 0, number + 1, 0).astype(np.uint8))
        if number > max(WARM_UP, 2 * times - 2):
            took.append(tuple(spent))
            survivors.append(bounded.info["survivors"])
            same = zip(vars(full.top_k()).values(), vars(bounded.top_k()).values(), strict=True)
            assert all(np.array_equal(a, b) for a, b in same), "the searches differ"
    return {
        "core": bounded.info["isa"],
        "cells": list(embeddings[0].shape[:2]),
        "channels": embeddings[0].shape[2],
        "threads": threads,
        "frames": len(took),
        "full_ms": round(statistics.median(each[0] for each in took), 1),
        "bounded_ms": round(statistics.median(each[1] for each in took), 1),
        "ratio": round(statistics.median(each[1] / each[0] for each in took), 3),
        "survivors": round(statistics.median(survivors), 4),
        "times": times,
        "times_ratio": round(statistics.median(each[2] / each[1] for each in took), 2),
    }


def noise(height: int, width: int, channels: int, frames: int) -> tuple[list[F32Array], U8Array]:
    """Frames without anything in common, the worst case of bounds: f32 [h, w, K] of unit length; a mask, u8 [H, W]."""
    random = np.random.default_rng(0)
    each = (random.standard_normal((height, width, channels)).astype(np.float32) for _ in range(frames))
    mask = np.zeros((8 * height, 8 * width), np.uint8)
    mask[: 4 * height] = 1
    return [frame / np.linalg.norm(frame, axis=-1, keepdims=True) for frame in each], mask


def main() -> None:
    """Compare on every sequence."""
    parser = parser_of(__doc__)
    parser.add_argument("davis", type=Path, nargs="?")
    parser.add_argument("--sequences", nargs="*", default=[])
    parser.add_argument(
        "--noise", type=int, nargs="*", default=[], metavar="K", help="also frames of noise, K channels"
    )
    parser.add_argument("--bundle", default="default")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--times", type=int, default=5, help="appearance times of the third memory")
    arguments = parser.parse_args()
    if arguments.toy:
        print(compare(*noise(8, 12, 64, WARM_UP + 3), 1, 2))
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
        found = compare(embeddings, mask, arguments.threads, arguments.times)
        rows.append({"bundle": arguments.bundle, "sequence": sequence.name, **found})
        print(rows[-1], flush=True)
    for channels in arguments.noise:
        found = compare(*noise(60, 107, channels, arguments.frames), arguments.threads, arguments.times)
        rows.append({"bundle": "none", "sequence": "noise", **found})
        print(rows[-1], flush=True)
    write(NAME, rows)


if __name__ == "__main__":
    main()
