"""What CUDA forbids, and what a GPU shares between memories, streams and threads: faults that only a GPU would show.

The emulated GPU and the fake CUDA runtime follow CUDA's rules, see ``tests/fakes``. One test per fault; the table in
``runtime/native/cuda/README.md`` names them.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.fakes.cuda import LEGACY, CaptureMode, FakeCuda, Status
from tests.fakes.memories import take
from tests.fakes.tensorrt import write_engine
from vosrt.arrays import DEFAULT_STREAM, DeviceTensor
from vosrt.bundle import EncoderSpec
from vosrt.cuda.graph import Graphs, Recorder
from vosrt.cuda.memory import CudaMemory
from vosrt.cuda.runtime import BindingsRuntime, CudaEvent, CudaQueue, TensorPool, open_queue
from vosrt.encoder import FrameEncoder, stays_on_gpu
from vosrt.engines.onnxruntime import load_onnxruntime
from vosrt.engines.tensorrt import TensorRtEngine
from vosrt.engines.tensorrt_files import Profile
from vosrt.engines.tensorrt_flavour import TENSORRT, TENSORRT_RTX, Flavour
from vosrt.errors import EngineError, OptionError
from vosrt.stream import Stream
from vosrt.types import F32Array, PropagationOptions, U8Array

NATIVE = Path(__file__).resolve().parents[2] / "runtime" / "native"
OPTIONS = PropagationOptions(context=1, radius=1)
H, W, K = 4, 5, 32
SPEC = EncoderSpec(channels=3, feature="res4")
SIZE = Profile(minimum=(32, 32), optimum=(32, 48), maximum=(64, 96))
PLAN = json.dumps({"profiles": [[SIZE.minimum, SIZE.optimum, SIZE.maximum]]}).encode()
FRAMES = int(os.environ.get("VOSRT_STRESS_FRAMES", "12"))  # per stream


@pytest.fixture
def emulated(cuda_emulated: Path) -> Iterator[ctypes.CDLL]:
    """The emulated GPU's library, to have calls fail and to ask for contexts; as new again afterwards."""
    library = ctypes.CDLL(str(cuda_emulated))
    library.vosrt_cuda_emulated_fail.argtypes = (ctypes.c_char_p, ctypes.c_int)
    yield library
    library.vosrt_cuda_emulated_fail(None, 0)


@pytest.fixture
def engine_of(tmp_path: Path, fake_nvidia: Any) -> Callable[..., TensorRtEngine]:
    """TensorRT engines: ``engine_of(TENSORRT_RTX)``."""

    def create(flavour: Flavour = TENSORRT) -> TensorRtEngine:
        graph = tmp_path / "encoder.onnx"
        graph.write_bytes(b"not read")
        version = getattr(fake_nvidia, flavour.name.replace("-", "_")).__version__
        write_engine(graph, PLAN, (SIZE,), flavour=flavour.name, version=version)
        return TensorRtEngine(graph, {"frames": ("n", "height", "width", None)}, flavour=flavour, reason="test")

    return create


def embedding(seed: int, channels: int = K) -> F32Array:
    """Random, of unit length per cell."""
    array = np.random.default_rng(seed).standard_normal((H, W, channels)).astype(np.float32)
    unit: F32Array = array / np.linalg.norm(array, axis=-1, keepdims=True)
    return unit


def square() -> U8Array:
    """A mask of one object."""
    mask = np.zeros((8 * H, 8 * W), np.uint8)
    mask[8:24, 8:24] = 1
    return mask


@pytest.mark.parametrize("function", ["cudaSetDevice", "cudaMemGetInfo"])
def test_a_gpu_that_cannot_be_used_is_no_failure_of_work(emulated: ctypes.CDLL, function: str) -> None:
    """Commands end with exit code 2, as where there is no driver: nothing was begun."""
    emulated.vosrt_cuda_emulated_fail(function.encode(), Status.cudaErrorInvalidValue)
    with pytest.raises(OptionError, match=rf"^the NVIDIA driver cannot be used: {function} failed.*nvidia-smi.*'cpu'$"):
        CudaMemory(H, W, K, OPTIONS)
    CudaMemory(H, W, K, OPTIONS)


# ---- memories -------------------------------------------------------------------------------------------


def test_memories_of_different_models_do_not_limit_each_other(cuda_emulated: Path) -> None:
    """The shared-memory limit is the kernel's: one with fewer channels must not lower it for the others."""
    large = take(CudaMemory(H, W, 256, OPTIONS), embedding(0, 256), square())
    small = CudaMemory(H, W, 64, OPTIONS)
    for memory, channels in ((small, 64), (large, 256)):
        take(memory, embedding(1, channels), square())
        memory.push(embedding(2, channels))
        assert memory.labels(8, 8)[0].shape == (8, 8)


def test_embeddings_on_the_default_stream(cuda_emulated: Path) -> None:
    """CUDA cannot capture that stream, and PyTorch's and CuPy's arrays are on it; graphs are captured elsewhere."""
    stream = open_queue(0)
    tensor = stream.allocate((H, W, K), np.float32, "an embedding")
    shared = DeviceTensor(
        pointer=tensor.pointer, shape=tensor.shape, dtype=tensor.dtype, device="cuda", owner=tensor, stream=LEGACY
    )
    memory, expected = CudaMemory(H, W, K, OPTIONS), CudaMemory(H, W, K, OPTIONS)
    for t in range(6):
        stream.upload(embedding(t), tensor)
        memory.push_tensor(shared)
        expected.push(embedding(t))
        for each in (memory, expected):
            if t == 0:
                each.annotate(square())
        np.testing.assert_array_equal(memory.labels(16, 20)[0], expected.labels(16, 20)[0])
    assert memory.recordings == 1


@pytest.mark.parametrize("function", ["cudaGraphLaunch", "cudaStreamBeginCapture", "cudaStreamEndCapture"])
def test_a_frame_that_failed_was_not_taken(emulated: ctypes.CDLL, function: str) -> None:
    """What cannot be captured is queued as it is; after any other failure, host and GPU speak of the same frame."""
    stream = open_queue(0)
    tensor = stream.allocate((H, W, K), np.float32, "an embedding")
    memory, expected = CudaMemory(H, W, K, OPTIONS), CudaMemory(H, W, K, OPTIONS)
    for t in range(7):
        stream.upload(embedding(t), tensor)
        if t == 3:
            emulated.vosrt_cuda_emulated_fail(function.encode(), Status.cudaErrorStreamCaptureUnsupported)
            if function == "cudaGraphLaunch":
                with pytest.raises(EngineError, match="CUDA failed in cudaGraphLaunch"):
                    memory.push_tensor(tensor)
                np.testing.assert_array_equal(memory.labels(16, 20)[0], expected.labels(16, 20)[0])
        memory.push_tensor(tensor)
        expected.push(embedding(t))
        if t == 0:
            memory.annotate(square())
            expected.annotate(square())
        np.testing.assert_array_equal(memory.labels(16, 20)[0], expected.labels(16, 20)[0])
        np.testing.assert_array_equal(memory.top_k().frame, expected.top_k().frame)


@pytest.mark.parametrize("function", ["cudaFree", "cudaStreamDestroy", "cudaEventDestroy", "cudaFreeHost"])
def test_a_failure_while_freeing_is_not_the_next_calls(emulated: ctypes.CDLL, function: str) -> None:
    """A destructor's error is dropped, so that the next kernel's launch does not report it."""
    memory, stream = CudaMemory(H, W, K, OPTIONS), open_queue(0)
    take(memory, embedding(0), square())
    memory.labels(16, 20)  # makes pinned memory, a stream and events
    victims: list[Any] = [stream.allocate((8,), np.uint8, "a victim"), open_queue(0), CudaEvent(stream.runtime)]
    victims.append(CudaMemory(H, W, K, OPTIONS))
    victims[-1].push(embedding(0))
    victims[-1].labels(16, 20)
    emulated.vosrt_cuda_emulated_fail(function.encode(), Status.cudaErrorInvalidValue)
    victims.clear()
    gc.collect()
    memory.push(embedding(1))
    assert memory.labels(16, 20)[0].shape == (16, 20)


def test_a_lost_context_is_said_by_every_call(emulated: ctypes.CDLL) -> None:
    """Each call says it in one line with CUDA's words; freeing is quiet."""
    memory = CudaMemory(H, W, K, OPTIONS)
    memory.push(embedding(0))
    emulated.vosrt_cuda_emulated_fail(b"cudaStreamSynchronize", Status.cudaErrorIllegalAddress)
    for _ in range(2):
        with pytest.raises(EngineError, match=r"^CUDA failed in .*illegal memory access.*; see what nvidia-smi says"):
            memory.push(embedding(1))
    del memory
    gc.collect()


def test_calls_in_a_new_thread_use_their_own_gpu(emulated: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread begins on GPU 0; work on GPU 1 makes no context there, and is launched where its stream is."""
    monkeypatch.setenv("VOSRT_CUDA_EMULATED", "devices=2")
    stream = open_queue(1)
    tensor, event = stream.allocate((H, W, K), np.float32, "an embedding"), CudaEvent(stream.runtime)
    memory = CudaMemory(H, W, K, OPTIONS, device=1)

    calls: tuple[Callable[[], object], ...] = (
        lambda: stream.upload(embedding(0), tensor),
        lambda: stream.record(event),
        lambda: stream.wait_for(event),
        lambda: stream.copy(tensor, tensor),
        lambda: stream.download(tensor),
        lambda: memory.push_tensor(tensor),
        lambda: memory.labels(16, 20),
    )
    for number, call in enumerate(calls):
        emulated.vosrt_cuda_emulated_contexts()
        with ThreadPoolExecutor(1) as pool:  # a new thread each, as an earlier call chooses the GPU for later ones
            pool.submit(call).result()
        assert emulated.vosrt_cuda_emulated_contexts() == 0b10, number


def test_threads_may_use_a_stream_while_another_captures(cuda_emulated: Path) -> None:
    """One uploads and downloads on the stream on which a memory records graph after graph; nothing is lost."""
    engine = open_queue(0)
    memory = CudaMemory(H, W, K, OPTIONS)
    memory.use_stream(engine.stream)
    tensor = engine.allocate((H, W, K), np.float32, "an embedding")
    engine.upload(embedding(0), tensor)
    labels = engine.allocate((8 * H, 8 * W), np.uint8, "labels")
    memory.frame(tensor)
    done = threading.Event()

    def encode() -> int:
        target, runs = engine.allocate((64,), np.int32, "a frame"), 0
        while not done.is_set():
            runs += 1
            engine.upload(np.full(64, runs, np.int32), target)
            assert engine.download(target)[0] == runs
        return runs

    with ThreadPoolExecutor(1) as pool:
        runs = pool.submit(encode)
        try:
            for _ in range(12):
                memory.annotate(square())  # graphs no longer fit
                for _ in range(4):
                    memory.frame(tensor, labels=labels)
        finally:
            done.set()
        assert runs.result() > 0
    assert memory.recordings == 12


def test_jetson_is_built_for() -> None:
    """NVIDIA does not promise that code for desktop GPUs runs on Tegra, so Orin's is among the defaults."""
    (line,) = (
        line for line in (NATIVE / "CMakeLists.txt").read_text().splitlines() if "VOSRT_CUDA_ARCHITECTURES" in line
    )
    assert "87-real" in line


# ---- engines and graphs ---------------------------------------------------------------------------------


def recorder_of(fake_nvidia: Any) -> tuple[Recorder, CudaQueue, Graphs]:
    """What records, the stream of the work, and where graphs are kept."""
    runtime = BindingsRuntime()
    return Recorder(runtime, "the work"), CudaQueue(runtime), OrderedDict()


def test_what_is_freed_during_a_capture_does_not_spoil_it(fake_nvidia: Any) -> None:
    """The garbage collector runs when it likes, also between the beginning and the end of a capture."""
    recorder, stream, graphs = recorder_of(fake_nvidia)
    for _ in range(3):
        victim = [stream.allocate((8,), np.uint8, "a victim")]
        replayed = recorder.run(stream, graphs, "kind", lambda _, victim=victim: victim.clear())  # type: ignore[misc]
    assert replayed
    assert recorder.refused is None


def test_one_failed_capture_is_not_the_end(fake_nvidia: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Another thread may have caused it; the next one works, and no warning is given."""
    recorder, stream, graphs = recorder_of(fake_nvidia)
    recorder.run(stream, graphs, "kind", lambda _: None)
    fake_nvidia.cuda.failing["cudaStreamEndCapture"] = Status.cudaErrorStreamCaptureInvalidated
    assert [recorder.run(stream, graphs, "kind", lambda _: None) for _ in range(2)] == [False, True]
    assert (recorder.refused, caplog.messages) == (None, [])


def test_captures_are_private(fake_nvidia: Any) -> None:
    """What another thread queues on the shared stream, and its waits, are no part of the graph."""
    recorder, stream, graphs = recorder_of(fake_nvidia)
    event, ran = CudaEvent(stream.runtime), list[str]()

    def work(on: CudaQueue) -> None:
        fake_nvidia.cuda.submit(on.stream, lambda: ran.append("own"))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(others).result()

    def others() -> None:
        fake_nvidia.cuda.submit(stream.stream, lambda: ran.append("other"))
        stream.record(event)
        event.wait()
        stream.wait()

    recorder.run(stream, graphs, "kind", work)
    recorder.run(stream, graphs, "kind", work)
    stream.wait()
    ran.clear()
    recorder.run(stream, graphs, "kind", work)
    stream.wait()
    assert ran == ["own"]
    assert recorder.refused is None


def test_an_engine_is_freed_at_once(engine_of: Callable[..., TensorRtEngine], fake_nvidia: Any) -> None:
    """No cycle of references keeps its memory on the GPU until the garbage collector runs."""
    engine = engine_of()
    for _ in range(3):
        engine.run({"frames": np.zeros((1, 32, 48, 3), np.uint8)})
    gone = weakref.ref(engine)
    gc.disable()
    try:
        del engine
        assert gone() is None
        assert fake_nvidia.cuda.memory == {}
    finally:
        gc.enable()


@pytest.mark.parametrize("fault", ["refuses_profiles", "refuses_shapes"])
def test_exceptions_of_the_bindings_are_engine_errors(
    engine_of: Callable[..., TensorRtEngine], fake_nvidia: Any, fault: str, encoder_graph: Path
) -> None:
    """Two functions of TensorRT raise where others give False; ``auto`` goes on to the next engine."""
    engine = engine_of()
    setattr(fake_nvidia.tensorrt, fault, True)
    with pytest.raises(EngineError, match=r"^tensorrt cannot prepare .*(profile async|error code)"):
        engine.run({"frames": np.zeros((1, 32, 48, 3), np.uint8)})


def test_engines_run_on_their_gpu_in_every_thread(engine_of: Callable[..., TensorRtEngine], fake_nvidia: Any) -> None:
    """Another library may have chosen another GPU in the thread that loads or runs the engine."""
    fake_nvidia.cuda.devices = 2

    def elsewhere() -> None:
        fake_nvidia.cuda.cudaSetDevice(1)
        engine = engine_of()
        for height in (32, 64):
            fake_nvidia.cuda.cudaSetDevice(1)
            engine.run({"frames": np.zeros((1, height, 48, 3), np.uint8)})

    with ThreadPoolExecutor(1) as pool:
        pool.submit(elsewhere).result()
    assert set(fake_nvidia.cuda.device_of.values()) == {0}
    assert {queue.device for queue in fake_nvidia.cuda.queues.values()} == {0}
    assert {context.device for context in fake_nvidia.tensorrt.contexts} == {0}


def test_a_lost_context_is_one_line_of_an_engine(engine_of: Callable[..., TensorRtEngine], fake_nvidia: Any) -> None:
    """Each run raises it again, and the engine can still be freed."""
    engine = engine_of()
    engine.run({"frames": np.zeros((1, 32, 48, 3), np.uint8)})
    fake_nvidia.cuda.failing["cudaMemcpyAsync"] = Status.cudaErrorIllegalAddress
    for _ in range(2):
        with pytest.raises(EngineError, match=r"^CUDA failed in \w+: IllegalAddress$"):
            engine.run({"frames": np.zeros((1, 32, 48, 3), np.uint8)})
    del engine
    gc.collect()


def test_the_configuration_lives_as_long_as_its_context(
    engine_of: Callable[..., TensorRtEngine], fake_nvidia: Any
) -> None:
    """TensorRT-RTX leaves it to the caller; the fake context refuses to run without."""
    engine = engine_of(TENSORRT_RTX)
    for _ in range(2):
        engine.run({"frames": np.zeros((1, 32, 48, 3), np.uint8)})
        gc.collect()
    assert fake_nvidia.tensorrt_rtx.contexts[-1].config is not None


def test_a_driver_that_is_too_old_names_the_package(fake_nvidia: Any) -> None:
    fake_nvidia.cuda.failing["cudaMalloc"] = Status.cudaErrorInsufficientDriver
    with pytest.raises(EngineError, match=r"upgrade the NVIDIA driver, or install the bindings .*'cuda-bindings<13'"):
        BindingsRuntime().allocate(8, "an array")


# ---- arrays for other libraries -------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "waits"), [(None, DEFAULT_STREAM), (1, 1), (2, 2), (77, 77)])
def test_consumers_streams_wait_for_the_work(fake_nvidia: Any, asked: int | None, waits: int) -> None:
    """DLPack: PyTorch and CuPy name their stream, and None is CUDA's default one."""
    stream = CudaQueue(BindingsRuntime())
    tensor = stream.allocate((8,), np.uint8, "labels")
    fake_nvidia.cuda.calls.clear()
    assert tensor.__dlpack__(stream=asked) is not None
    record, wait = fake_nvidia.cuda.calls
    assert (record.endswith(f"on {stream.stream}"), wait.startswith(f"{waits} waits for")) == (True, True)


def test_consumers_that_need_no_order_get_none(fake_nvidia: Any) -> None:
    """These are the array's own stream, -1 and a whole array; a tensor that nobody can order is refused."""
    stream = CudaQueue(BindingsRuntime())
    tensor = stream.allocate((8,), np.uint8, "labels")
    fake_nvidia.cuda.calls.clear()
    for asked in (-1, stream.stream):
        assert tensor.__dlpack__(stream=asked) is not None
    assert fake_nvidia.cuda.calls == []


def test_readers_of_the_array_interface_may_ignore_its_stream(fake_nvidia: Any) -> None:
    """The default stream, where they read it then, waits; the interface still names the stream."""
    stream = CudaQueue(BindingsRuntime())
    tensor = stream.allocate((8,), np.uint8, "labels")
    fake_nvidia.cuda.calls.clear()
    assert tensor.__cuda_array_interface__["stream"] == stream.stream
    assert fake_nvidia.cuda.calls[-1].startswith(f"{DEFAULT_STREAM} waits for")


def test_memory_that_others_read_is_not_overwritten_under_them(fake_nvidia: Any) -> None:
    """It is used again behind the default stream; freeing waits where another stream read it."""
    stream, pool = CudaQueue(BindingsRuntime()), TensorPool("the labels")
    for asked, again in ((None, True), (77, False)):
        tensor = pool.take(stream, (8,), np.dtype(np.uint8))
        pointer, allocations = tensor.pointer, fake_nvidia.cuda.allocations
        capsule = tensor.__dlpack__(stream=asked)
        del tensor, capsule
        fake_nvidia.cuda.calls.clear()
        assert (pool.take(stream, (8,), np.dtype(np.uint8)).pointer == pointer) or not again
        assert (fake_nvidia.cuda.allocations == allocations) == again
        waited = any(call.startswith(f"{stream.stream} waits for") for call in fake_nvidia.cuda.calls)
        assert waited == again


# ---- other engines --------------------------------------------------------------------------------------


def test_onnxruntime_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Providers' complaints come from the default logger, before any session has a level."""
    levels: list[int] = []
    real = load_onnxruntime()
    monkeypatch.setitem(
        sys.modules,
        "onnxruntime",
        SimpleNamespace(
            __spec__=real.__spec__, disable_telemetry_events=lambda: None, set_default_logger_severity=levels.append
        ),
    )
    load_onnxruntime()
    assert levels == [4]


def test_the_engine_of_pytorch_leaves_embeddings_on_the_gpu(cuda_emulated: Path) -> None:
    """What ``benchmarks.kernels.gpu --engine torch`` runs takes frames there; the processor stands in for the GPU."""
    torch = pytest.importorskip("torch")
    from benchmarks.kernels.torch_engine import TorchEngine

    def pooled(inputs: Any) -> Any:
        pixels = inputs[SPEC.input_name].permute(0, 3, 1, 2).float()
        cells = torch.nn.functional.normalize(torch.nn.functional.avg_pool2d(pixels, 8), dim=1)
        return {SPEC.output_name: cells.permute(0, 2, 3, 1).contiguous()}

    engine: Any = TorchEngine(pooled, torch.device("cpu"))
    assert stays_on_gpu(engine)
    encoder = FrameEncoder(SPEC, engine, device=0)
    frame = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    embedded = encoder.encode(frame)
    assert embedded.tensor is not None
    result = Stream(encoder, OPTIONS, device="cuda", labels_on="gpu").step(frame)
    assert result.labels_tensor is not None


# ---- CUDA's rules, as the fake has them -------------------------------------------------------------------


def test_the_fake_refuses_what_cuda_refuses() -> None:
    """It refuses the default stream, a second capture, waits, work outside, unjoined streams and frees."""
    cuda, relaxed, strict = (
        FakeCuda(),
        CaptureMode.cudaStreamCaptureModeRelaxed,
        CaptureMode.cudaStreamCaptureModeThreadLocal,
    )
    a, b = (cuda.cudaStreamCreateWithFlags(1)[1] for _ in range(2))
    inside, outside = (cuda.cudaEventCreateWithFlags(2)[1] for _ in range(2))
    memory = cuda.cudaMalloc(8)[1]
    assert memory is not None
    assert cuda.cudaStreamBeginCapture(LEGACY, relaxed) == (Status.cudaErrorStreamCaptureUnsupported,)

    def captured(*calls: Callable[[], tuple[Any, ...]], mode: CaptureMode = relaxed) -> list[Status]:
        assert cuda.cudaStreamBeginCapture(a, mode) == (Status.cudaSuccess,)
        statuses = [call()[0] for call in calls]
        return [*statuses, cuda.cudaStreamEndCapture(a)[0]]

    invalid, fine = Status.cudaErrorStreamCaptureInvalidated, Status.cudaSuccess
    assert captured(lambda: cuda.cudaStreamBeginCapture(a, relaxed)) == [Status.cudaErrorIllegalState, fine]
    assert captured(lambda: cuda.cudaStreamSynchronize(a)) == [Status.cudaErrorStreamCaptureUnsupported, invalid]
    cuda.cudaEventRecord(outside, b)
    isolated = Status.cudaErrorStreamCaptureIsolation
    assert captured(lambda: cuda.cudaStreamWaitEvent(a, outside, 0)) == [isolated, invalid]
    fork = (lambda: cuda.cudaEventRecord(inside, a), lambda: cuda.cudaStreamWaitEvent(b, inside, 0))
    join = (lambda: cuda.cudaEventRecord(outside, b), lambda: cuda.cudaStreamWaitEvent(a, outside, 0))
    assert captured(*fork) == [fine, fine, Status.cudaErrorStreamCaptureUnjoined]
    assert captured(*fork, *join) == [fine] * 5
    assert captured(fork[0], lambda: cuda.cudaEventSynchronize(inside)) == [
        fine,
        Status.cudaErrorCapturedEvent,
        invalid,
    ]
    other = cuda.cudaMalloc(8)[1]
    assert other is not None
    assert captured(lambda: cuda.cudaFree(other), mode=strict) == [Status.cudaErrorStreamCaptureUnsupported, invalid]
    assert captured(lambda: cuda.cudaFree(memory)) == [fine, fine]


# ---- many threads ---------------------------------------------------------------------------------------


def test_threads_with_streams_of_their_own(whole_nvidia: Any, engine_of: Callable[..., TensorRtEngine]) -> None:
    """Four threads with a stream each on one engine, objects coming and going, get the labels of each stream alone.

    ``VOSRT_STRESS_FRAMES`` sets the frames per stream.
    """
    encoder = FrameEncoder(SPEC, engine_of(), device=0)
    options = PropagationOptions(context=2, radius=3)

    def run(seed: int) -> list[U8Array]:
        random, labels = np.random.default_rng(seed), []
        mask = np.zeros((32, 48), np.uint8)
        mask[8:24, 8:24] = 1
        with Stream(encoder, options, device="cuda") as stream:
            for t in range(FRAMES):
                marked = mask * (1 + t // 5 % 3) if t % 5 == 0 else None
                if t % 10 == 7:
                    stream.remove(stream.object_ids[0])
                labels.append(stream.step(random.integers(0, 256, (32, 48, 3), dtype=np.uint8), marked).labels)
        return labels

    expected = [run(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for found, alone in zip(pool.map(run, range(4)), expected, strict=True):
            np.testing.assert_array_equal(found, alone)
    assert encoder._there is not None
    assert encoder._there._engine._recorder.refused is None  # type: ignore[attr-defined]
