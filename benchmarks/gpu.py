"""The CUDA core on an NVIDIA GPU: parity, then times of kernels, whole frames (R = 0, 2), many streams, peers.

    python benchmarks/gpu.py                     # everything; prints one table, writes results/gpu.jsonl
    python benchmarks/gpu.py --engine torch      # where PyTorch is all that runs a network on the GPU
    python benchmarks/gpu.py --build             # builds libvosrt_cuda for this GPU first, into a folder of its own
    python benchmarks/gpu.py --toy               # a tiny problem, nothing written
    python benchmarks/gpu.py --check             # without a GPU: parity, and a few frames, on emulated kernels

Without a GPU it says so and exits 2. Parity has to hold before anything is timed: similarities within 1e-2 of the NumPy
twin's (at a toy size) and of the processor's fp32 core (at 480p), fewer than 0.1 % of the labels changed; refined masks
within 1e-5 of the NumPy reference's. Steps are queued behind each other and the clock stops when the GPU has finished.
Peers run in this process, on the same GPU, one after the other; those that are not installed are named.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from cuda_kernels import count_match, floors
from kernels import make_video
from machine import write
from streams import measure as measure_streams

from vosrt import Model
from vosrt.benchmark.clip import PERIOD, mark_objects, render, size_of
from vosrt.cuda_library import LIBRARY_VARIABLE, load_cuda_library
from vosrt.cuda_masks import draw_planes, keep_planes, refine_planes
from vosrt.cuda_memory import CudaMemory
from vosrt.cuda_queue import CudaQueue, download
from vosrt.engines.device import DeviceTensor
from vosrt.engines.tensorrt import CUDA_GRAPH_VARIABLE
from vosrt.errors import VosrtError
from vosrt.memory import Memory, NumpyMemory, create_memory
from vosrt.ops import reference
from vosrt.stream import PendingStep
from vosrt.types import PropagationOptions, U8Array

NATIVE = Path(__file__).resolve().parents[1] / "runtime" / "native"
OPTIONS = PropagationOptions()
Row = dict[str, Any]


def build(folder: Path, *, emulated: bool) -> Path:
    """Build the library for the GPU that is here, or the emulated one; its path."""
    name = "vosrt_cuda_emulated" if emulated else "vosrt_cuda"
    options = ["-DVOSRT_CUDA=OFF", "-DVOSRT_CUDA_EMULATED=ON"] if emulated else ["-DVOSRT_CUDA=ON"]
    if not emulated:
        options.append("-DVOSRT_CUDA_ARCHITECTURES=native")
    for command in (
        ["cmake", "-S", str(NATIVE), "-B", str(folder), *options],
        ["cmake", "--build", str(folder), "--target", name, "--parallel", str(os.cpu_count() or 1)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    return folder / "cuda" / f"lib{name}.so"


def mask_of(height: int, width: int, objects: int) -> U8Array:
    """Objects at eight times the grid's size."""
    return mark_objects(8 * height, 8 * width, objects)


def check_parity(height: int, width: int, channels: int, *, twin: bool, options: PropagationOptions) -> Row:
    """Compare a few frames, each from the same memory, with the NumPy twin or the processor's fp32 core.

    Raises:
        SystemExit: similarities or labels differ by more than is allowed.
    """
    expected: Memory
    if twin:
        expected = NumpyMemory(height, width, channels, options, align_corners=False)
    else:
        expected, _ = create_memory(height, width, channels, options, align_corners=False, precision="fp32")
    given = CudaMemory(height, width, channels, options, align_corners=False)
    similarity, changed = 0.0, []
    for t, embedding in enumerate(make_video(height, width, channels, 5)):
        expected.push(embedding)
        given.push(embedding)
        if t == 0:
            for memory in (expected, given):
                memory.annotate(mask_of(height, width, 2))
            continue
        ours, theirs = given.top_k().similarity, expected.top_k().similarity
        similarity = max(similarity, float(np.nanmax(np.abs(ours - theirs) / np.abs(theirs))))
        size = (8 * height, 8 * width)
        changed.append(float(np.mean(given.labels(*size)[0] != expected.labels(*size)[0])))
        given.set_soft_masks(expected.soft_masks())
    row = {
        "what": "parity",
        "with": "NumPy twin" if twin else "processor, fp32",
        "grid": f"{height} x {width}",
        "channels": channels,
        "similarity_difference": float(f"{similarity:.2g}"),
        "labels_changed": float(f"{max(changed):.2g}"),
    }
    if similarity > 1e-2 or max(changed) >= 1e-3:
        raise SystemExit(f"parity is lost, so nothing is timed: {row}")
    return row


def check_refinement(height: int, width: int, objects: int) -> Row:
    """Compare masks that logits refine on the GPU, and their labels, with the NumPy reference.

    Raises:
        SystemExit: they differ.
    """
    memory, size, random = (
        CudaMemory(height, width, 40, OPTIONS, align_corners=False),
        (8 * height, 8 * width),
        np.random.default_rng(0),
    )
    memory.push(make_video(height, width, 40, 1)[0])
    memory.annotate(mask_of(height, width, objects))
    soft = reference.resize_soft(memory.soft_masks(), *size)
    logits = (4 * random.standard_normal((objects, 2 * height, 2 * width))).astype(np.float32)
    there = memory.queue.allocate(logits.shape, np.float32, "logits")
    planes = memory.queue.allocate((1 + objects, *size), np.float32, "planes")
    memory.queue.upload(logits, there)
    last = logits.transpose(1, 2, 0)
    difference = 0.0
    for residual, expected in (
        (True, reference.correct(soft, reference.resize_soft(last, *size))),
        (False, reference.aggregate(reference.resize_soft(last, *size))),
    ):
        refine_planes(memory, there, planes, residual=residual)
        given = memory.queue.download(planes).transpose(1, 2, 0)
        difference = max(difference, float(np.abs(given - expected).max()))
    memory.shown = planes
    changed = float(
        np.mean(memory.labels(*size)[0] != reference.upsample_labels(expected, *size, align_corners=False)[0])
    )
    row = {"what": "parity of refinement", "with": "NumPy reference", "grid": f"{height} x {width}", "objects": objects}
    row |= {"masks_difference": float(f"{difference:.2g}"), "labels_changed": float(f"{changed:.2g}")}
    if difference > 1e-5 or changed >= 1e-3:
        raise SystemExit(f"parity is lost, so nothing is timed: {row}")
    return row


def repeat(step: Callable[[], object], wait: Callable[[], None], *, count: int, rounds: int = 5) -> float:
    """Milliseconds a step, the median of some rounds."""
    for _ in range(3):
        step()
    wait()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(count):
            step()
        wait()
        times.append(1e3 * (time.perf_counter() - began) / count)
    return statistics.median(times)


class FullCore:
    """A memory on the GPU with a full context, and what its next frame needs."""

    def __init__(self, height: int, width: int, channels: int, objects: int) -> None:
        self.memory = CudaMemory(height, width, channels, OPTIONS, align_corners=False)
        self.queue = CudaQueue(load_cuda_library(), 0)
        size = (8 * height, 8 * width)
        self.embedding = self.queue.allocate((height, width, channels), np.float32, "an embedding")
        self.labels = self.queue.allocate(size, np.uint8, "labels")
        self.confidence = self.queue.allocate(size, np.float32, "confidence")
        self.queue.upload(make_video(height, width, channels, 1)[0], self.embedding)
        self.memory.push_tensor(self.embedding)
        self.memory.annotate(mask_of(height, width, objects))
        for _ in range(OPTIONS.context + 1):
            self.memory.push_tensor(self.embedding)


def time_core(height: int, width: int, channels: int, objects: int, *, count: int) -> list[Row]:
    """Milliseconds of a frame's push, of push and labels, and of a frame's resizing, with a full context."""
    core = FullCore(height, width, channels, objects)
    queue, memory, size = core.queue, core.memory, (8 * height, 8 * width)
    frame, small = queue.allocate((*size, 3), np.uint8, "a frame"), queue.allocate((*size, 3), np.uint8, "a frame")
    steps: dict[str, Callable[[], None]] = {
        "match and read-out": lambda: memory.push_tensor(core.embedding),
        "match, read-out and labels": lambda: memory.frame(
            core.embedding, labels=core.labels, confidence=core.confidence
        ),
        "resize of a frame": lambda: queue.resize_bgr(frame, small),
    }
    planes = queue.allocate((1 + objects, *size), np.float32, "planes")
    logits = queue.allocate((objects, 2 * height, 2 * width), np.float32, "logits")
    queue.upload(np.zeros(logits.shape, np.float32), logits)
    steps |= {
        "soft masks drawn": lambda: draw_planes(memory, planes),
        "masks corrected by logits": lambda: refine_planes(memory, logits, planes, residual=True),
        "masks aggregated from logits": lambda: refine_planes(memory, logits, planes, residual=False),
        "masks kept": lambda: keep_planes(memory, planes),
    }
    rows: list[Row] = [
        {
            "what": name,
            "grid": f"{height} x {width}",
            "channels": channels,
            "objects": objects,
            "ms": round(repeat(step, queue.wait, count=count), 4),
        }
        for name, step in steps.items()
    ]
    return [*rows, {"what": "CUDA graphs recorded", "count": memory.recordings}]


STAGES = ("advance", "store", "match", "read-out", "labels")  # vosrt_cuda_stage of vosrt_cuda.h


def time_kernels(height: int, width: int, channels: int, objects: int, *, count: int) -> list[Row]:
    """Milliseconds of a frame's kernels by CUDA events, the median of some frames, and the floors of match."""
    core = FullCore(height, width, channels, objects)
    taken = [
        core.memory.time_frame(core.embedding, labels=core.labels, confidence=core.confidence) for _ in range(count)
    ]
    where = {"grid": f"{height} x {width}", "channels": channels, "objects": objects}
    ms = {name: round(statistics.median(each[i] for each in taken), 4) for i, name in enumerate(STAGES)}
    rows: list[Row] = [{"what": f"kernel {name}", **where, "ms": ms[name]} for name in STAGES]
    work = count_match(height, width, channels, context=OPTIONS.context, radius=OPTIONS.radius, down=4)
    rate = 2 * work["useful_gmac"] / ms["match"] if ms["match"] else 0.0
    rows[STAGES.index("match")] |= {"useful_tflop_s": round(rate, 1), "floors_at_published_peaks": floors(work)}
    return rows


@dataclass(frozen=True, kw_only=True)
class Way:
    """How frames go through a stream.

    Attributes:
        stay: they are on the GPU and labels stay there; otherwise both are in host memory.
        ahead: a frame is queued before the labels of the last one are waited for.
        recorded: the network is recorded, with the memory's work where streams take whole frames (VOSRT_CUDA_GRAPH).
    """

    stay: bool = False
    ahead: bool = False
    recorded: bool = True

    def __str__(self) -> str:
        where = "stay on the GPU" if self.stay else "come down a frame later" if self.ahead else "are waited for"
        return f"labels {where}, {'recorded' if self.recorded else 'queued piece by piece'}"


WAYS = tuple(
    Way(stay=stay, ahead=ahead, recorded=recorded)
    for recorded in (True, False)
    for stay, ahead in ((False, False), (False, True), (True, False))
)


def time_frames(
    size: int,
    objects: int,
    *,
    bundle: str,
    engine: str,
    frames: int,
    refine: int | str = "default",
    way: Way = WAYS[0],
    warm_up: int = OPTIONS.context + 5,
) -> Row:
    """Frames a second, one video.

    Args:
        size: short side of frames and working frames, in pixels.
        objects: in the video.
        bundle: a bundle's folder.
        engine: as for vos-run, or ``"torch"``.
        frames: to be timed.
        refine: rounds of refinement, or ``"off"``.
        way: how they go.
        warm_up: frames before, which are not timed.
    """
    height, width = size_of(size)
    clip = [render(height, width, t) for t in range(min(PERIOD, frames))]
    os.environ[CUDA_GRAPH_VARIABLE] = "1" if way.recorded else "0"
    try:
        model = load_model(bundle, engine)
    finally:
        del os.environ[CUDA_GRAPH_VARIABLE]
    stream = model.stream(size=size, refine=refine, labels_on="gpu" if way.stay else "host")
    stream.start(clip[0], mark_objects(height, width, objects))
    given: list[Any] = [to_gpu(frame) for frame in clip] if way.stay else clip

    def take(count: int) -> None:
        pending: list[PendingStep] = []
        for t in range(count):
            pending.append(stream.submit(given[t % len(clip)]))
            if len(pending) > way.ahead:
                result = pending.pop(0).result()
        for each in pending:
            result = each.result()
        if result.labels_tensor is not None:
            download(result.labels_tensor)  # nothing was waited for until now

    take(warm_up)
    began = time.perf_counter()
    take(frames)
    fps = frames / (time.perf_counter() - began)
    description = model.describe()
    engines = {role: f"{each['name']} {each['precision']}" for role, each in description["engines"].items()}
    return {
        "what": "frames",
        "way": str(way),
        "refine": "off" if model.manifest.masks is None else refine,
        "size": size,
        "objects": objects,
        "bundle": description["bundle"],
        "engine": engines["encoder"],
        **({"mask_engines": engines["decoder"]} if "decoder" in engines else {}),
        "fps": round(fps, 1),
    }


def load_model(bundle: str, engine: str) -> Model:
    """A bundle on the GPU; the engine ``"torch"`` is this folder's."""
    if engine == "torch":
        from torch_engine import torch_model

        return torch_model(bundle)
    return Model.load(bundle, engine=engine, device="cuda")


def to_gpu(frame: U8Array) -> DeviceTensor:
    """A frame in memory of the GPU, on a stream of its own."""
    queue = CudaQueue(load_cuda_library(), 0)
    tensor = queue.allocate(frame.shape, np.uint8, "a frame")
    queue.upload(frame, tensor)
    return replace(tensor, owner=(queue, tensor))


def time_refined(size: int, objects: int, *, bundle: str | None, engine: str, frames: int) -> list[Row]:
    """Frames a second with a mask-embedding bundle: propagated only, and with no and two rounds of refinement.

    Masks stay on the GPU where ``mask_engines`` are "cuda"; on "cpu" they are refined by way of the host.

    Args:
        size: as for `time_frames`.
        objects: likewise.
        bundle: likewise; None exports an untrained one.
        engine: likewise.
        frames: likewise.
    """
    with tempfile.TemporaryDirectory() as folder:
        if bundle is None:
            from untrained import export_untrained_masks

            bundle = str(export_untrained_masks(Path(folder)))
        given = {"bundle": bundle, "engine": engine, "frames": frames}
        return [
            time_frames(size, objects, refine=refine, way=Way(stay=stay), **given)
            for stay in (False, True)
            for refine in ("off", 0, 2)
        ]


def time_torch(height: int, width: int, channels: int, *, count: int) -> list[Row]:
    """The dense propagation in PyTorch on the same GPU, plain and compiled, and the bf16 GEMM rate."""
    import torch
    from dense import cells_outside, propagate

    if not torch.cuda.is_available():
        return [{"what": "dense PyTorch", "why_not": f"torch {torch.__version__} sees no GPU; install a CUDA build"}]
    cells, slots = height * width, 1 + OPTIONS.context
    with torch.inference_mode():
        query = torch.nn.functional.normalize(torch.randn(cells, channels, device="cuda"), dim=1)
        keys = torch.nn.functional.normalize(torch.randn(slots * cells, channels, device="cuda"), dim=1)
        labels = torch.rand(slots * cells, 2, device="cuda")
        outside = cells_outside(height, width, OPTIONS.radius).cuda()
        compiled = torch.compile(propagate, dynamic=False)
        side = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        steps: dict[str, Callable[[], object]] = {
            "dense PyTorch, fp32": lambda: propagate(query, keys, labels, outside, OPTIONS),
            "dense PyTorch, torch.compile": lambda: compiled(query, keys, labels, outside, OPTIONS),
        }
        where = {"grid": f"{height} x {width}", "channels": channels, "objects": 1}
        rows: list[Row] = []
        for name, step in steps.items():
            took = repeat(step, torch.cuda.synchronize, count=count)
            rows.append({"what": name, **where, "ms": round(took, 4)})
        took = repeat(lambda: side @ side, torch.cuda.synchronize, count=10)
        return [*rows, {"what": "bf16 GEMM", "side": 8192, "tflop_s": round(2 * 8192**3 / took / 1e9, 1)}]


def time_cutie(size: int, objects: int, *, frames: int) -> Row:
    """Cutie-small in fp16 on the same GPU."""
    import torch
    from peer import open_cutie

    height, width = size_of(size)
    clip = [render(height, width, t) for t in range(min(PERIOD, frames))]
    given = {"threads": 1, "objects": objects}
    mask = mark_objects(height, width, objects)
    segment, _ = open_cutie(clip, mask, given, model="small", bf16=True, device="cuda")
    took = repeat(lambda: segment(clip[1]), torch.cuda.synchronize, count=frames, rounds=3)
    return {"what": "Cutie-small, fp16", "size": size, "objects": objects, "fps": round(1e3 / took, 1)}


def attempt(measure: Callable[[], list[Row]], what: str) -> list[Row]:
    """Measure, or say why not: a peer that is not there must not end the run."""
    try:
        return measure()
    except Exception as error:  # peers raise what they like
        return [{"what": what, "why_not": " ".join(f"{type(error).__name__}: {error}".split())[:300]}]


def check_torch(bundle: str) -> Row:
    """The engine in PyTorch against the bundle's graph: labels of a small clip by both."""
    height, width = size_of(96)
    clip = [render(height, width, t) for t in range(4)]
    labels = []
    for model in (load_model(bundle, "torch"), Model.load(bundle, engine="cpu", device="cuda")):
        with model.stream() as stream:
            first = stream.start(clip[0], mark_objects(height, width, 2))
            labels.append([first.labels, *(stream.step(frame).labels for frame in clip[1:])])
    differ = float(np.mean([one != other for one, other in zip(*labels, strict=True)]))
    if differ > 0.001:
        raise SystemExit(f"the engine in PyTorch changes {differ:.2%} of the labels; expected up to 0.1 %")
    return {"what": "engine in PyTorch", "labels that differ": f"{differ:.4%}"}


def show(rows: list[Row]) -> None:
    """One line each."""
    for row in rows:
        print(
            " | ".join(f"{name}: {value}" if name != "what" else str(value) for name, value in row.items()), flush=True
        )


def measure(options: argparse.Namespace) -> None:
    """Everything that needs a GPU."""
    gpu = load_cuda_library().device(0)
    toy = options.toy
    rows = [check_parity(12, 20, 64, twin=True, options=PropagationOptions(context=3))]
    rows.append(check_refinement(12, 20, 3))
    if not toy:
        rows += [check_parity(60, 107, channels, twin=False, options=OPTIONS) for channels in (512, 128)]
    show(rows)

    def add(more: list[Row]) -> None:
        show(more)
        rows.extend(more)

    grids = [(12, 20)] if toy else [(60, 107), (135, 240)]
    for height, width in grids:
        for channels in (64,) if toy else (512, 256, 128):
            for objects in (1, 5):
                add(time_core(height, width, channels, objects, count=3 if toy else 100))
                add(time_kernels(height, width, channels, objects, count=3 if toy else 50))
    add(attempt(lambda: time_torch(*grids[0], 64 if toy else 512, count=3 if toy else 10), "dense PyTorch"))
    for size in (96,) if toy else (480, 1080):
        for objects in (1, 5):

            def frames(size: int = size, objects: int = objects) -> list[Row]:
                given = {"bundle": options.bundle, "engine": options.engine, "frames": 3 if toy else 200}
                return [time_frames(size, objects, way=way, **given) for way in WAYS]

            def refined(size: int = size, objects: int = objects) -> list[Row]:
                given = {"bundle": options.mask_bundle, "engine": options.engine, "frames": 3 if toy else 20}
                return time_refined(size, objects, **given)

            add(attempt(frames, f"frames at {size}p"))
            add(attempt(refined, f"refined frames at {size}p"))

    def many() -> list[Row]:
        model = load_model(options.bundle, options.engine)
        counts, seconds = ((1, 4), 0.1) if toy else ((1, 4, 16), 10)
        return measure_streams(model, counts, size=96 if toy else 480, objects=1, seconds=seconds)

    add(attempt(many, "many streams"))
    if not toy:
        add(attempt(lambda: [time_cutie(480, 1, frames=50)], "Cutie-small, fp16"))
        print(write("gpu", rows, gpu=vars(gpu)))


def main() -> None:
    """Parse options; check on emulated kernels, or measure on the GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", action="store_true", help="build libvosrt_cuda first")
    parser.add_argument("--toy", action="store_true", help="a tiny problem, nothing written")
    parser.add_argument("--check", action="store_true", help="parity on emulated kernels, no GPU needed")
    parser.add_argument("--bundle", default="default", help="folder made by vos-export")
    parser.add_argument("--mask-bundle", help="of the family mask-embedding; without one, an untrained one is exported")
    parser.add_argument("--engine", default="auto", help="as for vos-run, or torch")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vosrt-gpu-"))
    try:
        if options.check:
            library = os.environ.get("VOSRT_CUDA_EMULATED_LIBRARY")
            os.environ[LIBRARY_VARIABLE] = library or str(build(folder, emulated=True))
            show([check_parity(6, 9, 40, twin=True, options=PropagationOptions(context=2, radius=3))])
            show([check_refinement(6, 9, 3)])
            given = {"bundle": options.bundle, "engine": "fake", "frames": 2, "warm_up": 1}
            show([time_frames(64, 1, way=way, **given) for way in WAYS if not way.stay])
            show([check_torch(options.bundle)])
            return
        if options.build:
            os.environ[LIBRARY_VARIABLE] = str(build(folder, emulated=False))
        measure(options)
    except VosrtError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
