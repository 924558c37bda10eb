"""ONNX Runtime and its CPU provider (`nvidia_providers` has those for GPUs)."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vosrt.arrays import DeviceKind, DeviceTensor
from vosrt.engines.base import EngineInfo, Input
from vosrt.engines.registry import Registration, encoder_factory
from vosrt.engines.static_shape import Axes, Sizes, StaticShapeEngine, processors
from vosrt.errors import EngineError, MissingExtraError
from vosrt.onnx_file import Graph
from vosrt.text import reason_of
from vosrt.types import ModelPrecision

Configure = Callable[[Any], None]
Provider: TypeAlias = tuple[str, Mapping[str, str]]

_FATAL_ONLY = 4
_DTYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}


class OnnxRuntimeEngine(StaticShapeEngine):
    """Runs one graph with ONNX Runtime.

    Args:
        threads: in one operator; 0 is one per processor.
        configure: adds a plugin's provider to the session options; None: see ``providers``.
        providers: built into ONNX Runtime, first choice first, each with its options.
        device: memory that outputs are left in by `run_on_device`.
    """

    def __init__(
        self,
        graph: Graph | Path,
        axes: Axes,
        info: EngineInfo,
        *,
        threads: int = 0,
        configure: Configure | None = None,
        providers: Sequence[Provider] = (("CPUExecutionProvider", {}),),
        device: DeviceKind = "cpu",
    ) -> None:
        super().__init__(graph, axes, info)
        self._threads = threads or processors()
        self._configure = configure
        self._providers = providers
        self._device: DeviceKind = device

    @property
    def device(self) -> DeviceKind:
        """Which memory `run_on_device` leaves outputs in."""
        return self._device

    def run_on_device(self, inputs: Mapping[str, Input]) -> dict[str, DeviceTensor]:
        """Run the graph and leave its outputs where they were computed: nothing is copied to the host.

        ONNX Runtime has finished them when this returns, and takes inputs there that are whole. Every call has outputs
        of its own.

        Raises:
            EngineError: the graph cannot be loaded or run.
        """
        session = self._session_for(self._sizes(inputs))
        try:
            binding = session.io_binding()
            for name, array in inputs.items():
                if isinstance(array, DeviceTensor):
                    place, kind = (array.device, array.device_id), array.dtype.type
                    binding.bind_input(name, *place, kind, list(array.shape), array.pointer)
                else:
                    binding.bind_cpu_input(name, np.ascontiguousarray(array))
            names = [output.name for output in session.get_outputs()]
            for name in names:
                binding.bind_output(name, self._device)
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            outputs = binding.get_outputs()
            return {name: self._tensor(output) for name, output in zip(names, outputs, strict=True)}
        except Exception as error:
            raise EngineError(f"{self._info.name} cannot run {self._graph.name}: {reason_of(error)}") from error

    def _tensor(self, value: Any) -> DeviceTensor:
        return DeviceTensor(
            pointer=int(value.data_ptr()),
            shape=tuple(value.shape()),
            dtype=_DTYPES[value.data_type()],
            device=self._device,
            owner=value,
        )

    def _create_session(self, sizes: Sizes) -> Any:
        ort = load_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY  # failures are raised; the log would repeat them on stderr
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # Idle workers must not burn the processors that decoding and matching run on.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for axis, size in sizes:
            options.add_free_dimension_override_by_name(axis, size)
        try:
            if self._configure:
                self._configure(options)
                return ort.InferenceSession(self._graph.content, options)
            # Without its fallback, which prints a banner to stdout before it tries the processor.
            session = ort.InferenceSession(
                self._graph.content, options, providers=list(self._providers), enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise EngineError(f"{self._info.name} cannot load {self._graph.name}: {reason_of(error)}") from error
        # A provider whose libraries are missing is passed over with a line in the log.
        wanted, got = self._providers[0][0], session.get_providers()[0]
        if got != wanted:
            raise EngineError(f"{self._info.name} cannot load {self._graph.name}: {wanted} was passed over for {got}")
        return session

    def _run(self, session: Any, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        names = [output.name for output in session.get_outputs()]
        try:
            return dict(zip(names, session.run(names, dict(inputs)), strict=True))
        except Exception as error:
            raise EngineError(f"{self._info.name} cannot run {self._graph.name}: {reason_of(error)}") from error


def cpu_engine(
    graph: Graph | Path, axes: Axes, *, precision: ModelPrecision = "fp32", threads: int = 0, reason: str
) -> OnnxRuntimeEngine:
    """ONNX Runtime's own CPU provider, which computes in fp32 at every precision.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        EngineError: it cannot be imported.
    """
    info = EngineInfo("cpu", "fp32", _version(), reason)
    return OnnxRuntimeEngine(graph, axes, info, threads=threads)


def load_onnxruntime() -> ModuleType:
    """Import ONNX Runtime when it is needed, not with vosrt.

    Raises:
        MissingExtraError: it is not installed.
        EngineError: it is broken.
    """
    if "onnxruntime" not in sys.modules and importlib.util.find_spec("onnxruntime") is None:
        raise MissingExtraError("ONNX Runtime", "cpu")
    try:
        ort = importlib.import_module("onnxruntime")
    except ImportError as error:
        reason = f"onnxruntime cannot be imported ({reason_of(error)})"
        remedy = "pip install --force-reinstall onnxruntime"
        raise EngineError(f"{reason}; install it again: {remedy}", reason=reason, remedy=remedy) from error
    ort.disable_telemetry_events()  # of a host that imported it before us
    ort.set_default_logger_severity(_FATAL_ONLY)  # failures are raised; a session's own level comes too late for them
    return ort


def _version() -> str:
    return f"onnxruntime {load_onnxruntime().__version__}"


ENGINE = Registration(
    name="cpu",
    needs="ONNX Runtime",
    devices=("cpu",),
    precisions=("fp32",),
    factory=encoder_factory(cpu_engine),
    mask_factory=cpu_engine,
    find=_version,
    rank=7,
    fallback=True,
)
