"""NVIDIA's driver and TensorRT, as far as vosrt calls them, on a fake CUDA runtime."""

from __future__ import annotations

import ctypes
import enum
import hashlib
import json
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests.fakes.cuda import FakeCuda
from vosrt.engines.tensorrt_files import EngineRecord, Profile, write_record
from vosrt.types import F32Array, U8Array


def write_engine(graph: Path, /, plan: bytes, profiles: tuple[Profile, ...], **fields: Any) -> EngineRecord:
    """Put an engine for an RTX 3090 beside a graph, with its record.

    Args:
        plan: bytes of the engine.
        fields: of the record, ``flavour`` and ``version`` among them.
    """
    usual = EngineRecord(
        graph="encoder",
        graph_sha256=hashlib.sha256(graph.read_bytes()).hexdigest(),
        flavour="tensorrt",
        version="",
        architecture="sm_86",
        precision="fp16",
        profiles=profiles,
        recipe=1,
        layers=3,
        build_seconds=0.5,
        sha256=hashlib.sha256(plan).hexdigest(),
        bytes=len(plan),
    )
    record = replace(usual, **fields)
    folder = graph.parent / "engines"
    folder.mkdir(exist_ok=True)
    (folder / f"{record.stem}.engine").write_bytes(plan)
    write_record(record, folder)
    return record


class FakeDriver:
    """The functions of libcuda that `find_gpu` calls, for a machine with these GPUs."""

    def __init__(self, *gpus: tuple[str, int, int], init_status: int = 0, cuda: int = 13010) -> None:
        self._gpus, self._init_status, self._cuda = gpus, init_status, cuda

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
        version._obj.value = self._cuda
        return 0


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


# Tensors of the networks, outputs last: type and shape, whose axes are named as in `vosrt.engines.mask_axes`.
TENSORS: dict[str, dict[str, tuple[str, tuple[str | int, ...]]]] = {
    "encoder": {"frames": ("UINT8", ("n", "height", "width", 3)), "embedding": ("FLOAT", ("n", "h", "w", 3))},
    "mask_encoder": {
        "frames": ("UINT8", (1, "height", "width", 3)),
        "masks": ("FLOAT", ("objects", "height", "width")),
        "context": ("FLOAT", (1, 2, "h", "w")),
        "values": ("FLOAT", ("objects", "h", "w", 2)),
    },
    "decoder": {
        "readout": ("FLOAT", ("objects", "h", "w", 2)),
        "values": ("FLOAT", ("objects", "h", "w", 2)),
        "res3": ("FLOAT", (1, 2, "h", "w")),
        "res2": ("FLOAT", (1, 2, "h2", "w2")),
        "logits": ("FLOAT", ("objects", "h2", "w2")),
    },
}


class FakeTensorRt(ModuleType):
    """``tensorrt`` or ``tensorrt_rtx``.

    A plan is JSON: its profiles as height and width, smallest to largest, frames or objects at once, and its role.
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
        self.capturable = self.refuses_profiles = self.refuses_shapes = False
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
    """``ICudaEngine`` of a network of `COMPUTES`."""

    def __init__(
        self, trt: FakeTensorRt, profiles: list[list[list[int]]], batch: int = 1, role: str = "encoder"
    ) -> None:
        self.trt, self.profiles, self.batch, self.role = trt, profiles, batch, role
        self.tensors = TENSORS[role]
        self.num_io_tensors = len(self.tensors)

    @property
    def output(self) -> str:
        return list(self.tensors)[-1]

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> _Mode:
        return _Mode.OUTPUT if name == self.output else _Mode.INPUT

    def get_tensor_dtype(self, name: str) -> str:
        return self.tensors[name][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self.tensors[name][1])

    def create_runtime_config(self) -> Any:
        return FakeRuntimeConfig()

    def create_execution_context(self, config: Any = None) -> FakeContext:
        context = FakeContext(self, config)
        self.trt.contexts.append(context)
        return context


class FakeRuntimeConfig:
    """``IRuntimeConfig``, which is its caller's: a context that outlives it must not be used."""

    cuda_graph_strategy = _GraphStrategy.DISABLED
    dynamic_shapes_kernel_specialization_strategy = _Specialization.LAZY


class FakeContext:
    """``IExecutionContext``."""

    def __init__(self, engine: FakeEngine, config: FakeRuntimeConfig | None) -> None:
        self._engine, self._config = engine, None if config is None else weakref.ref(config)
        self.device = engine.trt.cuda.current
        self._profile = engine.profiles[0]
        self._sizes: dict[str, int] = {}
        self._addresses: dict[str, int] = {}
        self._prepared = False
        self.fails = self.refuses_capture = False

    @property
    def config(self) -> FakeRuntimeConfig | None:
        config = None if self._config is None else self._config()
        assert config or self._config is None, "the context is used after its IRuntimeConfig is gone"
        return config

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        if self._engine.trt.refuses_profiles:
            raise RuntimeError("Error in set optimization profile async.")
        self._profile = self._engine.profiles[index]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        (low, _, high), axes = self._profile, self._engine.tensors[name][1]
        sizes = {axis: size for axis, size in zip(axes, shape, strict=True) if isinstance(axis, str)}
        fits = all(size == axis for axis, size in zip(axes, shape, strict=True) if isinstance(axis, int))
        for axes_of, step in ((("height", "width"), 1), (("h", "w"), 8), (("h2", "w2"), 4)):
            for axis, least, most in zip(axes_of, low, high, strict=True):
                fits = fits and -(-least // step) <= sizes.get(axis, -(-most // step)) <= -(-most // step)
        fits = fits and all(1 <= sizes.get(axis, 1) <= self._engine.batch for axis in ("n", "objects"))
        if fits:
            self._sizes |= sizes
        return fits

    def infer_shapes(self) -> list[str]:
        if self._engine.trt.refuses_shapes:
            raise RuntimeError("infer_shapes error code: -1")
        return [] if self._sizes else ["frames"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self._sizes, "no input shape set"
        sizes = self._sizes
        if self._engine.role == "encoder":
            sizes = {**sizes, "h": sizes["height"] // 8, "w": sizes["width"] // 8}
        return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in self._engine.tensors[name][1])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address % 4 == 0 and address in self._engine.trt.cuda.memory

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self._engine.trt.cuda
        assert cuda.current == self.device, "another GPU is the calling thread's"
        capturing = cuda.queues[stream].captured is not None
        unready = self.refuses_capture or not self._prepared or self._compiles_beside()
        if self.fails or set(self._addresses) != set(self._engine.tensors) or (capturing and unready):
            assert self._engine.trt.logger
            self._engine.trt.logger.log(_Severity.ERROR, "cannot enqueue")
            return False
        self._prepared = True
        cuda.calls.append(f"network on {stream}")
        cuda.submit(stream, self._compute)
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        assert self._sizes, "asked before it knows its shapes"
        return self._engine.trt.capturable and not self._compiles_beside()

    def _compiles_beside(self) -> bool:
        config = self.config
        return config is not None and (
            config.dynamic_shapes_kernel_specialization_strategy != _Specialization.EAGER
            or config.cuda_graph_strategy != _GraphStrategy.DISABLED
        )

    def _compute(self) -> None:
        views = {}
        for name, (kind, _) in self._engine.tensors.items():
            pointer = ctypes.cast(
                self._addresses[name], ctypes.POINTER(ctypes.c_uint8 if kind == "UINT8" else ctypes.c_float)
            )
            views[name] = np.ctypeslib.as_array(pointer, self.get_tensor_shape(name))
        out = views.pop(self._engine.output)
        out[...] = COMPUTES[self._engine.role](views)


def mean_colours(frames: U8Array) -> F32Array:
    """What the fake engines compute, written once more in NumPy."""
    n, height, width, _ = frames.shape
    cells = frames.astype(np.float32).reshape(n, height // 8, 8, width // 8, 8, 3).mean(axis=(2, 4))
    normalised: F32Array = cells / np.maximum(np.linalg.norm(cells, axis=-1, keepdims=True), 1e-12)
    return normalised


# The mean colour of every 8 x 8 cell, normalised; the share of each object in a cell; a map and the mean of values.
COMPUTES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "encoder": lambda given: mean_colours(given["frames"]),
    "mask_encoder": lambda given: given["masks"][:, ::8, ::8, None] + given["context"][0].transpose(1, 2, 0),
    "decoder": lambda given: given["res2"][0, 0] + given["values"].mean((1, 2, 3))[:, None, None],
}


@dataclass
class FakeNvidia:
    """A machine with an RTX 3060, CUDA and both TensorRTs."""

    cuda: FakeCuda
    tensorrt: FakeTensorRt
    tensorrt_rtx: FakeTensorRt
    mean_colours: Callable[[U8Array], F32Array] = mean_colours
