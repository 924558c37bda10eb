"""Refinement that stays on a GPU against that by way of the host, on emulated kernels and, if there is one, a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vosrt.bundle import EncoderSpec, MaskSpec
from vosrt.cuda_library import load_cuda_library
from vosrt.cuda_masks import draw_planes, keep_planes, refine_planes
from vosrt.cuda_memory import CudaMemory, CudaQueue, download
from vosrt.encoder import FrameEncoder
from vosrt.engines.base import EngineInfo, Input
from vosrt.engines.device import DeviceTensor
from vosrt.engines.fake import FakeEngine
from vosrt.errors import OptionError
from vosrt.graph_on_gpu import GraphOnGpu
from vosrt.ops import reference
from vosrt.refinement import Refiner
from vosrt.refinement_on_gpu import RefinerOnGpu
from vosrt.stream import Stream
from vosrt.types import F32Array, PropagationOptions, StepResult, U8Array

K, V = 40, 3
OPTIONS = PropagationOptions(context=2, radius=4)
Arrays = Mapping[str, NDArray[Any]]


# ---- kernels ---------------------------------------------------------------------------------------------


def memory_of(height: int, width: int, ids: list[int]) -> CudaMemory:
    """A memory some frames old with random soft masks; objects are marked in this order, two frames apart."""
    random = np.random.default_rng(height)
    memory = CudaMemory(height, width, K, OPTIONS)
    for object_id in ids:
        for _ in range(2):
            embedding = random.standard_normal((height, width, K))
            memory.push((embedding / np.linalg.norm(embedding, axis=-1, keepdims=True)).astype(np.float32))
        memory.annotate(np.full((height, width), object_id, np.uint8))
    soft = random.random((height, width, 1 + len(ids))) ** 4
    memory.set_soft_masks((soft / soft.sum(axis=-1, keepdims=True)).astype(np.float32))
    return memory


def put(memory: CudaMemory, array: F32Array) -> DeviceTensor:
    """An array, channels last, as planes on the memory's GPU."""
    planes = np.ascontiguousarray(array.transpose(2, 0, 1))
    tensor = memory.queue.allocate(planes.shape, np.float32, "planes")
    memory.queue.upload(planes, tensor)
    memory.queue.wait()
    return tensor


def get(memory: CudaMemory, planes: DeviceTensor) -> F32Array:
    """Planes, channels last, in host memory."""
    return memory.queue.download(planes).transpose(1, 2, 0)


SIZES = [((1, 1), (3, 2), [7]), ((5, 7), (33, 50), [9, 2, 5]), ((6, 9), (48, 72), [1, 2, 3, 4, 5, 6])]


@pytest.mark.parametrize(("grid", "size", "ids"), SIZES, ids=str)
def test_kernels_give_what_the_reference_gives(
    cuda_core: str, grid: tuple[int, int], size: tuple[int, int], ids: list[int]
) -> None:
    """Drawn, corrected, aggregated, taken back and labelled: soft masks within 1e-5, the same labels."""
    memory, random = memory_of(*grid, ids), np.random.default_rng(0)
    soft = memory.soft_masks()
    planes = put(memory, np.zeros((*size, 1 + len(ids)), np.float32))
    coarse = reference.resize_soft(soft, *size)
    draw_planes(memory, planes)
    np.testing.assert_allclose(get(memory, planes), coarse, atol=1e-6)

    quarter = (-(-size[0] // 4), -(-size[1] // 4))
    for scale in (3, 60):
        logits = (scale * random.standard_normal((*quarter, len(ids)))).astype(np.float32)
        refine_planes(memory, put(memory, logits), planes, residual=True)
        expected = reference.correct(coarse, reference.place(logits, 4, *size))
        np.testing.assert_allclose(get(memory, planes), expected, atol=1e-5)
    for scale, at in ((3, quarter), (2, (2, 3)), (3, size)):
        logits = (scale * random.standard_normal((*at, len(ids)))).astype(np.float32)
        refine_planes(memory, put(memory, logits), planes, residual=False)
        expected = reference.aggregate(reference.resize_soft(logits, *size))
        np.testing.assert_allclose(get(memory, planes), expected, atol=1e-5)
    sure = np.full((*quarter, len(ids)), -200, np.float32)
    sure[..., -1] = 200
    refine_planes(memory, put(memory, sure), planes, residual=False)
    np.testing.assert_allclose(get(memory, planes)[..., -1], 1, atol=1e-5)

    planes, order = put(memory, expected), np.array([0, *sorted(ids)], np.uint8)
    memory.shown = planes
    for other in (size, (40, 31)):
        index, confidence = reference.upsample_labels(expected, *other)
        labels, given = memory.labels(*other)
        np.testing.assert_array_equal(labels, order[index])
        np.testing.assert_allclose(given, confidence, atol=1e-6)
        means = {each: float(confidence[labels == each].mean()) if (labels == each).any() else 0 for each in ids}
        assert memory.mean_confidence == pytest.approx(means, abs=1e-5)
    keep_planes(memory, planes)
    np.testing.assert_allclose(memory.soft_masks(), reference.resize_soft(expected, *grid), atol=1e-6)


def test_planes_are_shown_until_the_memory_changes(cuda_core: str) -> None:
    """A new frame, an annotation and a removal have labels made of soft masks again."""
    memory = memory_of(5, 7, [1, 2])
    expected = memory.labels(20, 28)[0]
    planes = put(memory, np.ones((20, 28, 3), np.float32) * np.array([0, 1, 0], np.float32))
    memory.shown = planes
    assert (memory.labels(20, 28)[0] == 1).all()
    assert (download(memory.labels_there(20, 28)[0]) == 1).all()
    memory.shown = None
    np.testing.assert_array_equal(memory.labels(20, 28)[0], expected)
    changes: tuple[Callable[[], None], ...] = (
        lambda: memory.annotate(np.full((5, 7), 2, np.uint8)),
        lambda: memory.push(np.full((5, 7, K), K**-0.5, np.float32)),
        lambda: memory.remove(1),
    )
    for change in changes:
        memory.shown = planes
        change()
        assert memory.shown is None
    with pytest.raises(OptionError, match="logits are 4 x 7; a residual decoder's for frames of 20 x 28 are 5 x 7"):
        refine_planes(memory, put(memory, np.zeros((4, 7, 1), np.float32)), planes, residual=True)


# ---- streams ---------------------------------------------------------------------------------------------


class OnGpu:
    """Has a function of host arrays run on the GPU; a queued one overwrites its outputs with the next run's."""

    def __init__(self, function: Callable[[Arrays], Arrays], *, queued: bool = True) -> None:
        self.info = EngineInfo("tensorrt-direct" if queued else "cuda", "fp32", "", "for this test")
        self._function, self._queue = function, CudaQueue(load_cuda_library(), 0)
        self.stream = self._queue.stream if queued else None
        self._outputs: dict[tuple[str, tuple[int, ...]], DeviceTensor] = {}

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """On the host."""
        return dict(self._function(inputs))

    def run_on_device(self, inputs: Mapping[str, Input]) -> dict[str, DeviceTensor]:
        """Inputs of either kind."""
        here = {
            name: self._queue.download(each) if isinstance(each, DeviceTensor) else each
            for name, each in inputs.items()
        }
        there = {}
        for name, array in self.run(here).items():
            key = (name, array.shape)
            if key not in self._outputs or self.stream is None:
                self._outputs[key] = self._queue.allocate(array.shape, array.dtype, "an output")
            self._queue.upload(np.ascontiguousarray(array), self._outputs[key])
            there[name] = replace(self._outputs[key], stream=self.stream)
        self._queue.wait()
        return there


def encode(inputs: Arrays) -> Arrays:
    """Cells embedded by colour, and maps of what the frame shows."""
    frames = inputs["frames"]
    quarter = np.ascontiguousarray(frames[:, ::4, ::4].transpose(0, 3, 1, 2).astype(np.float32) / 255)
    embedding = FakeEngine(EncoderSpec(channels=K, feature="key")).run(inputs)["embedding"]
    return {"embedding": embedding, "res3": quarter[:, :, ::2, ::2].copy(), "res2": quarter}


def encode_masks(inputs: Arrays) -> Arrays:
    """Values f32 [M, h, w, V] that depend on everything: the mask, the context, the frame."""
    masks, frames = inputs["masks"], inputs["frames"]
    values = np.zeros((*masks[:, ::8, ::8].shape, V), np.float32)
    values[..., 0] = masks[:, ::8, ::8]
    values[..., 1] = inputs["context"][0].mean(axis=0) * (1 + masks[:, ::8, ::8])
    values[..., 2] = frames[0, ::8, ::8].mean(axis=-1) / 255
    return {"values": values}


def decode(inputs: Arrays) -> Arrays:
    """Logits f32 [M, h2, w2] that depend on everything."""
    read, shown = inputs["readout"], inputs["values"]
    cells = 5 * (read[..., 0] + shown[..., 0] - 0.9) + read[..., 1] - shown[..., 1] + inputs["res3"][0].mean(axis=0)
    res2 = inputs["res2"][0].mean(axis=0)
    fine = np.repeat(np.repeat(cells, 2, axis=1), 2, axis=2)[:, : res2.shape[0], : res2.shape[1]]
    return {"logits": (fine - res2 * 0.5).astype(np.float32)}


def refiner_of(spec: MaskSpec, rounds: int, *, there: bool, queued: bool = True) -> Refiner | RefinerOnGpu:
    """By way of the host, or where the memory is."""
    engines = OnGpu(encode_masks, queued=queued), OnGpu(decode, queued=queued)
    if not there:
        return Refiner(spec, *engines, OPTIONS, rounds)
    mask_encoder, decoder = GraphOnGpu(engines[0], "values", 0), GraphOnGpu(engines[1], "logits", 0)
    return RefinerOnGpu(spec, mask_encoder, decoder, OPTIONS, rounds)


def open_stream(spec: MaskSpec, rounds: int, *, there: bool, encoder_there: bool = True, queued: bool = True) -> Stream:
    """A stream whose memory is on the GPU."""
    encoder = FrameEncoder(
        EncoderSpec(channels=K, feature="key"), OnGpu(encode, queued=queued), device=0 if encoder_there else None
    )
    return Stream(encoder, OPTIONS, device="cuda", refiner=refiner_of(spec, rounds, there=there, queued=queued))


def check_same(given: Stream, expected: Stream, result: StepResult, other: StepResult) -> None:
    """Equal labels, soft masks and confidence within 1e-5."""
    np.testing.assert_allclose(given.soft_masks(), expected.soft_masks(), atol=1e-5)
    np.testing.assert_allclose(result.confidence, other.confidence, atol=1e-5)
    np.testing.assert_array_equal(result.labels, other.labels)
    assert result.object_ids == other.object_ids
    assert result.object_confidence == pytest.approx(other.object_confidence, abs=1e-5)


@pytest.mark.parametrize("feedback", [True, False], ids=["feedback", "shown alone"])
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "aggregated"])
@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_streams_are_those_by_way_of_the_host(
    cuda_core: str, tiny_clip: tuple[U8Array, U8Array], rounds: int, residual: bool, feedback: bool
) -> None:
    """With one object, then three, one of them removed, one marked anew; frames of odd sizes."""
    frames, masks = tiny_clip[0][:, :61, :93], tiny_clip[1][:, :61, :93]
    spec = MaskSpec(value_channels=V, context="res3", residual=residual, feedback=feedback)
    expected, given = (open_stream(spec, rounds, there=there) for there in (False, True))
    third = np.where((masks[2] == 0) & (np.arange(93) > 70), 3, 0)
    marks = {1: np.where(masks[1] == 1, 1, 0), 2: np.where(masks[2] == 2, 2, third), 5: np.where(masks[5] == 2, 2, 0)}
    refined = 0
    for t in range(6):
        other, result = (stream.step(frames[t], marks.get(t)) for stream in (expected, given))
        check_same(given, expected, result, other)
        refined += len(np.unique(result.labels)) > 1
        if t == 3:
            for stream in (expected, given):
                stream.remove(1)
            check_same(given, expected, given.result({}), expected.result({}))
    assert refined == 5
    for stream in (expected, given):
        stream.remove(2)
        stream.remove(3)
    check_same(given, expected, given.step(frames[0]), expected.step(frames[0]))


@pytest.mark.parametrize("queued", [True, False], ids=["engines that queue", "synchronous engines"])
@pytest.mark.parametrize("encoder_there", [True, False], ids=["encoder there", "encoder here"])
def test_any_engines(cuda_core: str, tiny_clip: tuple[U8Array, U8Array], queued: bool, encoder_there: bool) -> None:
    """Maps come from the GPU or from the host; engines queue their work or have done it when they return."""
    frames, masks = tiny_clip
    spec = MaskSpec(value_channels=V, context="res3", residual=True, feedback=False)
    expected = open_stream(spec, 2, there=False)
    given = open_stream(spec, 2, there=True, encoder_there=encoder_there, queued=queued)
    for t in range(4):
        mask = masks[t] if t == 0 else None
        other, result = (stream.step(frames[t], mask) for stream in (expected, given))
        check_same(given, expected, result, other)


def test_labels_of_refined_frames_may_stay_there(cuda_core: str, tiny_clip: tuple[U8Array, U8Array]) -> None:
    """The same labels; only an annotated frame's come by way of the host."""
    frames, masks = tiny_clip
    spec = MaskSpec(value_channels=V, context="res3", residual=True)
    here, there = open_stream(spec, 1, there=True), open_stream(spec, 1, there=True)
    there = Stream(there.encoder, OPTIONS, device="cuda", refiner=refiner_of(spec, 1, there=True), labels_on="gpu")
    for t in range(4):
        mask = masks[t] if t == 0 else None
        expected, result = here.step(frames[t], mask), there.step(frames[t], mask)
        assert result.labels_tensor is not None
        assert result.confidence_tensor is not None
        np.testing.assert_array_equal(download(result.labels_tensor), expected.labels)
        np.testing.assert_array_equal(download(result.confidence_tensor), expected.confidence)
