"""What the bounded search of the GPU has to multiply in full, simulated on embeddings of real frames; needs no GPU.

    python -m benchmarks.kernels.survivors DAVIS --sequences camel dog  # minutes; writes results/cuda_survivors.jsonl
    python -m benchmarks.kernels.survivors --toy                       # seconds, noise, writes nothing

A warp of `match_tile.hpp` holds 32 queries, two rows of 16 cells. A key survives for it if its bound reaches the limit
of any of its queries that attends to it. Limits are those of `seed_limits` throughout: lists that fill raise them, so
that a GPU multiplies fewer keys than are counted here. `benchmarks.kernels.cuda` turns the shares into operations and
instructions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kernels.bound import noise
from benchmarks.machine import parser_of, write
from vosrt import Model
from vosrt.types import F32Array
from vosrt.video.images import ImageFolderSource
from vosrt_train.validate import find_sequences

NAME = "cuda_survivors"
CONTEXT, RADIUS, TOP_K, TILE_KEYS = 20, 12.0, 10, 128
ROWS, COLUMNS, PATCH_ROWS = 2, 16, 8  # of a warp's queries; of its block's


def to_bf16(values: F32Array) -> F32Array:
    """Round to nearest even, as f32."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def heads_of(keys: F32Array, axes: F32Array) -> tuple[F32Array, F32Array]:
    """Coordinates and n of keys [cells, K] along axes [head - 1, K]; see src/bound.hpp."""
    exact = keys @ axes.T
    coordinates = to_bf16(exact)
    square, kept = (keys**2).sum(-1), (coordinates**2).sum(-1)
    rest = np.maximum(square - 2 * (exact * coordinates).sum(-1) + kept, 0)
    error, slack = ((exact - coordinates) ** 2).sum(-1), 8 * (keys.shape[-1] + 64) * 2.0**-24
    return coordinates, np.sqrt(rest + error * 2**9 + kept / 2**9 + slack * square).astype(np.float32)


def count(embeddings: list[F32Array], head: int, groups: int) -> dict[str, Any]:
    """Shares of the newest frame's keys that survive, of recent frames and of the reference, the first frame.

    Args:
        embeddings: f32 [h, w, K] of one video, two more than the context.
        groups: warps that are looked at, chosen at random.
    """
    height, width, channels = embeddings[0].shape
    mean = embeddings[0].reshape(-1, channels).mean(0)
    keys = [to_bf16(each.reshape(-1, channels) - mean) for each in embeddings]
    unit = keys[0] / np.maximum(np.linalg.norm(keys[0], axis=-1, keepdims=True), 1e-30)
    axes = np.linalg.eigh(unit.T @ unit)[1][:, :-head:-1].T.astype(np.float32)
    heads, biases = [heads_of(each, axes) for each in keys], [each @ mean for each in keys]
    newest, y, x = len(keys) - 1, *np.divmod(np.arange(height * width), width)
    random, found = np.random.default_rng(0), {"recent": np.zeros(2), "reference": np.zeros(2)}
    for _ in range(groups):
        top, left = (int(random.integers(0, size)) // step * step for size, step in ((height, ROWS), (width, COLUMNS)))
        queries = np.flatnonzero((y // ROWS == top // ROWS) & (x // COLUMNS == left // COLUMNS))
        near = (y[queries, None] - y) ** 2 + (x[queries, None] - x) ** 2 < RADIUS**2
        block = y // PATCH_ROWS == top // PATCH_ROWS
        rows = y[block].min() - RADIUS < y, y < y[block].max() + RADIUS
        halo = int((rows[0] & rows[1] & (abs(x - left - COLUMNS / 2) < COLUMNS / 2 + RADIUS)).sum())

        def similar(now: int, frame: int, cells: Any, near: Any) -> F32Array:
            values = keys[now][cells] @ keys[frame].T + biases[frame]
            return values if frame == 0 else np.where(near, values, -np.inf)

        # A frame on, the best candidates of the frame before, of a query and those beside it: the same slots and cells.
        around = np.flatnonzero((abs(y - top - 0.5) < ROWS) & (abs(x - left - 7.5) < COLUMNS / 2 + 1))
        reach = (y[around, None] - y) ** 2 + (x[around, None] - x) ** 2 < RADIUS**2
        frames = (0, *range(newest - 1 - CONTEXT, newest - 1))
        before = np.concatenate([similar(newest - 1, frame, around, reach) for frame in frames], axis=1)
        best = np.argpartition(-before, TOP_K, axis=1)[:, :TOP_K]
        frames = (0, *range(newest - CONTEXT, newest))
        now = np.concatenate([similar(newest, frame, queries, near) for frame in frames], axis=1)
        limits = np.empty(len(queries), np.float32)
        for i, query in enumerate(queries):
            beside = best[abs(y[around] - y[query]) + abs(x[around] - x[query]) <= 1]
            limits[i] = np.sort(now[i, np.unique(beside)])[-TOP_K]
        for frame in frames:
            (q, of_q), (k, of_k) = (each[queries] for each in heads[newest]), heads[frame]
            bounds = q @ k.T + of_q[:, None] * of_k + biases[frame]
            survive = ((bounds >= limits[:, None]) & (near | (frame == 0))).any(0).sum()
            screened = height * width if frame == 0 else halo
            found["reference" if frame == 0 else "recent"] += survive, -(-screened // TILE_KEYS) * TILE_KEYS
    return {
        "cells": [height, width],
        "channels": channels,
        "head": head,
        **{name: round(float(survive / screened), 4) for name, (survive, screened) in found.items()},
    }


def main() -> None:
    """Count on every sequence."""
    parser = parser_of(__doc__)
    parser.add_argument("davis", type=Path, nargs="?")
    parser.add_argument("--sequences", nargs="*", default=[])
    parser.add_argument("--bundles", nargs="*", default=["default", "fast"])
    parser.add_argument("--groups", type=int, default=48)
    arguments = parser.parse_args()
    if arguments.toy:
        print(count(noise(8, 16, 64, CONTEXT + 2)[0], 32, 2))
        return
    if arguments.davis is None:
        parser.error("the folder of a data set in the layout of DAVIS is missing")
    rows = []
    for bundle in arguments.bundles:
        model = Model.load(bundle)
        for sequence in find_sequences(arguments.davis, arguments.sequences):
            source = ImageFolderSource(sequence.frames)
            with model.stream(size=480) as stream:
                frames = [frame.image for _, frame in zip(range(CONTEXT + 2), source, strict=False)]
                embeddings = [stream.encoder.encode(frame, 480).array for frame in frames]
            head = 64 if embeddings[0].shape[-1] >= 512 else 32
            found = count(embeddings, head, arguments.groups)
            rows.append({"bundle": bundle, "sequence": sequence.name, **found})
            print(rows[-1], flush=True)
    write(NAME, rows, measured_on_a_gpu=False)


if __name__ == "__main__":
    main()
