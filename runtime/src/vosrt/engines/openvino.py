"""OpenVINO's own runtime, without ONNX Runtime: its CPU device also takes processors that the plugin refuses."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vosrt.engines.base import EngineInfo
from vosrt.engines.static_shape import Axes, Sizes, StaticShapeEngine, one_line, processors
from vosrt.errors import EngineError, MissingExtraError


class _Session(NamedTuple):
    """A compiled graph with the one request that runs it, and who may use it."""

    request: Any
    outputs: list[str]
    lock: threading.Lock


class OpenVinoEngine(StaticShapeEngine):
    """Runs one graph on OpenVINO's CPU device.

    Args:
        graph: the ONNX file.
        axes: see :class:`StaticShapeEngine`.
        bf16: arithmetic in bf16, else in fp32.
        threads: 0 is one per processor.
        reason: for :class:`EngineInfo`.

    Raises:
        MissingExtraError: the package is not installed.
        EngineError: the graph cannot be read.
    """

    def __init__(self, graph: Path, axes: Axes, *, bf16: bool, threads: int = 0, reason: str) -> None:
        openvino = load_openvino()
        version = str(openvino.get_version()).split("-")[0]
        super().__init__(
            graph, axes, EngineInfo("openvino-direct", "bf16" if bf16 else "fp32", f"openvino {version}", reason)
        )
        self._core = _core()
        self._settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "INFERENCE_NUM_THREADS": str(threads or processors()),
            "PERFORMANCE_HINT": "LATENCY",
        }

    def _create_session(self, sizes: Sizes) -> _Session:
        size_of = dict(sizes)
        try:
            model = self._core.read_model(self._graph)
            shapes = {}
            for name, axes in self._axes.items():
                fixed = model.input(name).get_partial_shape()
                shapes[name] = [size_of[axis] if axis else fixed[i].get_length() for i, axis in enumerate(axes)]
            model.reshape(shapes)
            compiled = self._core.compile_model(model, "CPU", self._settings)
            names = [output.get_any_name() for output in compiled.outputs]
            return _Session(compiled.create_infer_request(), names, threading.Lock())
        except Exception as error:  # OpenVINO's exceptions share no base class
            raise EngineError(f"{self.info.name} cannot load {self._graph.name}: {one_line(error)}") from error

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
            raise EngineError(f"{self.info.name} cannot run {self._graph.name}: {one_line(error)}") from error


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
        return importlib.import_module("openvino")
    except ImportError:
        raise MissingExtraError("the OpenVINO runtime", "openvino") from None
