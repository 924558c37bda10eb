"""What the bounded search saves: match with bounds beside every product, on embeddings of real frames, in one process.

    python -m benchmarks.kernels.bound DAVIS --sequences camel bmx-trees --threads 1 2 --objects 1 5 20 --untrained \
        --noise 256 512                       # minutes; writes results/bound.jsonl
    python -m benchmarks.kernels.bound --toy  # seconds, noise, writes nothing

Random features are alike and prune little, so the frames are those of a data set in the layout of DAVIS. Both memories
get the same embeddings frame by frame. Processor time counts, which other programs disturb less than the clock, and
neighbours are compared bit by bit. The first of the threads and of the objects is that of all sequences; the others are
measured on the first sequence, one at a time. `--untrained` adds the network of the paper, 512 channels, with seeded
weights, whose features are more alike than those that learnt.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import parser_of, write
from benchmarks.untrained import PAPER_SETTINGS, export_untrained
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


def split(mask: U8Array, objects: int) -> U8Array:
    """Cut what is marked into so many objects, from left to right, of as many pixels each: u8 [H, W]."""
    columns, rows = np.nonzero(mask.T)
    out = np.zeros_like(mask)
    out[rows, columns] = 1 + np.arange(len(rows)) * objects // len(rows)
    return out


def compare(embeddings: list[F32Array], mask: U8Array, threads: int, times: int) -> dict[str, Any]:
    """Track with both searches, and with bounds once more where objects appear on several frames.

    Args:
        embeddings: f32 [h, w, K] of one video.
        mask: u8 [H, W], the first annotation. On later frames its objects appear once more, with ids of their own.
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
                each.annotate(np.where(mask > 0, mask + number // 2 * int(mask.max()), 0).astype(np.uint8))
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
        "objects": int(mask.max()),
        "frames": len(took),
        "full_ms": round(statistics.median(each[0] for each in took), 1),
        "bounded_ms": round(statistics.median(each[1] for each in took), 1),
        "ratio": round(statistics.median(each[1] / each[0] for each in took), 3),
        "survivors": round(statistics.median(survivors), 4),
        "times": times,
        "times_ms": round(statistics.median(each[2] for each in took), 1),
        "times_ratio": round(statistics.median(each[2] / each[1] for each in took), 2),
    }


def settings_of(threads: list[int], objects: list[int], first: bool) -> Iterator[tuple[int, int]]:
    """Threads and objects to measure a sequence with."""
    yield threads[0], objects[0]
    if first:
        yield from ((each, objects[0]) for each in threads[1:])
        yield from ((threads[0], each) for each in objects[1:])


def encode(model: Model, frames: list[U8Array]) -> tuple[list[F32Array], float]:
    """Embeddings at a short side of 480, f32 [h, w, K] each, and the median processor milliseconds of one."""
    embeddings, spent = [], []
    with model.stream(size=480) as stream:
        for frame in frames:
            began = time.process_time()
            embeddings.append(stream.encoder.encode(frame, 480).array)
            spent.append(1e3 * (time.process_time() - began))
    return embeddings, round(statistics.median(spent), 1)


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
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--objects", type=int, nargs="+", default=[1])
    parser.add_argument("--untrained", action="store_true", help="also the paper's network, with the first sequence")
    parser.add_argument("--times", type=int, default=5, help="appearance times of the third memory")
    arguments = parser.parse_args()
    if arguments.toy:
        embeddings, mask = noise(8, 12, 64, WARM_UP + 3)
        print(compare(embeddings, split(mask, 3), 1, 2))
        return
    if arguments.davis is None:
        parser.error("the folder of a data set in the layout of DAVIS is missing")
    rows: list[dict[str, Any]] = []

    def measure(name: dict[str, Any], embeddings: list[F32Array], mask: U8Array, threads: int) -> None:
        rows.append({**name, **compare(embeddings, mask, threads, arguments.times)})
        print(rows[-1], flush=True)

    with tempfile.TemporaryDirectory() as folder:
        models = {arguments.bundle: Model.load(arguments.bundle)}
        if arguments.untrained:
            models[PAPER_SETTINGS] = Model.load(str(export_untrained("res4", Path(folder))))
        for sequence in find_sequences(arguments.davis, arguments.sequences):
            source = ImageFolderSource(sequence.frames)
            mask = read_annotations(sequence, source)[0]
            frames = [frame.image for _, frame in zip(range(arguments.frames), source, strict=False)]
            for bundle, model in models.items():
                embeddings, encoder_ms = encode(model, frames)
                name = {"bundle": bundle, "sequence": sequence.name, "encoder_ms": encoder_ms}
                for threads, objects in settings_of(arguments.threads, arguments.objects, not rows):
                    measure(name, embeddings, split(mask, objects), threads)
            models.pop(PAPER_SETTINGS, None)
    for channels in arguments.noise:
        embeddings, mask = noise(60, 107, channels, arguments.frames)
        measure({"bundle": "none", "sequence": "noise"}, embeddings, mask, arguments.threads[0])
    write(NAME, rows)


if __name__ == "__main__":
    main()
