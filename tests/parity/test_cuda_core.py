"""The memory on a GPU against the NumPy twin, on emulated kernels and, where there is one, on a GPU."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.fakes.cuda import FakeCuda
from tests.fakes.emulated import EmulatedGpu
from tests.fakes.programs import program
from vosrt import Model
from vosrt.arrays import DeviceKind, DeviceTensor, adopt
from vosrt.bundle import EncoderSpec, MaskSpec
from vosrt.cli.run import main
from vosrt.core.abi import STRUCTS
from vosrt.core.library import new_struct
from vosrt.core.memory import Memory
from vosrt.core.native import resize_bgr
from vosrt.core.reference import NumpyMemory
from vosrt.cuda.device import CudaLibrary, load_cuda_library, parse_device
from vosrt.cuda.memory import CudaMemory
from vosrt.cuda.runtime import download, open_queue
from vosrt.encoder import Embedding, FrameEncoder
from vosrt.engines.base import EngineInfo, Input
from vosrt.engines.fake import FakeEngine
from vosrt.errors import InputError, MaskError, OptionError
from vosrt.refinement import Refinement
from vosrt.stream import Stream
from vosrt.stream_batch import step_all
from vosrt.types import F32Array, PropagationOptions, StepResult, U8Array

NATIVE = Path(__file__).resolve().parents[2] / "runtime" / "native"
Video = Callable[[int], list[F32Array]]
Mark = Callable[..., U8Array]
H, W, K = 9, 14, 40
OPTIONS = PropagationOptions(context=3, radius=4)


@pytest.mark.parametrize("shape", [(1, 32768), (32768, 1)])
def test_a_grid_that_is_too_long_is_refused(cuda_core: str, shape: tuple[int, int]) -> None:
    """Rows and columns are numbered with 15 bits: one more than fits is refused, the longest grid is taken."""
    grid = "{}x{}".format(*shape)
    with pytest.raises(InputError, match=f"a grid of {grid} cells is too long for a GPU; expected at most 32767"):
        CudaMemory(*shape, 1, PropagationOptions(context=0))
    height, width = (min(side, 32767) for side in shape)
    memory = CudaMemory(height, width, 1, PropagationOptions(context=0))
    memory.push(np.zeros((height, width, 1), np.float32))
    assert memory.soft_masks().shape[:2] == (height, width)


@pytest.mark.parametrize(
    ("options", "align_corners"),
    [(OPTIONS, False), *((PropagationOptions(context=2, radius=2, top_k=top_k), True) for top_k in (20, 33))],
    ids=str,
)
def test_it_gives_what_the_twin_gives(
    cuda_core: str, options: PropagationOptions, align_corners: bool, video: Video, mark: Mark
) -> None:
    """From the same memory, similarities agree within 1e-2 of their size, and labels but for 0.1 %."""
    twin, memory = (each(H, W, K, options, align_corners=align_corners) for each in (NumpyMemory, CudaMemory))
    changed = []
    for t, embedding in enumerate(video(6)):
        twin.push(embedding)
        memory.push(embedding)
        if t > 0:
            ours, theirs = memory.top_k(), twin.top_k()
            np.testing.assert_allclose(ours.similarity, theirs.similarity, rtol=1e-2, equal_nan=True)
            changed.append(memory.labels(8 * H, 8 * W)[0] != twin.labels(8 * H, 8 * W)[0])
        memory.set_soft_masks(twin.soft_masks())
        for frame, ids in ((0, (1, 2)), (3, (7,))):
            if t == frame:
                twin.annotate(mark(*ids))
                memory.annotate(mark(*ids))
        np.testing.assert_allclose(memory.soft_masks(), twin.soft_masks(), atol=1e-6)
        assert memory.object_ids == twin.object_ids
    assert np.mean(changed) < 1e-3
    for core in (twin, memory):
        core.remove(1)
    np.testing.assert_allclose(memory.soft_masks(), twin.soft_masks(), atol=1e-6)
    assert {name: memory.info[name] for name in ("objects", "references", "frames", "shape")} == {
        name: twin.info[name] for name in ("objects", "references", "frames", "shape")
    }


def test_frames_stay_on_the_gpu(cuda_core: str, video: Video, mark: Mark) -> None:
    """Embeddings that are there give, as arrays that are there, the labels of embeddings that came from the host."""
    pushed, queued = CudaMemory(H, W, K, OPTIONS), CudaMemory(H, W, K, OPTIONS)
    queue = open_queue(0)
    embedding = queue.allocate((H, W, K), np.float32, "an embedding")
    labels = queue.allocate((50, 70), np.uint8, "labels")
    confidence = queue.allocate((50, 70), np.float32, "confidence")
    totals = queue.allocate((256, 2), np.uint64, "totals")
    for t, array in enumerate(video(7)):
        pushed.push(array)
        queue.upload(array, embedding)
        queued.frame(embedding, labels=labels, confidence=confidence, totals=totals)
        expected = pushed.labels(50, 70)
        np.testing.assert_array_equal(queue.download(labels), expected[0])
        np.testing.assert_array_equal(queue.download(confidence), expected[1])
        sums = queue.download(totals)
        np.testing.assert_array_equal(sums[:, 1], np.bincount(expected[0].ravel(), minlength=256))
        means = np.bincount(expected[0].ravel(), weights=expected[1].ravel(), minlength=256)
        np.testing.assert_allclose(sums[:, 0] / 2**20, means, atol=3500 / 2**20)
        if t == 0:
            pushed.annotate(mark(1))
            queued.annotate(mark(1))
    assert queued.recordings == 1
    with pytest.raises(OptionError, match=re.escape(f"embedding is uint8 [50, 70]; expected float32 [{H}, {W}, {K}]")):
        queued.push_tensor(labels)


class NoEngine:
    """For a stream that is given embeddings."""

    info = EngineInfo("none", "fp32", "", "for this test")

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Not called."""
        raise AssertionError("a frame was encoded")


NO_FRAMES = FrameEncoder(EncoderSpec(channels=K, feature="key"), NoEngine())


class Foreign:
    """An array of another library."""

    def __init__(self, tensor: DeviceTensor, **interface: Any) -> None:
        self._tensor = tensor
        self.__cuda_array_interface__ = {**tensor.__cuda_array_interface__, **interface}


def test_arrays_of_other_libraries_are_taken_as_they_are(cuda_core: str, video: Video, mark: Mark) -> None:
    """An embedding that CuPy or PyTorch holds needs no copy; one that is not dense is refused."""
    queue, embeddings = open_queue(0), video(3)
    tensor = queue.allocate((H, W, K), np.float32, "an embedding")
    adopted = adopt(Foreign(tensor, strides=(4 * W * K, 4 * K, 4)))
    assert (adopted.pointer, adopted.stream, adopted.shape) == (tensor.pointer, tensor.stream, tensor.shape)
    stream, pushed = Stream(NO_FRAMES, OPTIONS, device="cuda"), CudaMemory(H, W, K, OPTIONS)
    for t, embedding in enumerate(embeddings):
        queue.upload(embedding, tensor)
        frame = Embedding(np.empty(0, np.float32), 8 * H, 8 * W, tensor=adopt(Foreign(tensor)))
        labels = stream.step(frame, mark(1) if t == 0 else None).labels
        pushed.push(embedding)
        if t == 0:
            pushed.annotate(mark(1))
        else:
            np.testing.assert_array_equal(labels, pushed.labels(8 * H, 8 * W)[0])
    with pytest.raises(OptionError, match="pass a contiguous copy"):
        adopt(Foreign(tensor, strides=(4, 4, 4)))
    with pytest.raises(OptionError, match="expected an array on a GPU"):
        adopt(embeddings[0])


def test_frames_are_resized_there(cuda_core: str) -> None:
    """The bytes are those of the processor."""
    queue = open_queue(0)
    image = np.random.default_rng(0).integers(0, 256, (23, 31, 3), dtype=np.uint8)
    source, target = queue.allocate(image.shape, np.uint8, "a frame"), queue.allocate((11, 40, 3), np.uint8, "a frame")
    queue.upload(image, source)
    queue.resize_bgr(source, target)
    np.testing.assert_array_equal(queue.download(target), resize_bgr(image, 11, 40))


class EngineOnGpu:
    """An engine that queues its work and overwrites its output with the next frame's, as TensorRT's do."""

    info = EngineInfo("tensorrt", "fp16", "", "for this test")
    device: DeviceKind = "cuda"

    def __init__(self, embeddings: list[F32Array]) -> None:
        self._queue = open_queue(0)
        count = embeddings[0].size // (H * W * K)
        self._output = self._queue.allocate((count, H, W, K), np.float32, "an output")
        self._embeddings = iter(embeddings)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Not on a GPU."""
        raise AssertionError("the embedding came to the host")

    def run_on_device(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, DeviceTensor]:
        """Return the next embedding and ignore the frame."""
        self._queue.upload(next(self._embeddings), self._output)
        return {"embedding": self._output}


def test_a_stream_takes_embeddings_from_an_engine_on_the_gpu(cuda_core: str, video: Video, mark: Mark) -> None:
    """It also does where frames are encoded ahead; memory of earlier embeddings is used again."""
    embeddings = video(6)
    encoder = FrameEncoder(EncoderSpec(channels=K, feature="key"), EngineOnGpu(embeddings), device=0)
    frame = np.zeros((8 * H, 8 * W, 3), np.uint8)
    stream = Stream(encoder, OPTIONS, device="cuda")
    memory = CudaMemory(H, W, K, OPTIONS)
    ahead = [encoder.encode(frame), encoder.encode(frame)]
    pointers = set()
    for t, embedding in enumerate(embeddings):
        taken = ahead.pop(0)
        assert taken.tensor is not None
        pointers.add(taken.tensor.pointer)
        result = stream.step(taken, mark(1) if t == 0 else None)
        del taken
        memory.push(embedding)
        if t == 0:
            memory.annotate(mark(1))
        else:
            np.testing.assert_array_equal(result.labels, memory.labels(8 * H, 8 * W)[0])
        if t + 2 < len(embeddings):
            ahead.append(encoder.encode(frame))
    assert len(pointers) <= 4


def test_a_batch_stays_on_the_gpu(cuda_core: str, video: Video, mark: Mark) -> None:
    """Each stream takes its own part of what one run left there."""
    embeddings = video(6)
    engine = EngineOnGpu([np.concatenate([a[None], b[None]]) for a, b in pairwise(embeddings)])
    encoder = FrameEncoder(EncoderSpec(channels=K, feature="key"), engine, device=0)
    frame = np.zeros((8 * H, 8 * W, 3), np.uint8)
    streams = [Stream(encoder, OPTIONS, device="cuda") for _ in range(2)]
    memories = [CudaMemory(H, W, K, OPTIONS) for _ in range(2)]
    for t in range(4):
        outcomes = step_all(streams, [frame, frame], [mark(1, 2)] * 2 if t == 0 else None)
        for i, (memory, outcome) in enumerate(zip(memories, outcomes, strict=True)):
            assert isinstance(outcome, StepResult), outcome
            memory.push(embeddings[t + i])
            if t == 0:
                memory.annotate(mark(1, 2))
            else:
                np.testing.assert_array_equal(outcome.labels, memory.labels(8 * H, 8 * W)[0])


class ColoursOnGpu:
    """An engine on the GPU that takes frames there or from the host; embeds cells by colour, with a map beside it."""

    info = EngineInfo("tensorrt", "fp16", "", "for this test")
    device: DeviceKind = "cuda"

    def __init__(self, *, maps: bool = False, queued: bool = True) -> None:
        self._queue = open_queue(0)
        self.stream = self._queue.stream if queued else None
        self._fake, self._maps = FakeEngine(EncoderSpec(channels=K, feature="key")), maps
        self._outputs: dict[tuple[int, ...], DeviceTensor] = {}
        self.saw: list[U8Array] = []

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The same on the processor."""
        frames = inputs["frames"]
        self.saw.append(frames.copy())
        embedding = self._fake.run(inputs)["embedding"]
        quarter = frames[:, ::4, ::4].transpose(0, 3, 1, 2).astype(np.float32)
        maps = {"res3": quarter[:, :, ::2, ::2].copy(), "res2": quarter.copy()} if self._maps else {}
        return {"embedding": embedding, **maps}

    def run_on_device(self, inputs: Mapping[str, Input]) -> dict[str, DeviceTensor]:
        """Outputs of a queued run are overwritten by the next of this shape."""
        given = inputs["frames"]
        if isinstance(given, DeviceTensor):
            given = self._queue.download(given)
        return {name: self._put(array) for name, array in self.run({"frames": given}).items()}

    def _put(self, array: NDArray[Any]) -> DeviceTensor:
        if array.shape not in self._outputs or self.stream is None:
            self._outputs[array.shape] = self._queue.allocate(array.shape, array.dtype, "an output")
        self._queue.upload(array, self._outputs[array.shape])
        return replace(self._outputs[array.shape], stream=self.stream)


class Lent:
    """An array of another library that speaks DLPack only; its stream is the default one."""

    def __init__(self, tensor: DeviceTensor) -> None:
        self._tensor = replace(tensor, stream=None)
        self.asked: list[int | None] = []

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        """A capsule."""
        self.asked.append(stream)
        return self._tensor.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        """Of the GPU."""
        return self._tensor.__dlpack_device__()


@pytest.mark.parametrize("queued", [True, False], ids=["its own stream", "synchronous"])
def test_frames_on_the_gpu_are_encoded_there(cuda_core: str, queued: bool) -> None:
    """One or several, resized or not, as every library shows them, embed as the same frames in host memory."""
    engine = ColoursOnGpu(queued=queued)
    encoder = FrameEncoder(EncoderSpec(channels=K, feature="key"), engine, device=0)
    queue, random = open_queue(0), np.random.default_rng(0)
    for size in (None, 48):
        frames = [random.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(4)]
        tensors = [queue.allocate(frame.shape, np.uint8, "a frame") for frame in frames]
        for frame, tensor in zip(frames, tensors, strict=True):
            queue.upload(frame, tensor)
        shown: list[Any] = [tensors[0], Foreign(tensors[1]), Lent(tensors[2]), Foreign(tensors[3], stream=None)]
        ours = [*encoder.encode_each(shown, [size] * 4), *(encoder.encode(each, size) for each in shown)]
        theirs = [encoder.encode(frame, size) for frame in frames]
        assert shown[2].asked == [1, 1], "brought to the default stream"
        for embedding, expected in zip(ours, [*theirs, *theirs], strict=True):
            assert isinstance(embedding, Embedding)
            assert embedding.tensor is not None
            assert expected.tensor is not None
            np.testing.assert_array_equal(download(embedding.tensor), download(expected.tensor))
            assert (embedding.frame_height, embedding.frame_width) == (64, 96)
    np.testing.assert_array_equal(engine.saw[0], np.stack([resize_bgr(each, 64, 96) for each in engine.saw[0]]))
    assert [len(each) for each in engine.saw[:2]] == [4, 1]


def test_streams_of_frames_on_the_gpu(cuda_core: str, tiny_clip: tuple[U8Array, U8Array]) -> None:
    """Frames u8 on the GPU give labels, alone and beside a stream from the host."""
    frames, masks = tiny_clip
    encoder = FrameEncoder(EncoderSpec(channels=K, feature="key"), ColoursOnGpu(), device=0)
    there, host = (Stream(encoder, OPTIONS, device="cuda") for _ in range(2))
    queue = open_queue(0)
    tensor = queue.allocate(frames[0].shape, np.uint8, "a frame")
    for t in range(3):
        queue.upload(frames[t], tensor)
        outcomes = step_all([there, host], [Foreign(tensor), frames[t]], [masks[0]] * 2 if t == 0 else None)
        first, second = outcomes
        assert isinstance(first, StepResult), first
        assert isinstance(second, StepResult), second
        np.testing.assert_array_equal(first.labels, second.labels)


def test_streams_wait_for_each_other(cuda_emulated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's stream waits for the frame's writer, which waits for the copy; the host waits if none is named."""
    engine = ColoursOnGpu()
    encoder = FrameEncoder(EncoderSpec(channels=K, feature="key"), engine, device=0)
    library, producer = load_cuda_library(), open_queue(0)
    tensor = producer.allocate((8 * H, 8 * W, 3), np.uint8, "a frame")
    producer.upload(np.zeros(tensor.shape, np.uint8), tensor)
    encoder.encode(tensor)
    calls: list[str] = []
    real = CudaLibrary.call

    def call(self: CudaLibrary, name: str, *arguments: Any) -> None:
        handle = getattr(arguments[0], "value", None)
        stream = library.plain("vosrt_cuda_queue_stream", handle) if name.startswith("vosrt_cuda_queue") else None
        who = {tensor.stream: "producer ", engine.stream: "engine "}.get(stream, "")
        calls.append(who + name.removeprefix("vosrt_cuda_").removeprefix("queue_"))
        real(self, name, *arguments)

    monkeypatch.setattr(CudaLibrary, "call", call)
    order = ["producer record", "engine wait_for", "engine copy", "engine record", "producer wait_for"]
    encoder.encode(tensor)
    assert calls[:6] == [*order, "engine download"], "the engine of this test reads its frame on the host"
    calls.clear()
    encoder.encode(replace(tensor, stream=None))
    assert calls[:3] == ["engine copy", "engine record", "event_wait"]
    assert not any("allocate" in each or "create" in each for each in calls)


def test_frames_that_cannot_be_taken_are_one_line(cuda_emulated: Path) -> None:
    """No frame, one on another GPU and one for a missing engine are refused."""
    encoder = FrameEncoder(EncoderSpec(channels=K, feature="key"), ColoursOnGpu(), device=0)
    queue = open_queue(0)
    frame = queue.allocate((64, 96, 3), np.uint8, "a frame")
    for wrong, words in (
        (replace(frame, shape=(96, 64)), r"frame is uint8 \[96, 64\] on a GPU; expected uint8 \[height, width, 3\]"),
        (replace(frame, dtype=np.dtype(np.float32)), r"frame is float32 \[64, 96, 3\] on a GPU"),
        (replace(frame, device_id=1), "the frame is on cuda:1, the model on cuda:0; copy it there first"),
    ):
        with pytest.raises(InputError, match=words):
            encoder.encode(wrong)
    with pytest.raises(InputError, match="the none engine takes frames from host memory here; load the model with dev"):
        NO_FRAMES.encode(frame)
    with pytest.raises(InputError, match="takes frames from host memory here"):
        Stream(NO_FRAMES, OPTIONS, device="cuda").step(Lent(frame), np.ones((64, 96), np.uint8))


@pytest.mark.parametrize("rounds", [0, 2])
@pytest.mark.parametrize("there", [False, True], ids=["from the host", "on the GPU"])
def test_refinement_by_way_of_the_host(
    cuda_core: str, tiny_clip: tuple[U8Array, U8Array], rounds: int, there: bool
) -> None:
    """With memory and encoder on the GPU, values and masks on the host, labels are the processor's but for 0.1 %."""
    frames, masks = tiny_clip
    spec = MaskSpec(value_channels=3, context="res3")
    queue = open_queue(0)
    tensor = queue.allocate(frames[0].shape, np.uint8, "a frame")
    labels: dict[str, list[U8Array]] = {}
    for device in ("cpu", "cuda"):
        engine = ColoursOnGpu(maps=True)
        encoder = FrameEncoder(
            EncoderSpec(channels=K, feature="key", align_corners=False), engine, device=0 if device == "cuda" else None
        )
        refiner = Refinement(spec, MaskEngine("masks"), MaskEngine("readout"), rounds)
        with Stream(encoder, OPTIONS, device=device, refiner=refiner) as stream:
            for t in range(4):
                queue.upload(frames[t], tensor)
                given: Any = Foreign(tensor) if there and device == "cuda" else frames[t]
                mask = {0: masks[0], 2: np.where(masks[2] == 2, 3, 0)}.get(t)
                labels.setdefault(device, []).append(stream.step(given, mask).labels)
            stream.remove(1)
            np.testing.assert_allclose(stream.soft_masks().sum(axis=-1), 1, atol=1e-5)
    assert all((1 in each) for each in labels["cuda"])
    assert np.mean(np.array(labels["cpu"]) != np.array(labels["cuda"])) < 1e-3


class MaskEngine:
    """A mask encoder, whose first value is the mask, or a decoder that believes what was read, sharpened."""

    info = EngineInfo("test", "fp32", "", "for this test")

    def __init__(self, reads: str) -> None:
        self._reads = reads

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Values f32 [M, h, w, 3] or logits f32 [M, h2, w2]."""
        given = inputs[self._reads]
        if self._reads == "masks":
            frames, context = inputs["frames"], inputs["context"]
            np.testing.assert_array_equal(context, frames[:, ::8, ::8].transpose(0, 3, 1, 2))
            values = np.zeros((*given[:, 4::8, 4::8].shape, 3), np.float32)
            values[..., 0] = given[:, 4::8, 4::8]
            return {"values": values}
        assert inputs["res2"].shape[2:] == (2 * given.shape[1], 2 * given.shape[2])
        logits = 12 * (given[..., 0] - 0.5)
        return {"logits": np.repeat(np.repeat(logits, 2, axis=1), 2, axis=2).astype(np.float32)}


def test_labels_may_stay_on_the_gpu(cuda_core: str, tiny_clip: tuple[U8Array, U8Array]) -> None:
    """They equal those on the host, also of annotated frames; a result owns its memory."""
    frames, masks = tiny_clip
    encoder = FrameEncoder(EncoderSpec(channels=K, feature="key"), ColoursOnGpu(), device=0)
    here = Stream(encoder, OPTIONS, device="cuda")
    there = Stream(encoder, OPTIONS, device="cuda", labels_on="gpu")
    results, pointers = [], set()
    for t in range(5):
        mask = masks[t] if t in (0, 3) else None
        expected, result = here.step(frames[t], mask), there.step(frames[t], mask)
        assert result.labels_tensor is not None
        assert result.confidence_tensor is not None
        assert (result.labels.size, result.confidence.size, result.object_confidence) == (0, 0, {})
        assert result.object_ids == expected.object_ids
        assert expected.labels_tensor is None
        if t < 3:
            results.append((expected, result))
        pointers.add(result.labels_tensor.pointer)
        np.testing.assert_array_equal(download(result.confidence_tensor), expected.confidence)
        means = {each: float(expected.confidence[expected.labels == each].mean()) for each in (1, 2)}
        assert expected.object_confidence == pytest.approx(means, abs=1e-5)
    for expected, result in results:
        assert result.labels_tensor is not None
        np.testing.assert_array_equal(download(result.labels_tensor), expected.labels)
    assert len(pointers) <= 5
    assert there.add(masks[4]).labels_tensor is not None
    with pytest.raises(OptionError, match="labels_on is 'gpu', but the stream's memory is not there; load with device"):
        Stream(NO_FRAMES, OPTIONS, labels_on="gpu")
    wrong: Any = "tpu"
    with pytest.raises(OptionError, match="labels_on is 'tpu'; expected 'host' or 'gpu'"):
        Stream(NO_FRAMES, OPTIONS, labels_on=wrong)


def test_labels_come_to_the_host_beside_the_memorys_stream(cuda_emulated: Path, video: Video, mark: Mark) -> None:
    """What others queue on that stream meanwhile is not waited for; in the steady state nothing is allocated."""
    cuda = FakeCuda()
    with EmulatedGpu(cuda_emulated, cuda):
        memory, queue = CudaMemory(H, W, K, OPTIONS), open_queue(0)
        embedding = queue.allocate((H, W, K), np.float32, "an embedding")
        for t, array in enumerate(video(4)):
            queue.upload(array, embedding)
            memory.push_tensor(embedding)
            if t == 0:
                memory.annotate(mark(1))
            cuda.calls.clear()
            before = cuda.allocations
            memory.labels(8 * H, 8 * W)
        waits = [call for call in cuda.calls if call.startswith("host waits for all of")]
        assert len(waits) == 1
        assert waits[0] != f"host waits for all of {queue.stream}"
        assert cuda.allocations == before
        del memory, queue, embedding


def test_stages_are_timed(cuda_core: str, video: Video, mark: Mark) -> None:
    timed, plain = CudaMemory(H, W, K, OPTIONS), CudaMemory(H, W, K, OPTIONS)
    queue = open_queue(0)
    embedding = queue.allocate((H, W, K), np.float32, "an embedding")
    labels = queue.allocate((50, 70), np.uint8, "labels")
    for t, array in enumerate(video(4)):
        queue.upload(array, embedding)
        plain.push(array)
        ms = timed.time_frame(embedding, labels=labels)
        assert len(ms) == 5
        assert all(each >= 0 for each in ms)
        if t == 0:
            plain.annotate(mark(1))
            timed.annotate(mark(1))
        else:
            np.testing.assert_array_equal(queue.download(labels), plain.labels(50, 70)[0])
            assert min(ms[2:]) > 0
    assert timed.recordings == 0
    assert re.findall(r"VOSRT_CUDA_STAGES = (\d+)", (NATIVE / "include" / "vosrt_cuda.h").read_text()) == ["5"]


def test_errors_name_what_was_found(cuda_emulated: Path, monkeypatch: pytest.MonkeyPatch, video: Video) -> None:
    """Each is one line and of the kind that ends a command with exit code 2."""

    def refused(gpu: str, words: str, **options: Any) -> None:
        monkeypatch.setenv("VOSRT_CUDA_EMULATED", gpu)
        with pytest.raises(OptionError, match=words):
            CudaMemory(H, W, K, OPTIONS, **options)

    refused("none", "no NVIDIA driver .*install the driver of your GPU, or use device 'cpu'")
    refused("old", "runs CUDA 11.4 .*expected 13.0 or newer: upgrade the driver")
    refused(
        "broken=999",
        "^the NVIDIA driver cannot be used: cudaGetDeviceCount failed: .*nvidia-smi says, or use device 'cpu'$",
    )
    refused("memory=100000", "cudaMalloc of .* out of memory .*use a smaller size, a shorter context, or device 'cpu'")
    refused("shared=1000", "40 channels need .* bytes of shared memory")
    refused("", "CUDA device 2 was asked for; there are 1", device=2)
    refused("", "computes in bf16; fp32 was asked for", precision="fp32")
    memory: Memory = CudaMemory(H, W, K, OPTIONS)
    with pytest.raises(OptionError, match="needs a frame"):
        memory.labels(4, 4)
    memory.push(video(1)[0])
    with pytest.raises(MaskError, match="marks no object"):
        memory.annotate(np.zeros((8, 8), np.uint8))


def test_out_of_memory_keeps_what_was_done(
    cuda_emulated: Path,
    fake_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A later object that does not fit gives one line and exit code 2, and the frames before it are kept."""
    memory = CudaMemory(4, 6, 32, PropagationOptions())
    memory.push(np.ones((4, 6, 32), np.float32))
    memory.annotate(np.ones((32, 48), np.uint8))
    memory.labels(32, 48)
    enough = memory.info["bytes"]
    del memory
    frames = tmp_path / "frames"
    frames.mkdir()
    command = [str(frames), "-o", str(tmp_path / "out"), "--engine", "fake", "--bundle", str(fake_bundle), "--no-video"]
    for t in range(4):
        Image.fromarray(np.full((32, 48, 3), 60 * t, np.uint8)).save(frames / f"{t:05d}.png")
    for frame, object_id in ((0, 1), (2, 2)):
        mask = np.zeros((32, 48), np.uint8)
        mask[8:24, 8:40] = object_id
        Image.fromarray(mask).save(tmp_path / f"{frame}.png")
        command += ["--mask", f"{frame}:{tmp_path / f'{frame}.png'}"]
    monkeypatch.setenv("VOSRT_CUDA_EMULATED", f"memory={enough + 2000}")
    # A process of its own: what other tests still hold counts as taken.
    done = subprocess.run(program(*command, "--device", "cuda"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    error = done.stderr.strip()
    assert "out of memory" in error
    assert "the results of 2 frames are in" in error
    assert len(list((tmp_path / "out" / "masks").glob("*.png"))) == 2


def test_the_command_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It does without libvosrt_cuda and with a device that is none."""
    monkeypatch.setenv("VOSRT_CUDA_LIBRARY", str(tmp_path / "libvosrt_cuda.so"))
    frames = tmp_path / "frames"
    frames.mkdir()
    mask = tmp_path / "mask.png"
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(frames / "00000.png")
    Image.fromarray(np.ones((32, 48), np.uint8)).save(mask)
    command = [str(frames), "--mask", str(mask), "-o", str(tmp_path / "out"), "--engine", "fake", "--device"]
    assert main([*command, "cuda"]) == 2
    assert "built without CUDA; install the CUDA toolkit" in capsys.readouterr().err
    assert main([*command, "gpu"]) == 2
    assert "device is 'gpu'; expected 'cpu', 'cuda' or 'cuda:N'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_runs_on_it(cuda_core: str, fake_bundle: Path, tiny_clip: tuple[U8Array, U8Array]) -> None:
    """An engine that knows no GPU gives labels of frames."""
    frames, masks = tiny_clip
    results = {}
    for device in ("cpu", "cuda:0"):
        model = Model.load(fake_bundle, engine="fake", device=device)
        with model.stream(options=PropagationOptions(context=2)) as stream:
            stream.start(frames[0], masks[0])
            results[device] = [stream.step(frame).labels for frame in frames[1:3]]
    assert "libvosrt_cuda" in model.describe()["core"]
    assert np.mean(np.array(results["cpu"]) != np.array(results["cuda:0"])) < 1e-3


def test_devices_are_named_so() -> None:
    """Only ``cpu``, ``cuda`` and ``cuda:N`` are names of devices."""
    assert [parse_device(name) for name in ("cpu", "cuda", "cuda:0", "cuda:12")] == [None, 0, 0, 12]
    for name in ("", "gpu", "cuda:", "cuda:-1", "cuda:x", "CUDA", "cuda:99999"):
        with pytest.raises(OptionError, match="expected 'cpu', 'cuda' or 'cuda:N'"):
            parse_device(name)


def test_structs_are_those_of_the_header() -> None:
    """What ctypes passes has the layout that the C compiler gives the header."""
    listed = (NATIVE / "abi.txt").read_text()
    for name in STRUCTS:
        struct = type(new_struct(name))
        if found := re.search(rf"struct {name}: (\d+) bytes\n((?:    .*\n)+)", listed):
            assert ctypes.sizeof(struct) == int(found[1])
            fields = [(field, getattr(struct, field).offset) for field, *_ in struct._fields_]
            assert fields == [(field, int(at)) for field, at in re.findall(r"    (\w+) at (\d+),", found[2])]
        else:
            assert name.startswith("vosrt_cuda_")
