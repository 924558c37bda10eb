"""Match and read-out of one frame: every instruction-set path, the NumPy twin and dense PyTorch, same inputs, one run.

    python -m benchmarks.kernels.match          # 480p, K = 512, 256, 128; about four minutes
    python -m benchmarks.kernels.match --toy    # seconds, for tests
    python -m benchmarks.kernels.match --calls  # what a call from Python costs: microseconds on a grid of 2 x 2 cells

One step is what ``push`` does in the steady state: 21 slots (the reference everywhere, 20 recent frames within radius
12), joint top-10, softmax, soft masks of one object. The dense version is the step as the formulas read: one hw x 21 hw
affinity, masked, top-k over it. Paths take turns in rounds, and the best round counts, since other load only slows.
"""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.kernels.dense import cells_outside, propagate
from benchmarks.machine import Watch, parser_of, write
from benchmarks.scenes.embeddings import make_video
from vosrt.core import native
from vosrt.core.reference import NumpyMemory
from vosrt.types import F32Array, PropagationOptions

ISAS = ("generic", "avx2", "avx512", "avx512bf16", "amx", "neon")
OPTIONS = PropagationOptions()


class Dense:
    """The step in PyTorch with the whole affinity in memory."""

    def __init__(self, video: list[F32Array], soft: list[F32Array]) -> None:
        height, width, channels = video[0].shape
        self.cells = height * width
        self.query = torch.from_numpy(video[-1].reshape(self.cells, channels))
        context = [video[0], *video[-1 - OPTIONS.context : -1]]
        self.keys = torch.from_numpy(np.concatenate([key.reshape(self.cells, channels) for key in context]))
        self.labels = torch.from_numpy(np.concatenate([each.reshape(self.cells, -1) for each in soft]))
        self.outside = cells_outside(height, width, OPTIONS.radius)

    @torch.inference_mode()
    def step(self) -> torch.Tensor:
        """Soft masks, f32 [h*w, M]."""
        return propagate(self.query, self.keys, self.labels, self.outside, OPTIONS)


def measure(height: int, width: int, channels: int, *, rounds: int, twin: bool, dense: bool) -> list[dict[str, object]]:
    """Time every implementation on one problem and compare their results."""
    video = make_video(height, width, channels, OPTIONS.context + 2)
    mask = np.zeros((8 * height, 8 * width), np.uint8)
    mask[2 * height : 5 * height, 3 * width : 6 * width] = 1
    steps: dict[str, Callable[[], object]] = {}
    results: dict[str, Callable[[], F32Array]] = {}

    def prepare(name: str, memory: native.Memory | NumpyMemory) -> None:
        for t, embedding in enumerate(video[:-1]):
            memory.push(embedding)
            if t == 0:
                memory.annotate(mask)
        steps[name] = lambda: memory.push(video[-1])
        results[name] = memory.soft_masks

    for isa in ISAS:
        if native.isa_available(isa):
            prepare(isa, native.Memory(height, width, channels, isa=isa))
    soft: list[F32Array] = []
    reference = native.Memory(height, width, channels, precision="fp32")
    for t, embedding in enumerate(video[:-1]):
        reference.push(embedding)
        if t == 0:
            reference.annotate(mask)
        soft.append(reference.soft_masks())
    soft = [soft[0], *soft[-OPTIONS.context :]]
    if dense:
        problem = Dense(video, soft)
        held: list[torch.Tensor] = []
        steps["dense PyTorch"] = lambda: held.append(problem.step())
        results["dense PyTorch"] = lambda: held[0].numpy().reshape(height, width, -1)
    if twin:
        # Filling the twin's memory would take minutes: it steps from frame 0, whose copies make up as many slots.
        numpy_memory = NumpyMemory(height, width, channels, OPTIONS)
        numpy_memory.push(video[0])
        numpy_memory.annotate(mask)
        steps["NumPy twin"] = lambda: numpy_memory.push(video[-1])

    best: dict[str, float] = {name: float("inf") for name in steps}
    first: dict[str, F32Array] = {}
    foreign: dict[str, float] = {}
    for turn in range(rounds):
        for name, step in steps.items():
            slow = name in ("dense PyTorch", "NumPy twin")
            if slow and turn >= 2:
                continue
            with Watch() as watch:
                began = time.perf_counter()
                step()
                took = time.perf_counter() - began
            if turn == 0 and name in results:
                first[name] = results[name]()
            if took < best[name]:
                best[name], foreign[name] = took, watch.foreign_cores
    expected = first["avx2"] if "avx2" in first else first["generic"]
    rows: list[dict[str, object]] = []
    for name, seconds in best.items():
        row: dict[str, object] = {
            "grid": f"{height} x {width}",
            "channels": channels,
            "slots": 1 + OPTIONS.context,
            "path": name,
            "step_ms": round(1e3 * seconds, 2),
            "foreign_cores": foreign[name],
        }
        if name in first:
            row["soft_mask_difference"] = float(f"{np.abs(first[name] - expected).max():.2g}")
        if "dense PyTorch" in best:
            row["dense_over_this"] = round(best["dense PyTorch"] / seconds, 1)
        rows.append(row)
        print(row, flush=True)
    return rows


def measure_calls() -> dict[str, float]:
    """The best microseconds of calls with next to no work, binding included."""
    memory, mask = native.Memory(2, 2, 8, context=1, threads=1), np.ones((2, 2), np.uint8)
    embedding, image = np.full((2, 2, 8), 8**-0.5, np.float32), np.zeros((2, 2, 3), np.uint8)
    memory.push(embedding)
    memory.annotate(mask)
    masks = memory.soft_masks()
    calls: dict[str, Callable[[], object]] = {
        "push": lambda: memory.push(embedding),
        "labels": lambda: memory.labels(2, 2),
        "soft_masks": memory.soft_masks,
        "set_soft_masks": lambda: memory.set_soft_masks(masks),
        "guide": lambda: memory.guide(image),
        "top_k": memory.top_k,
        "info": lambda: memory.info,
        "object_ids": lambda: memory.object_ids,
        "resize_bgr": lambda: native.resize_bgr(image, 3, 3),
    }
    return {name: round(min(timeit.repeat(call, number=20, repeat=1000)) / 20 * 1e6, 1) for name, call in calls.items()}


def main() -> None:
    """Parse options, measure, write results/kernels.jsonl."""
    parser = parser_of(__doc__)
    parser.add_argument("--calls", action="store_true", help="what a call costs, nothing written")
    options = parser.parse_args()
    if options.calls:
        print(measure_calls())
        return
    if options.toy:
        measure(6, 11, 32, rounds=2, twin=True, dense=True)
        return
    rows = measure(60, 107, 512, rounds=9, twin=True, dense=True)
    for channels in (256, 128):
        rows += measure(60, 107, channels, rounds=9, twin=False, dense=True)
    write("kernels", rows)


if __name__ == "__main__":
    main()
