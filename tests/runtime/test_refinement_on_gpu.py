"""Refinement that stays on a GPU gives what refinement by way of the host gives.

Once with engines that work at once, on emulated kernels and, if there is one, on a GPU; once on a fake CUDA runtime
that does all work as late as it may, which notices every wait that is missing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vosrt.arrays import DeviceKind, DeviceTensor
from vosrt.bundle import EncoderSpec, GraphFile, Manifest, MaskSpec
from vosrt.cuda import Gpu
from vosrt.cuda.network import NetworkOnGpu
from vosrt.cuda.refine import RefinementOnGpu
from vosrt.cuda.runtime import download, open_queue
from vosrt.cuda.stream import CudaStream
from vosrt.encoder import Embedding, FrameEncoder
from vosrt.engines.base import EngineInfo, Input
from vosrt.engines.fake import FakeEngine
from vosrt.errors import EngineError, InputError, OptionError
from vosrt.host_stream import HostStream, embedding_struct
from vosrt.model import Model
from vosrt.refinement import Refinement
from vosrt.stream import Stream
from vosrt.types import PropagationOptions, StepResult, U8Array

K, V = 40, 3
SPEC = EncoderSpec(channels=K, feature="key", align_corners=False)
OPTIONS = PropagationOptions(context=2, radius=4, parts=2)
MASKS = MaskSpec(value_channels=V, context="res3", residual=True)
Arrays = Mapping[str, NDArray[Any]]
Function = Callable[[Arrays], Arrays]


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


class OnGpu:
    """Has a function of host arrays done on the GPU; a queued one overwrites its outputs with the next run's."""

    device: DeviceKind = "cuda"

    def __init__(self, function: Function, *, queued: bool = True) -> None:
        self.info = EngineInfo("tensorrt" if queued else "cuda", "fp32", "", "for this test")
        self.function, self.queue = function, open_queue(0)
        self.stream = self.queue.stream if queued else None
        self._outputs: dict[tuple[str, tuple[int, ...]], DeviceTensor] = {}

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """On the host."""
        return dict(self.function(inputs))

    def run_on_device(self, inputs: Mapping[str, Input]) -> dict[str, DeviceTensor]:
        """Inputs of either kind."""
        here = {
            name: self.queue.download(each) if isinstance(each, DeviceTensor) else each for name, each in inputs.items()
        }
        there = {}
        for name, array in self.run(here).items():
            there[name] = self.output(name, array.shape)
            self.queue.upload(np.ascontiguousarray(array), there[name])
        self.queue.wait()
        return there

    def output(self, name: str, shape: tuple[int, ...]) -> DeviceTensor:
        """Where an output goes: f32."""
        if (name, shape) not in self._outputs or self.stream is None:
            self._outputs[name, shape] = self.queue.allocate(shape, np.float32, "an output")
        return replace(self._outputs[name, shape], stream=self.stream)


class Late(OnGpu):
    """Queues its work on a fake CUDA runtime; what it reads may not change until it is done."""

    def __init__(self, function: Function, cuda: Any) -> None:
        super().__init__(function)
        self._cuda = cuda

    def run_on_device(self, inputs: Mapping[str, Input]) -> dict[str, DeviceTensor]:
        """Nothing is read or written yet."""
        given = {name: seen(each) if isinstance(each, DeviceTensor) else each.copy() for name, each in inputs.items()}
        shapes = {
            name: array.shape for name, array in self.function({k: np.zeros_like(v) for k, v in given.items()}).items()
        }
        there = {name: self.output(name, shape) for name, shape in shapes.items()}

        def work() -> None:
            for name, array in self.function(given).items():
                seen(there[name])[...] = array

        assert self.stream is not None
        self._cuda.submit(self.stream, work)
        return there


def seen(tensor: DeviceTensor) -> NDArray[Any]:
    """An array of the emulated GPU as it is now."""
    size = int(np.prod(tensor.shape)) * tensor.dtype.itemsize
    memory = (ctypes.c_char * size).from_address(tensor.pointer)
    array: NDArray[Any] = np.ndarray(tensor.shape, tensor.dtype, buffer=memoryview(memory))
    return array


class Networks:
    """An encoder and the mask networks, shared by streams.

    Attributes:
        decoder: likewise.
    """

    def __init__(self, engine: Callable[[Function], OnGpu] = OnGpu) -> None:
        self._encoder, self.mask_encoder, self.decoder = (engine(each) for each in (encode, encode_masks, decode))
        self._graphs = NetworkOnGpu(self.mask_encoder, "values", 0), NetworkOnGpu(self.decoder, "logits", 0)

    def stream(
        self, rounds: int, masks: MaskSpec = MASKS, *, there: bool = True, encoder_there: bool = True, **options: Any
    ) -> Stream:
        """A stream whose memory is on the GPU; masks are refined there, or by way of the host."""
        encoder = FrameEncoder(SPEC, self._encoder, device=0 if encoder_there else None)
        refiner: Refinement[Any]
        if there:
            refiner = RefinementOnGpu(masks, *self._graphs, rounds)
        else:
            refiner = Refinement(masks, self.mask_encoder, self.decoder, rounds)
        return Stream(encoder, OPTIONS, device="cuda", refiner=refiner, **options)


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
    """Three objects replace one; one is removed, one marked again, then all go; frames have odd sizes."""
    frames, masks = (each[:, 16:61, 16:77] for each in tiny_clip)
    spec, networks = replace(MASKS, residual=residual, feedback=feedback), Networks()
    expected, given = (networks.stream(rounds, spec, there=there) for there in (False, True))
    third = np.where((masks[2] == 0) & (np.arange(61) > 45), 3, 0)
    marks = {1: np.where(masks[1] == 1, 1, 0), 2: np.where(masks[2] == 2, 2, third), 5: np.where(masks[5] == 2, 2, 0)}
    seen_ids: set[int] = set()
    for t in range(6):
        other, result = (stream.step(frames[t], marks.get(t)) for stream in (expected, given))
        check_same(given, expected, result, other)
        if t == 3:
            seen_ids = set(np.unique(result.labels))
            for stream in (expected, given):
                stream.remove(1)
            check_same(given, expected, given.result({}), expected.result({}))
    assert seen_ids == {0, 1, 2, 3}
    for object_id in (2, 3):
        for stream in (expected, given):
            stream.remove(object_id)
        check_same(given, expected, given.result({}), expected.result({}))
    check_same(given, expected, given.step(frames[0]), expected.step(frames[0]))


@pytest.mark.parametrize("queued", [True, False], ids=["engines that queue", "synchronous engines"])
@pytest.mark.parametrize("encoder_there", [True, False], ids=["encoder there", "encoder here"])
def test_any_engines(cuda_core: str, tiny_clip: tuple[U8Array, U8Array], queued: bool, encoder_there: bool) -> None:
    """Maps come from the GPU or from the host; engines queue their work or have done it when they return."""
    frames, masks = tiny_clip
    networks, spec = Networks(lambda function: OnGpu(function, queued=queued)), replace(MASKS, feedback=False)
    expected, given = networks.stream(2, spec, there=False), networks.stream(2, spec, encoder_there=encoder_there)
    for t in range(4):
        other, result = (stream.step(frames[t], masks[t] if t == 0 else None) for stream in (expected, given))
        check_same(given, expected, result, other)


@pytest.mark.parametrize("mask_networks", ["as late as they may", "before the memory", "synchronous"])
def test_nothing_overtakes_what_it_depends_on(
    whole_nvidia: Any, tiny_clip: tuple[U8Array, U8Array], mask_networks: str
) -> None:
    """Streams that share networks, which overwrite their outputs, are queued to their end before labels are read.

    Their mask networks' work is done when it is waited for, or as soon as it may be, or when they are called.
    """
    frames, masks = (each[:, 16:61, 16:77] for each in tiny_clip)
    queued = mask_networks != "synchronous"
    shared = Networks(lambda each: Late(each, whole_nvidia.cuda) if queued else OnGpu(each, queued=False))
    slow = Networks()
    for rounds, feedback in ((0, True), (2, False)) if queued else ((1, True),):
        spec = replace(MASKS, feedback=feedback)
        given = [shared.stream(rounds, spec, labels_on="gpu") for _ in range(2)]
        expected = [slow.stream(rounds, spec, there=False) for _ in range(2)]
        results: list[list[StepResult]] = [[], []]
        for t in range(5):
            for i, stream in enumerate(given):
                results[i].append(stream.step(np.roll(frames[t], 8 * i, axis=1), marks_of(masks, t, i)))
                if mask_networks == "before the memory":
                    shared.decoder.queue.wait()
                    shared.mask_encoder.queue.wait()
        for i, stream in enumerate(expected):
            for t in range(5):
                labels = stream.step(np.roll(frames[t], 8 * i, axis=1), marks_of(masks, t, i)).labels
                tensor = results[i][t].labels_tensor
                assert tensor is not None
                np.testing.assert_array_equal(download(tensor), labels, err_msg=f"frame {t} of stream {i}")


def marks_of(masks: U8Array, t: int, i: int) -> U8Array | None:
    """Objects that appear in a frame of stream i."""
    shifted = np.roll(masks[t], 8 * i, axis=1)
    chosen = {0: np.where(shifted == 1, 1, 0), 3: np.where(shifted == 2, 2, 0)}.get(t)
    return None if chosen is None else chosen.astype(np.uint8)


def test_the_host_only_queues(whole_nvidia: Any, tiny_clip: tuple[U8Array, U8Array]) -> None:
    """In the steady state, frames that are on the GPU are refined without a wait; nothing is allocated or created."""
    frames, masks = (np.ascontiguousarray(each[:, 16:61, 16:77]) for each in tiny_clip)
    cuda = whole_nvidia.cuda
    stream = Networks(lambda function: Late(function, cuda)).stream(2, labels_on="gpu")
    queue = open_queue(0)
    frame = queue.allocate(frames[0].shape, np.uint8, "a frame")
    counts: list[tuple[int, ...]] = []
    for t in range(12):
        queue.upload(frames[t % 6], frame)
        cuda.calls.clear()
        stream.step(frame, masks[0] if t == 0 else None)
        if t >= 6:
            assert not [call for call in cuda.calls if call.startswith("host waits")]
        counts.append((cuda.allocations, cuda.created, cuda.streams))
    assert counts[6] == counts[-1]


def test_labels_of_refined_frames_may_stay_there(cuda_core: str, tiny_clip: tuple[U8Array, U8Array]) -> None:
    """The labels are the same; only an annotated frame's come by way of the host."""
    frames, masks = tiny_clip
    networks = Networks()
    here, there = networks.stream(1), networks.stream(1, labels_on="gpu")
    for t in range(4):
        mask = masks[t] if t == 0 else None
        expected, result = here.step(frames[t], mask), there.step(frames[t], mask)
        assert result.labels_tensor is not None
        assert result.confidence_tensor is not None
        np.testing.assert_array_equal(download(result.labels_tensor), expected.labels)
        np.testing.assert_array_equal(download(result.confidence_tensor), expected.confidence)


def test_a_model_refines_where_its_networks_are(cuda_core: str, tiny_clip: tuple[U8Array, U8Array]) -> None:
    """It refines on the GPU if the memory and both mask networks are there, else by way of the host."""
    frames, masks = tiny_clip
    manifest = Manifest(
        name="test",
        trained=False,
        summary="A test.",
        encoder=SPEC,
        graphs={"encoder": GraphFile(file="encoder.onnx", sha256="0" * 64, bytes=1, precision="fp32")},
        inference=OPTIONS,
        family="mask-embedding",
        masks=MASKS,
    )
    labels = []
    for device, on_gpu in (("cuda", True), ("cuda", False), ("cpu", False)):
        engines = {"encoder": OnGpu(encode), "mask_encoder": OnGpu(encode_masks), "decoder": OnGpu(decode)}
        if not on_gpu:
            engines["decoder"].device = "cpu"
        stream = Model(manifest, engines, device=device).stream(refine=1)
        assert isinstance(stream._core, CudaStream) == on_gpu
        stream.start(frames[0], masks[0])
        labels.append([stream.step(frame).labels for frame in frames[1:3]])
    np.testing.assert_array_equal(labels[0], labels[1])
    assert np.mean(np.array(labels[0]) != np.array(labels[2])) < 1e-2


def test_errors_name_what_was_found(cuda_core: str, tiny_clip: tuple[U8Array, U8Array]) -> None:
    """Each is one line; the stream shows what was propagated where refinement failed."""
    frames, masks = tiny_clip

    def streams(function: Function = decode, **engine: Any) -> Stream:
        """With another decoder."""
        broken = OnGpu(function)
        for name, value in engine.items():
            setattr(broken, name, value)
        graphs = NetworkOnGpu(OnGpu(encode_masks), "values", 0), NetworkOnGpu(broken, "logits", 0)
        refiner = RefinementOnGpu(MASKS, *graphs, 1)
        stream = Stream(FrameEncoder(SPEC, OnGpu(encode), device=0), OPTIONS, device="cuda", refiner=refiner)
        stream.start(frames[0], masks[0])
        return stream

    with pytest.raises(EngineError, match=r"gave {'labels': 'float32 .*'logits': float32 \[2, 16, 24\]; export the"):
        streams(lambda inputs: {"labels": decode(inputs)["logits"]}).step(frames[1])
    with pytest.raises(EngineError, match=r"gave {'logits': 'float32 \[2, 4, 6\]'}"):
        streams(lambda inputs: {"logits": decode(inputs)["logits"][:, ::4, ::4]}).step(frames[1])

    def elsewhere(name: str, shape: tuple[int, ...]) -> DeviceTensor:
        return replace(open_queue(0).allocate(shape, np.float32, "an output"), device_id=1)

    with pytest.raises(OptionError, match="the tensorrt engine runs on cuda:1, the core on cuda:0"):
        streams(output=elsewhere).step(frames[1])
    refiner = RefinementOnGpu(
        MASKS, NetworkOnGpu(OnGpu(encode_masks), "values", 0), NetworkOnGpu(OnGpu(decode), "", 0), 1
    )
    with pytest.raises(InputError, match="the stream's memory is not there; open it on device 'cuda'"):
        Stream(FrameEncoder(SPEC, OnGpu(encode)), OPTIONS, refiner=refiner).start(frames[0], masks[0])
    stream = streams()
    embedding = stream.encoder.encode(frames[1])
    with pytest.raises(InputError, match="made without the maps that refinement needs; encode the frame again"):
        stream.step(Embedding(embedding.array, 64, 96, tensor=embedding.tensor))


def test_frames_in_host_memory_are_refused(native: Any, cuda_emulated: Any, tiny_clip: tuple[U8Array, U8Array]) -> None:
    """Streams whose mask networks are on a GPU take none, and libvosrt has no such streams."""
    graphs = NetworkOnGpu(OnGpu(encode_masks), "values", 0), NetworkOnGpu(OnGpu(decode), "logits", 0)
    embedding = FrameEncoder(SPEC, OnGpu(encode)).encode(tiny_clip[0][0])
    given = embedding_struct((64, 96), embedding.shape)
    given.array = embedding.array.ctypes.data
    calls: tuple[tuple[Any, str, tuple[None, ...], str], ...] = (
        (native.libvosrt(), "expect", (), "use libvosrt_cuda"),
        (Gpu(0).library, "take", (None, None), "push its frames, then call vosrt_stream_refine"),
    )
    for library, function, others, said in calls:
        stream = HostStream(
            library,
            SPEC,
            OPTIONS,
            precision="auto",
            threads=1,
            refinement=RefinementOnGpu(MASKS, *graphs, 1),
            model=bytes(32),
        )
        with pytest.raises((InputError, OptionError), match=said):
            stream._call(function, ctypes.byref(given), *others)
