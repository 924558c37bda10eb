"""A tiny encoder; and NVIDIA's driver, the CUDA runtime and TensorRT, as far as vosrt calls them, in host memory."""

from __future__ import annotations

import ctypes
import enum
import gc
import json
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vosrt.engines import nvidia
from vosrt.types import F32Array, U8Array


@pytest.fixture(scope="session")
def encoder_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder without weights: the mean colour of every 8 x 8 cell, normalised."""
    onnx = pytest.importorskip("onnx")
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        node("Cast", ["frames"], ["floats"], to=onnx.TensorProto.FLOAT),
        node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        node("AveragePool", ["planes"], ["cells"], kernel_shape=[8, 8], strides=[8, 8], ceil_mode=1),
        node("LpNormalization", ["cells"], ["unit"], axis=1),
        node("Transpose", ["unit"], ["embedding"], perm=[0, 2, 3, 1]),
    ]
    frames = value("frames", onnx.TensorProto.UINT8, ["n", "height", "width", 3])
    embedding = value("embedding", onnx.TensorProto.FLOAT, ["n", "h", "w", 3])
    built = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "encoder", [frames], [embedding]),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    path = tmp_path_factory.mktemp("bundle") / "encoder.onnx"
    onnx.save(built, path)
    return path


class FakeDriver:
    """The functions of libcuda that `find_gpu` calls, for a machine with these GPUs."""

    def __init__(self, *gpus: tuple[str, int, int], init_status: int = 0) -> None:
        self._gpus, self._init_status = gpus, init_status

    def cuInit(self, flags: int) -> int:  # noqa: N802 (CUDA's name, as below)
        return self._init_status

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self._gpus)
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = ordinal
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = self._gpus[device.value][0].encode()[: size - 1]
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = self._gpus[device.value][{75: 1, 76: 2}[attribute]]
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 13010
        return 0


@pytest.fixture
def plug_in_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this a machine with GPUs: ``plug_in_gpu(("RTX 3060", 8, 6))``; none: a driver without a GPU."""

    def plug_in(*gpus: tuple[str, int, int], init_status: int = 0) -> None:
        monkeypatch.setattr(nvidia, "_load_driver", lambda: FakeDriver(*gpus, init_status=init_status))

    return plug_in


class _Status(enum.IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorStreamCaptureUnsupported = 900  # noqa: N815


class _CopyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1  # noqa: N815
    cudaMemcpyDeviceToHost = 2  # noqa: N815
    cudaMemcpyDeviceToDevice = 3  # noqa: N815


class _CaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1  # noqa: N815


Work = Callable[[], None]


@dataclass
class _Mark:
    """A recorded event."""

    stream: int
    reached: bool = False

    def reach(self) -> None:
        self.reached = True


@dataclass
class _Queue:
    waiting: list[Work] = field(default_factory=list)
    captured: list[Work] | None = None


class FakeCuda(ModuleType):
    """``cuda.bindings.runtime``: work on a stream is done when somebody waits for it, and not before.

    Attributes:
        calls: what was called since the last ``clear``, but for allocations and what nobody waits for.
    """

    cudaError_t = _Status  # noqa: N815
    cudaMemcpyKind = _CopyKind  # noqa: N815
    cudaStreamCaptureMode = _CaptureMode  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaEventDisableTiming = 2  # noqa: N815

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.memory: dict[int, Any] = {}  # buffers, or the sizes of those that are somebody else's
        self.pinned: set[int] = set()
        self.queues: dict[int, _Queue] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.events: dict[int, _Mark | None] = {}
        self.calls: list[str] = []
        self.launches = 0
        self.streams = 0
        self.created = 0  # events
        self.allocations = 0
        self.working = threading.RLock()  # a stream's work is done in order, whoever waits for it
        self.memory_left = 1 << 30

    def submit(self, stream: int, work: Work) -> None:
        """Queue work, or record it while the stream is captured."""
        queue = self.queue(stream)
        (queue.waiting if queue.captured is None else queue.captured).append(work)

    def queue(self, stream: int) -> _Queue:
        """What is queued on a stream, which somebody else may have made."""
        return self.queues.setdefault(stream, _Queue())

    def cudaGetErrorString(self, status: _Status) -> tuple[_Status, bytes]:  # noqa: N802
        return _Status.cudaSuccess, status.name.removeprefix("cudaError").encode()

    def _allocate(self, size: int) -> tuple[_Status, int | None]:
        if size > self.memory_left:
            return _Status.cudaErrorMemoryAllocation, None
        if (status := self.count_allocation()) != _Status.cudaSuccess:
            return status, None
        buffer = (ctypes.c_char * max(size, 1))()
        self.memory[ctypes.addressof(buffer)] = buffer
        return _Status.cudaSuccess, ctypes.addressof(buffer)

    def count_allocation(self) -> _Status:
        """None is possible while a stream is captured."""
        if any(queue.captured is not None for queue in self.queues.values()):
            return _Status.cudaErrorStreamCaptureUnsupported
        self.allocations += 1
        return _Status.cudaSuccess

    def cudaMalloc(self, size: int) -> tuple[_Status, int | None]:  # noqa: N802
        return self._allocate(size)

    def cudaMallocHost(self, size: int) -> tuple[_Status, int | None]:  # noqa: N802
        status, address = self._allocate(size)
        if address:
            self.pinned.add(address)
        return status, address

    def cudaFree(self, address: int) -> tuple[_Status]:  # noqa: N802
        for stream in list(self.queues):
            self.cudaStreamSynchronize(stream)
        del self.memory[address]
        return (_Status.cudaSuccess,)

    def cudaFreeHost(self, address: int) -> tuple[_Status]:  # noqa: N802
        self.pinned.remove(address)
        return self.cudaFree(address)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[_Status, int]:  # noqa: N802
        assert flags == self.cudaStreamNonBlocking
        self.streams += 1
        self.queues[self.streams] = _Queue()
        return _Status.cudaSuccess, self.streams

    def cudaStreamDestroy(self, stream: int) -> tuple[_Status]:  # noqa: N802
        self.queues[stream].waiting.clear()
        return (_Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[_Status]:  # noqa: N802
        queue = self.queue(stream)
        if queue.captured is not None:
            return (_Status.cudaErrorStreamCaptureUnsupported,)
        self.calls.append(f"host waits for all of {stream}")
        with self._at_work():
            while queue.waiting:
                queue.waiting.pop(0)()
        return (_Status.cudaSuccess,)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[_Status, int]:  # noqa: N802
        assert flags == self.cudaEventDisableTiming
        self.created += 1
        self.events[self.created] = None
        return _Status.cudaSuccess, self.created

    def cudaEventDestroy(self, event: int) -> tuple[_Status]:  # noqa: N802
        del self.events[event]
        return (_Status.cudaSuccess,)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[_Status]:  # noqa: N802
        mark = self.events[event] = _Mark(stream)
        self.submit(stream, mark.reach)
        self.calls.append(f"record {event} on {stream}")
        return (_Status.cudaSuccess,)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[_Status]:  # noqa: N802
        if mark := self.events.get(event):
            self.submit(stream, lambda: self._work_up_to(mark))
        self.calls.append(f"{stream} waits for {event}")
        return (_Status.cudaSuccess,)

    def cudaEventSynchronize(self, event: int) -> tuple[_Status]:  # noqa: N802
        if mark := self.events.get(event):
            self._work_up_to(mark)
        self.calls.append(f"host waits for {event}")
        return (_Status.cudaSuccess,)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """One thread at a time; and nothing is freed in between, which would wait for the work that is being done."""
        with self.working:
            collecting = gc.isenabled()
            gc.disable()
            try:
                yield
            finally:
                if collecting:
                    gc.enable()

    def _work_up_to(self, mark: _Mark) -> None:
        with self._at_work():
            while not mark.reached:
                self.queues[mark.stream].waiting.pop(0)()

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: _CopyKind, stream: int) -> tuple[_Status]:  # noqa: N802
        on_host = [self._inside(address, size) in self.pinned for address in (source, target)]
        if (
            None in (self._inside(source, size), self._inside(target, size))
            or on_host
            != {
                _CopyKind.cudaMemcpyHostToDevice: [True, False],
                _CopyKind.cudaMemcpyDeviceToHost: [False, True],
                _CopyKind.cudaMemcpyDeviceToDevice: [False, False],
            }[kind]
        ):
            return (_Status.cudaErrorInvalidValue,)
        self.calls.append(f"{kind.name.removeprefix('cudaMemcpy')} on {stream}")

        def copy() -> None:
            ctypes.memmove(target, source, size)

        self.submit(stream, copy)
        return (_Status.cudaSuccess,)

    def _inside(self, address: int, size: int) -> int | None:
        for start, buffer in self.memory.items():
            if start <= address and address + size <= start + (buffer if isinstance(buffer, int) else len(buffer)):
                return start
        return None

    def cudaStreamBeginCapture(self, stream: int, mode: _CaptureMode) -> tuple[_Status]:  # noqa: N802
        self.queue(stream).captured = []
        return (_Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[_Status, list[Work] | None]:  # noqa: N802
        queue = self.queue(stream)
        captured, queue.captured = queue.captured, None
        return _Status.cudaSuccess, captured

    def cudaGraphInstantiate(self, graph: list[Work], flags: int) -> tuple[_Status, int]:  # noqa: N802
        self.graphs[len(self.graphs) + 1] = list(graph)
        return _Status.cudaSuccess, len(self.graphs)

    def cudaGraphDestroy(self, graph: list[Work]) -> tuple[_Status]:  # noqa: N802
        graph.clear()
        return (_Status.cudaSuccess,)

    def cudaGraphExecDestroy(self, runnable: int) -> tuple[_Status]:  # noqa: N802
        self.graphs[runnable].clear()
        return (_Status.cudaSuccess,)

    def cudaGraphLaunch(self, runnable: int, stream: int) -> tuple[_Status]:  # noqa: N802
        self.launches += 1
        self.calls.append(f"graph on {stream}")
        self.queue(stream).waiting.extend(self.graphs[runnable])
        return (_Status.cudaSuccess,)


class _Mode(enum.IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class _GraphStrategy(enum.IntEnum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class _Specialization(enum.IntEnum):
    LAZY = 0
    EAGER = 1


class _Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class FakeLogger:
    """``trt.ILogger``."""

    Severity = _Severity

    def log(self, severity: _Severity, message: str) -> None: ...


class FakeTensorRt(ModuleType):
    """``tensorrt`` or ``tensorrt_rtx``.

    A plan is JSON: its profiles as height and width, smallest to largest, and frames at once.
    """

    ILogger = FakeLogger
    TensorIOMode = _Mode
    CudaGraphStrategy = _GraphStrategy
    DynamicShapesKernelSpecializationStrategy = _Specialization

    def __init__(self, name: str, version: str, cuda: FakeCuda) -> None:
        super().__init__(name)
        self.__version__ = version
        self.cuda = cuda
        self.contexts: list[FakeContext] = []
        self.capturable = False
        self.logger: FakeLogger | None = None

    def nptype(self, kind: str) -> type[Any]:
        return {"UINT8": np.uint8, "FLOAT": np.float32}[kind]

    def Runtime(self, logger: FakeLogger) -> Any:  # noqa: N802
        self.logger = logger

        def deserialize_cuda_engine(plan: bytes) -> FakeEngine | None:
            try:
                return FakeEngine(self, **json.loads(plan))
            except ValueError:
                logger.log(_Severity.ERROR, "Error Code 1:\n malformed plan")
                return None

        return SimpleNamespace(deserialize_cuda_engine=deserialize_cuda_engine)


class FakeEngine:
    """``ICudaEngine``: the mean colour of every 8 x 8 cell, normalised."""

    num_io_tensors = 2

    def __init__(self, trt: FakeTensorRt, profiles: list[list[list[int]]], batch: int = 1) -> None:
        self.trt, self.profiles, self.batch = trt, profiles, batch

    def get_tensor_name(self, index: int) -> str:
        return ("frames", "embedding")[index]

    def get_tensor_mode(self, name: str) -> _Mode:
        return _Mode.INPUT if name == "frames" else _Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> str:
        return "UINT8" if name == "frames" else "FLOAT"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, -1, -1, 3)

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(
            cuda_graph_strategy=_GraphStrategy.DISABLED,
            dynamic_shapes_kernel_specialization_strategy=_Specialization.LAZY,
        )

    def create_execution_context(self, config: Any = None) -> FakeContext:
        context = FakeContext(self, config)
        self.trt.contexts.append(context)
        return context


class FakeContext:
    """``IExecutionContext``."""

    def __init__(self, engine: FakeEngine, config: Any) -> None:
        self._engine, self.config = engine, config
        self._profile = engine.profiles[0]
        self._shape: tuple[int, ...] | None = None
        self._addresses: dict[str, int] = {}
        self._prepared = False
        self.fails = self.refuses_capture = False

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._profile = self._engine.profiles[index]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        (low, _, high), (n, height, width, colours) = self._profile, shape
        fits = low[0] <= height <= high[0] and low[1] <= width <= high[1]
        fits = fits and 1 <= n <= self._engine.batch and colours == 3
        if fits:
            self._shape = shape
        return fits

    def infer_shapes(self) -> list[str]:
        return [] if self._shape else ["frames"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self._shape, "no input shape set"
        n, height, width, _ = self._shape
        return self._shape if name == "frames" else (n, height // 8, width // 8, 3)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address % 4 == 0 and address in self._engine.trt.cuda.memory

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self._engine.trt.cuda
        capturing = cuda.queues[stream].captured is not None
        unready = self.refuses_capture or not self._prepared or self._compiles_beside()
        if self.fails or set(self._addresses) != {"frames", "embedding"} or (capturing and unready):
            assert self._engine.trt.logger
            self._engine.trt.logger.log(_Severity.ERROR, "cannot enqueue")
            return False
        self._prepared = True
        cuda.calls.append(f"network on {stream}")
        cuda.submit(stream, self._compute)
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        assert self._shape, "asked before it knows its shapes"
        return self._engine.trt.capturable and not self._compiles_beside()

    def _compiles_beside(self) -> bool:
        return self.config is not None and (
            self.config.dynamic_shapes_kernel_specialization_strategy != _Specialization.EAGER
            or self.config.cuda_graph_strategy != _GraphStrategy.DISABLED
        )

    def _compute(self) -> None:
        views = {}
        for name, kind in (("frames", ctypes.c_uint8), ("embedding", ctypes.c_float)):
            shape = self.get_tensor_shape(name)
            pointer = ctypes.cast(self._addresses[name], ctypes.POINTER(kind))
            views[name] = np.ctypeslib.as_array(pointer, shape)
        views["embedding"][...] = mean_colours(views["frames"])


def mean_colours(frames: U8Array) -> F32Array:
    """What the fake engines compute, written once more in NumPy."""
    n, height, width, _ = frames.shape
    cells = frames.astype(np.float32).reshape(n, height // 8, 8, width // 8, 8, 3).mean(axis=(2, 4))
    normalised: F32Array = cells / np.maximum(np.linalg.norm(cells, axis=-1, keepdims=True), 1e-12)
    return normalised


@pytest.fixture(name="mean_colours")
def mean_colours_fixture() -> Callable[[U8Array], F32Array]:
    """What `encoder_graph` computes."""
    return mean_colours


@dataclass
class FakeNvidia:
    """A machine with an RTX 3060, CUDA and both TensorRTs."""

    cuda: FakeCuda
    tensorrt: FakeTensorRt
    tensorrt_rtx: FakeTensorRt
    mean_colours: Callable[[U8Array], F32Array] = mean_colours


@pytest.fixture
def fake_nvidia(monkeypatch: pytest.MonkeyPatch, plug_in_gpu: Callable[..., None]) -> FakeNvidia:
    cuda = FakeCuda()
    machine = FakeNvidia(
        cuda, FakeTensorRt("tensorrt", "10.9.0.34", cuda), FakeTensorRt("tensorrt_rtx", "1.7.1.116", cuda)
    )
    plug_in_gpu(("NVIDIA GeForce RTX 3060", 8, 6))
    for name, module in (
        ("cuda", ModuleType("cuda")),
        ("cuda.bindings", ModuleType("cuda.bindings")),
        ("cuda.bindings.runtime", cuda),
        ("tensorrt", machine.tensorrt),
        ("tensorrt_rtx", machine.tensorrt_rtx),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    return machine


class EmulatedGpu:
    """libvosrt_cuda_emulated on a fake CUDA runtime, which both TensorRT and it then queue their work on.

    Args:
        library: its path.
        cuda: does the work, as late as it may.
    """

    def __init__(self, library: Path, cuda: FakeCuda) -> None:
        self._library, self._cuda = ctypes.CDLL(str(library)), cuda
        for name in ("use", "run", "forget"):
            getattr(self._library, f"vosrt_cuda_emulated_{name}").argtypes = (ctypes.c_void_p,)
        status, address = ctypes.c_int, ctypes.c_void_p
        kinds: dict[str, tuple[Any, ...]] = {
            "submit": (None, address, address),
            "synchronise": (status, address),
            "is_capturing": (status, address),
            "begin_capture": (status, address),
            "end_capture": (ctypes.c_int, address),
            "launch": (status, ctypes.c_int, address),
            "destroy": (None, ctypes.c_int),
            "record": (status, address, address),
            "wait_for": (status, address, address),
            "wait": (status, address),
            "allocated": (status, address, ctypes.c_size_t, ctypes.c_int),
            "freed": (None, address),
        }
        functions = [ctypes.CFUNCTYPE(*kind) for kind in kinds.values()]
        runtime = type("Runtime", (ctypes.Structure,), {"_fields_": list(zip(kinds, functions, strict=True))})
        self._runtime: Any = runtime(
            *(function(getattr(self, f"_{name}")) for name, function in zip(kinds, functions, strict=True))
        )

    def __enter__(self) -> EmulatedGpu:
        self._library.vosrt_cuda_emulated_use(ctypes.byref(self._runtime))
        return self

    def __exit__(self, *_: object) -> None:
        """Let everything go that was made on it, before it works by itself again."""
        gc.collect()
        for stream in list(self._cuda.queues):
            self._cuda.cudaStreamSynchronize(stream)
        self._library.vosrt_cuda_emulated_use(None)

    def _submit(self, stream: int, work: int) -> None:
        self._cuda.submit(stream, _NativeWork(self._library, work))

    def _synchronise(self, stream: int) -> int:
        return self._cuda.cudaStreamSynchronize(stream)[0]

    def _is_capturing(self, stream: int) -> int:
        return self._cuda.queue(stream).captured is not None

    def _begin_capture(self, stream: int) -> int:
        return self._cuda.cudaStreamBeginCapture(stream, _CaptureMode.cudaStreamCaptureModeThreadLocal)[0]

    def _end_capture(self, stream: int) -> int:
        return self._cuda.cudaGraphInstantiate(self._cuda.cudaStreamEndCapture(stream)[1] or [], 0)[1]

    def _launch(self, graph: int, stream: int) -> int:
        return self._cuda.cudaGraphLaunch(graph, stream)[0]

    def _destroy(self, graph: int) -> None:
        self._cuda.cudaGraphExecDestroy(graph)

    def _record(self, event: int, stream: int) -> int:
        return self._cuda.cudaEventRecord(event, stream)[0]

    def _wait_for(self, stream: int, event: int) -> int:
        return self._cuda.cudaStreamWaitEvent(stream, event, 0)[0]

    def _wait(self, event: int) -> int:
        return self._cuda.cudaEventSynchronize(event)[0]

    def _allocated(self, memory: int, size: int, pinned: int) -> int:
        if (status := self._cuda.count_allocation()) == _Status.cudaSuccess:
            self._cuda.memory[memory] = size
            if pinned:
                self._cuda.pinned.add(memory)
        return status

    def _freed(self, memory: int) -> None:
        self._cuda.pinned.discard(memory)
        if memory in self._cuda.memory:  # not what was there before
            self._cuda.cudaFree(memory)


class _NativeWork:
    """Work of the library, to be done once or, in a graph, again and again."""

    def __init__(self, library: ctypes.CDLL, work: int) -> None:
        self._run, self._work = library.vosrt_cuda_emulated_run, work
        weakref.finalize(self, library.vosrt_cuda_emulated_forget, work)

    def __call__(self) -> None:
        self._run(self._work)


@pytest.fixture
def whole_nvidia(fake_nvidia: FakeNvidia, cuda_emulated: Path) -> Iterator[FakeNvidia]:
    """A machine whose memories are on the GPU, too."""
    with EmulatedGpu(cuda_emulated, fake_nvidia.cuda):
        yield fake_nvidia
