"""OpenVINO's own runtime and its CPU device, which takes any x86-64 processor."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vosrt._telemetry import quiet_import
from vosrt.core import native
from vosrt.engines.base import EngineInfo
from vosrt.engines.registry import Registration, encoder_factory
from vosrt.engines.static_shape import Axes, Sizes, StaticShapeEngine, processors
from vosrt.errors import EngineError, MissingExtraError, OptionError
from vosrt.onnx_file import Graph
from vosrt.text import reason_of
from vosrt.types import ModelPrecision


class _Session(NamedTuple):
    """A compiled graph with the one request that runs it, and who may use it."""

    request: Any
    outputs: list[str]
    lock: threading.Lock


class OpenVinoEngine(StaticShapeEngine):
    """Runs one graph on OpenVINO's CPU device.

    Args:
        axes: see `StaticShapeEngine`.
        bf16: arithmetic in bf16, else in fp32.

    Raises:
        MissingExtraError: the package is not installed.
        EngineError: the graph cannot be read.
    """

    def __init__(self, graph: Graph | Path, axes: Axes, *, bf16: bool, threads: int = 0, reason: str) -> None:
        super().__init__(graph, axes, EngineInfo("openvino", "bf16" if bf16 else "fp32", _version(), reason))
        self._core = _core()
        self._settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "INFERENCE_NUM_THREADS": str(threads or processors()),
            "PERFORMANCE_HINT": "LATENCY",
        }

    def _create_session(self, sizes: Sizes) -> _Session:
        size_of = dict(sizes)
        try:
            model = self._core.read_model(self._graph.content)
            shapes = {}
            for name, axes in self._axes.items():
                fixed = model.input(name).get_partial_shape()
                shapes[name] = [size_of[axis] if axis else fixed[i].get_length() for i, axis in enumerate(axes)]
            model.reshape(shapes)
            compiled = self._core.compile_model(model, "CPU", self._settings)
            # A tensor behind an Identity has several names, of which OpenVINO shows any.
            return _Session(compiled.create_infer_request(), list(self._graph.outputs), threading.Lock())
        except Exception as error:  # OpenVINO's exceptions share no base class
            raise EngineError(f"{self.info.name} cannot load {self._graph.name}: {reason_of(error)}") from error

    def _run(self, session: _Session, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            with session.lock:  # a request that runs does not even show its tensors
                for name, array in inputs.items():
                    expected = session.request.get_tensor(name).data.dtype
                    if array.dtype != expected:
                        raise TypeError(f"{name!r} is {array.dtype}; expected {expected}")
                session.request.infer(dict(inputs))
                # The request's own memory is overwritten by its next run.
                return {name: np.array(session.request.get_tensor(name).data) for name in session.outputs}
        except Exception as error:
            raise EngineError(f"{self.info.name} cannot run {self._graph.name}: {reason_of(error)}") from error


@cache
def _core() -> Any:
    """The one core of this process.

    A core gives the thread that makes it a stack for signals and takes it back when it ends. Where several cores
    overlap, the thread is left with a stack that is unmapped, and the next signal, such as Ctrl-C, kills the process.
    """
    return load_openvino().Core()


def load_openvino() -> ModuleType:
    """Import OpenVINO when it is needed, not with vosrt.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return quiet_import("openvino")
    except ImportError:
        raise MissingExtraError("OpenVINO", "openvino") from None


def _version() -> str:
    return f"openvino {str(load_openvino().get_version()).split('-')[0]}"


@cache
def processor_has_bf16() -> bool:
    """Whether this processor multiplies bf16 natively (AVX512-BF16 or AMX); emulation would be slower than fp32."""
    return any(detect() for detect in (_bf16_by_cpuinfo, _bf16_by_native_core))


def _bf16_by_cpuinfo() -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = {flag for line in text.splitlines() if line.startswith("flags") for flag in line.split()}
    return not flags.isdisjoint({"avx512_bf16", "amx_bf16"})


def _bf16_by_native_core() -> bool:
    try:
        return any(native.isa_available(isa) for isa in ("avx512bf16", "amx"))
    except OptionError:  # this installation has no native core
        return False


def _create(graph: Graph, axes: Axes, *, precision: ModelPrecision, threads: int, reason: str) -> OpenVinoEngine:
    # Layers that are not quantised, too, run in what is fastest.
    bf16 = precision == "bf16" or (precision in ("auto", graph.quantised) and processor_has_bf16())
    return OpenVinoEngine(graph, axes, bf16=bf16, threads=threads, reason=reason)


ENGINE = Registration(
    name="openvino",
    needs="OpenVINO",
    devices=("cpu",),
    precisions=("fp32", "bf16"),
    factory=encoder_factory(_create),
    mask_factory=_create,
    find=_version,
    rank=6,
    former_names=("openvino-direct",),
)
