"""What `benchmarks.kernels.gpu` measures: each part is a process of its own, so that none takes another one down.

    python -m benchmarks.kernels.gpu_parts PART ROWS '{"toy": true, …}'

A part appends its rows to the file ROWS as it goes, so that those before a crash or a time limit count. Parity has to
hold: similarities differ from the NumPy twin's (at a toy size) and the processor's fp32 core's (at 480p) by at most
1e-2 of the largest, fewer than 0.1 % of the labels change; refined masks are within 1e-5 of the NumPy reference's.
Steps are queued behind each other and the clock stops when the GPU has finished.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kernels.cuda import count_match, floors
from benchmarks.scenes.embeddings import make_video
from benchmarks.stream.many import measure as measure_streams
from vosrt import Model
from vosrt.arrays import DeviceTensor
from vosrt.bench.clip import mark_objects, render, size_of
from vosrt.core import reference
from vosrt.core.memory import Memory, create_memory
from vosrt.core.reference import NumpyMemory
from vosrt.cuda.device import load_cuda_library
from vosrt.cuda.memory import CudaMemory
from vosrt.cuda.planes import draw_planes, keep_planes, refine_planes
from vosrt.cuda.runtime import download, open_queue
from vosrt.engines.tensorrt import CUDA_GRAPH_VARIABLE
from vosrt.stream import PendingStep
from vosrt.types import PropagationOptions, U8Array

OPTIONS = PropagationOptions()
TOY_OPTIONS = PropagationOptions(context=2, radius=3)
# What `default` and `fast` add, with kernels of its own for calibration and motion.
ADDED: dict[str, Any] = {
    "top_k": 20, "centring": 0.8, "sharpness": 1.5, "object_bias": 0.1, "calibration": 2, "motion": 0.2, "parts": 2
}  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a part is told.

    Attributes:
        toy: a tiny problem, on whatever stands in for a GPU.
        engine: as for vos-run, or ``"torch"``.
    """

    toy: bool = False
    engine: str = "torch"


class LostParityError(Exception):
    """Results differ by more than is allowed."""


def mask_of(height: int, width: int, objects: int) -> U8Array:
    """Objects at eight times the grid's size."""
    return mark_objects(8 * height, 8 * width, objects)


def check_parity(height: int, width: int, channels: int, *, twin: bool, options: PropagationOptions) -> Row:
    """Compare a few frames, each from the same memory, with the NumPy twin or the processor's fp32 core.

    Raises:
        LostParityError: similarities or labels differ by more than is allowed.
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
        similarity = max(similarity, float(np.nanmax(np.abs(ours - theirs)) / np.nanmax(np.abs(theirs))))
        size = (8 * height, 8 * width)
        changed.append(float(np.mean(given.labels(*size)[0] != expected.labels(*size)[0])))
        given.set_soft_masks(expected.soft_masks())
    row = {
        "what": "parity",
        "with": ("NumPy twin" if twin else "processor, fp32") + (", with motion" if options.motion else ""),
        "grid": f"{height} x {width}",
        "channels": channels,
        "similarity_difference": float(f"{similarity:.2g}"),
        "labels_changed": float(f"{max(changed):.2g}"),
    }
    if similarity > 1e-2 or max(changed) >= 1e-3:
        raise LostParityError(str(row))
    return row


def check_refinement(height: int, width: int, objects: int) -> Row:
    """Compare masks that logits refine on the GPU, and their labels, with the NumPy reference.

    Raises:
        LostParityError: they differ.
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
    on_gpu = memory.queue.allocate(logits.shape, np.float32, "logits")
    planes = memory.queue.allocate((1 + objects, *size), np.float32, "planes")
    memory.queue.upload(logits, on_gpu)
    last = logits.transpose(1, 2, 0)
    difference = 0.0
    for residual, expected in (
        (True, reference.correct(soft, reference.resize_soft(last, *size))),
        (False, reference.aggregate(reference.resize_soft(last, *size))),
    ):
        refine_planes(memory, on_gpu, planes, residual=residual)
        given = memory.queue.download(planes).transpose(1, 2, 0)
        difference = max(difference, float(np.abs(given - expected).max()))
    memory.show(planes)
    changed = float(
        np.mean(memory.labels(*size)[0] != reference.upsample_labels(expected, *size, align_corners=False)[0])
    )
    row = {"what": "parity of refinement", "with": "NumPy reference", "grid": f"{height} x {width}", "objects": objects}
    row |= {"masks_difference": float(f"{difference:.2g}"), "labels_changed": float(f"{changed:.2g}")}
    if difference > 1e-5 or changed >= 1e-3:
        raise LostParityError(str(row))
    return row


class Energy:
    """Joules that the GPU used since this was made; the driver counts them on data centre GPUs and newer cards."""

    def __init__(self) -> None:
        self._library: Any = None
        with suppress(OSError, AttributeError):
            library, handle = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
            if library.nvmlInit_v2() == 0 and library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) == 0:
                self._library, self._handle = library, handle
        self._began = self._millijoules()

    def per(self, count: int) -> dict[str, float]:
        """Joules for each of ``count`` things, as part of a row; nothing where the driver does not count."""
        now = self._millijoules()
        return {} if now is None or self._began is None else {"joules": round((now - self._began) / 1e3 / count, 4)}

    def _millijoules(self) -> int | None:
        total = ctypes.c_ulonglong()
        if self._library is None:
            return None
        failed = self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(total))
        return None if failed else total.value


def make_clip(size: int) -> list[U8Array]:
    """Frames u8 [H, W, 3] of the rendered scene, forward and back, so that they repeat without a jump."""
    height, width = size_of(size)
    ahead = [render(height, width, t) for t in range(8)]
    return [*ahead, *ahead[-2:0:-1]]


def repeat(step: Callable[[], object], wait: Callable[[], None], *, count: int) -> float:
    """Milliseconds a step, the median of five rounds."""
    for _ in range(3):
        step()
    wait()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(count):
            step()
        wait()
        times.append(1e3 * (time.perf_counter() - began) / count)
    return statistics.median(times)


class FullCore:
    """A memory on the GPU with a full context, and what its next frame needs."""

    def __init__(self, height: int, width: int, channels: int, objects: int, options: PropagationOptions) -> None:
        self.memory = CudaMemory(height, width, channels, options, align_corners=False)
        self.queue = open_queue(0)
        size = (8 * height, 8 * width)
        self.embedding = self.queue.allocate((height, width, channels), np.float32, "an embedding")
        self.labels = self.queue.allocate(size, np.uint8, "labels")
        self.confidence = self.queue.allocate(size, np.float32, "confidence")
        self.queue.upload(make_video(height, width, channels, 1)[0], self.embedding)
        self.memory.push_tensor(self.embedding)
        self.memory.annotate(mask_of(height, width, objects))
        for _ in range(options.context + 1):
            self.memory.push_tensor(self.embedding)


def time_core(
    height: int, width: int, channels: int, objects: int, options: PropagationOptions, *, count: int
) -> list[Row]:
    """Milliseconds of a frame's push, of push and labels, and of a frame's resizing, with a full context."""
    core = FullCore(height, width, channels, objects, options)
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


def time_kernels(
    height: int, width: int, channels: int, objects: int, options: PropagationOptions, *, count: int
) -> list[Row]:
    """Milliseconds of a frame's kernels by CUDA events, the median of some frames, and the floors of match."""
    core = FullCore(height, width, channels, objects, options)
    taken = [
        core.memory.time_frame(core.embedding, labels=core.labels, confidence=core.confidence) for _ in range(count)
    ]
    where = {"grid": f"{height} x {width}", "channels": channels, "objects": objects}
    added = ", with motion" if options.motion else ""  # advance then settles and calibrates, read-out moves
    ms = {name: round(statistics.median(each[i] for each in taken), 4) for i, name in enumerate(STAGES)}
    rows: list[Row] = [{"what": f"kernel {name}{added}", **where, "ms": ms[name]} for name in STAGES]
    work = count_match(height, width, channels, context=options.context, radius=options.radius, down=4)
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
) -> Row:
    """Frames a second of one video, behind as many frames as the memory holds.

    Args:
        size: short side of frames and working frames, in pixels.
        bundle: a bundle's folder or name, or ``"paper"``.
        engine: as for vos-run, or ``"torch"``.
        refine: rounds of refinement, or ``"off"``.
    """
    clip = make_clip(size)
    model = load_model(bundle, engine, recorded=way.recorded)
    stream = model.stream(size=size, refine=refine, labels_on="gpu" if way.stay else "host")
    stream.start(clip[0], mark_objects(*clip[0].shape[:2], objects))
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

    take(min(frames, OPTIONS.context + 5))
    energy, began = Energy(), time.perf_counter()
    take(frames)
    fps = frames / (time.perf_counter() - began)
    description = model.describe()
    engines = {role: f"{each['name']} {each['precision']}" for role, each in description["engines"].items()}
    refused = [each.refused for each in model._engines.values() if getattr(each, "refused", "")]
    return {
        "what": "frames",
        "way": str(way),
        "refine": "off" if model.manifest.masks is None else refine,
        "size": size,
        "objects": objects,
        "bundle": bundle,
        "engine": engines["encoder"],
        **({"mask_engines": engines["decoder"]} if "decoder" in engines else {}),
        "fps": round(fps, 1),
        **energy.per(frames),
        **({"not_recorded": refused[0]} if refused else {}),
    }


def load_model(bundle: str, engine: str, *, recorded: bool = True) -> Model:
    """A bundle on the GPU; the engine ``"torch"`` is this folder's."""
    if engine == "torch":
        from benchmarks.kernels.torch_engine import torch_model

        return torch_model(bundle, recorded=recorded)
    os.environ[CUDA_GRAPH_VARIABLE] = "1" if recorded else "0"
    try:
        return Model.load(bundle, engine=engine, device="cuda")
    finally:
        del os.environ[CUDA_GRAPH_VARIABLE]


def to_gpu(frame: U8Array) -> DeviceTensor:
    """A frame in memory of the GPU, on a stream of its own."""
    queue = open_queue(0)
    tensor = queue.allocate(frame.shape, np.uint8, "a frame")
    queue.upload(frame, tensor)
    return replace(tensor, owner=(queue, tensor))


def time_dense(size: int, objects: int, kind: str, *, compiled: bool, frames: int, device: str) -> Row:
    """Whole frames of the paper's network and dense propagation in PyTorch, on the same GPU.

    Args:
        size: as for `time_frames`.
        objects: likewise.
        kind: of the affinities, a name of PyTorch's; networks are in fp16 on a GPU.
        compiled: network and propagation by ``torch.compile``.
        device: ``"cuda"``, or ``"cpu"`` for a toy.
    """
    import torch

    from benchmarks.kernels.dense import DenseTracker, propagate
    from benchmarks.kernels.torch_engine import paper_network

    _, network = paper_network(torch.device(device))
    to = getattr(torch, kind)

    def encode(frame: Any) -> Any:
        return network({"frames": frame})["embedding"].to(to)

    def step(query: Any, keys: Any, labels: Any, outside: Any, options: PropagationOptions) -> Any:
        return propagate(query, keys, labels.to(to), outside, options).float()

    def compile_it(function: Any) -> Any:
        return torch.compile(function, dynamic=False, backend="inductor" if device == "cuda" else "eager")

    given = [torch.from_numpy(frame).to(device) for frame in make_clip(size)]
    tracker = DenseTracker(
        *(encode, OPTIONS, step) if not compiled else (compile_it(encode), OPTIONS, compile_it(step))
    )
    mask = mark_objects(*given[0].shape[:2], objects)
    tracker.start(given[0], torch.from_numpy(mask).to(device), objects, device=device)
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    with torch.inference_mode():
        for t in range(3):
            tracker.step(given[t])
        wait()
        energy, began = Energy(), time.perf_counter()
        for t in range(frames):
            tracker.step(given[t % len(given)])
        wait()
    fps = frames / (time.perf_counter() - began)
    name = f"dense PyTorch, {kind}{', torch.compile' if compiled else ''}"
    return {
        "what": "frames",
        "peer": name,
        "size": size,
        "objects": objects,
        "fps": round(fps, 1),
        **energy.per(frames),
    }


def time_peer(peer: str, size: int, objects: int, *, frames: int, device: str) -> Row:
    """Frames a second of another method that is installed, on the same GPU."""
    import torch

    from benchmarks.peers.peer import open_cutie, open_sam

    clip, given = make_clip(size), {"threads": 1, "objects": objects}
    clip = [clip[t % len(clip)] for t in range(frames + 4)]
    mask = mark_objects(*clip[0].shape[:2], objects)
    if peer == "cutie":
        segment, _ = open_cutie(clip, mask, given, model="small", bf16=True, device=device)
    else:
        segment, _ = open_sam(clip, mask, given, device=device)
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    with torch.inference_mode(), torch.autocast(device, torch.float16 if device == "cuda" else torch.bfloat16):
        for t in range(1, 3):
            segment(clip[t])
        wait()
        energy, began = Energy(), time.perf_counter()
        for t in range(frames):
            segment(clip[t])
        wait()
    fps = frames / (time.perf_counter() - began)
    return {"what": "frames", "peer": PEERS[peer], "size": size, "objects": objects, "fps": round(fps, 1)} | energy.per(
        frames
    )


PEERS = {"cutie": "Cutie-small, fp16", "sam": "SAM 2.1-tiny, fp16"}


def check_torch(bundle: str) -> Row:
    """Labels of a small clip by the engine in PyTorch, and by the bundle's graph on the processor.

    Raises:
        LostParityError: they differ.
    """
    clip, labels = make_clip(96)[:3], []
    models = [load_model(bundle, "torch"), Model.load(bundle, engine="cpu", device="cuda")]
    for model in models:
        with model.stream() as stream:
            first = stream.start(clip[0], mark_objects(*clip[0].shape[:2], 2))
            labels.append([first.labels, *(stream.step(frame).labels for frame in clip[1:])])
    differ = float(np.mean([one != other for one, other in zip(*labels, strict=True)]))
    row = {"what": "parity of networks in PyTorch", "bundle": bundle, "labels_changed": float(f"{differ:.2g}")}
    if differ > (0.001 if models[0].describe()["engines"]["encoder"]["precision"] == "fp32" else 0.02):
        raise LostParityError(str(row))
    return row


# ---- the parts ----------------------------------------------------------------------------------------------


def parity(settings: Settings) -> Iterator[Callable[[], list[Row]]]:
    """Kernels against the NumPy twin and the processor's core; networks in PyTorch against ONNX Runtime."""
    yield lambda: [check_parity(6, 9, 40, twin=True, options=TOY_OPTIONS)]
    yield lambda: [check_parity(6, 9, 40, twin=True, options=replace(TOY_OPTIONS, **ADDED))]
    yield lambda: [check_refinement(6, 9, 3)]
    if settings.toy:
        return
    yield lambda: [check_parity(12, 20, 64, twin=True, options=PropagationOptions(context=3))]
    for channels, options in ((512, OPTIONS), (256, replace(OPTIONS, **ADDED)), (64, OPTIONS)):
        yield lambda channels=channels, options=options: [check_parity(60, 107, channels, twin=False, options=options)]


def networks(settings: Settings) -> Iterator[Callable[[], list[Row]]]:
    """Networks in PyTorch against ONNX Runtime on the processor."""
    for bundle in ("fast",) if settings.toy else ("default", "fast", "refined"):
        yield lambda bundle=bundle: [check_torch(bundle)]


def sanitized(settings: Settings) -> Iterator[Callable[[], list[Row]]]:
    """What compute-sanitizer looks at: every kernel of a frame, on small grids."""
    yield from parity(replace(settings, toy=True))
    yield lambda: [{"what": "compute-sanitizer", "found": "nothing"}]


def kernels(settings: Settings, height: int, width: int) -> Iterator[Callable[[], list[Row]]]:
    """Kernels beside their floors, pushes and labels with a full context."""
    height, width = (6, 9) if settings.toy else (height, width)
    count, options = (1, TOY_OPTIONS) if settings.toy else (50, OPTIONS)
    for channels in (40,) if settings.toy else (512, 256, 64):
        for objects in (1, 5) if channels > 256 else (1,):
            yield partial(time_kernels, height, width, channels, objects, options, count=count)
            yield partial(time_core, height, width, channels, objects, options, count=count)
    for objects in (1,) if settings.toy else (1, 5):
        channels = 40 if settings.toy else 256
        yield partial(time_kernels, height, width, channels, objects, replace(options, **ADDED), count=count)


def frames(settings: Settings, size: int) -> Iterator[Callable[[], list[Row]]]:
    """Whole frames of the bundles and the paper's network, in every way of going through a stream."""
    best = [way for way in WAYS if way.recorded and (way.stay or way.ahead)]
    plan = [(bundle, 1, way) for bundle in ("default", "paper", "fast") for way in best]
    plan += [("default", 1, way) for way in WAYS if way not in best]
    plan += [(bundle, 5, way) for bundle in ("default", "paper") for way in best]
    if settings.toy:
        plan = [("fast", 1, way) for way in (WAYS[0], *best)]
    for bundle, objects, way in plan:
        if bundle == "paper" and settings.engine != "torch":
            continue
        given = {"bundle": bundle, "engine": settings.engine, "frames": 2 if settings.toy else 200, "way": way}
        yield lambda objects=objects, given=given: [time_frames(64 if settings.toy else size, objects, **given)]


def refined(settings: Settings) -> Iterator[Callable[[], list[Row]]]:
    """Frames with masks that are propagated only, decoded, and refined twice."""
    for stay in (False, True):
        for refine in (2, 0, "off")[: 1 if settings.toy else None]:
            given = {"bundle": "refined", "engine": settings.engine, "frames": 2 if settings.toy else 50}
            way = Way(stay=stay)
            yield lambda refine=refine, way=way, given=given: [
                time_frames(64 if settings.toy else 480, 1, refine=refine, way=way, **given)
            ]


def streams(settings: Settings) -> Iterator[Callable[[], list[Row]]]:
    """1 to 16 streams of one model."""
    size, seconds = (64, 0.1) if settings.toy else (480, 2)
    for count in (2,) if settings.toy else (1, 4, 16):
        yield lambda count=count: measure_streams(
            load_model("fast" if settings.toy else "default", settings.engine),
            (count,),
            size=size,
            objects=1,
            seconds=seconds,
            rounds=1,
        )


def dense(settings: Settings) -> Iterator[Callable[[], list[Row]]]:
    """Dense PyTorch, plain and compiled, and the rate of its bf16 GEMM."""
    import torch

    device = "cpu" if settings.toy else "cuda"
    side = 256 if settings.toy else 8192

    def gemm() -> list[Row]:
        square = torch.randn(side, side, device=device, dtype=torch.bfloat16)
        took = repeat(lambda: square @ square, torch.cuda.synchronize if device == "cuda" else lambda: None, count=10)
        return [{"what": "bf16 GEMM", "side": side, "tflop_s": round(2 * side**3 / took / 1e9, 1)}]

    yield gemm
    for kind, compiled in (("float32", False), ("bfloat16", False), ("bfloat16", True)):
        for objects in (1,) if compiled or settings.toy else (1, 5):
            size, count = (64, 2) if settings.toy else (480, 10)
            yield lambda kind=kind, compiled=compiled, objects=objects, size=size, count=count: [
                time_dense(size, objects, kind, compiled=compiled, frames=count, device=device)
            ]


def peer(settings: Settings, name: str) -> Iterator[Callable[[], list[Row]]]:
    """Another method."""
    for size, objects in ((64, 1),) if settings.toy else ((480, 1), (480, 5), (1080, 1)):
        yield lambda size=size, objects=objects: [
            time_peer(name, size, objects, frames=2 if settings.toy else 30, device="cpu" if settings.toy else "cuda")
        ]


PARTS: dict[str, Callable[[Settings], Iterator[Callable[[], list[Row]]]]] = {
    "parity": parity,
    "networks": networks,
    "frames at 480p": partial(frames, size=480),
    "kernels at 480p": partial(kernels, height=60, width=107),
    "dense PyTorch": dense,
    "streams": streams,
    "frames at 1080p": partial(frames, size=1080),
    "kernels at 1080p": partial(kernels, height=135, width=240),
    "refined": refined,
    "Cutie": partial(peer, name="cutie"),
    "SAM 2.1": partial(peer, name="sam"),
    "memcheck": sanitized,
    "racecheck": sanitized,
    "synccheck": sanitized,
}


def main() -> None:
    """Do one part; exit with 1 where parity is lost."""
    part, path, settings = sys.argv[1], Path(sys.argv[2]), Settings(**json.loads(sys.argv[3]))
    warnings.simplefilter("ignore")
    if part not in ("dense PyTorch", "Cutie", "SAM 2.1"):
        load_cuda_library().device(0)
    lost = False
    with path.open("a") as file:
        for measure in PARTS[part](settings):
            try:
                rows = measure()
            except Exception as error:  # one measurement must not end the others, and peers raise what they like
                lost |= isinstance(error, LostParityError)
                rows = [{"what": part, "why_not": " ".join(f"{type(error).__name__}: {error}".split())[:300]}]
            for row in rows:
                print(json.dumps({"part": part, **row}), file=file, flush=True)
    raise SystemExit(int(lost))


if __name__ == "__main__":
    main()
