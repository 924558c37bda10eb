"""ONNX Runtime: its CPU provider, and the OpenVINO provider that comes as a plugin (`nvidia_providers`: those)."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vosrt.engines.base import EngineInfo, Input
from vosrt.engines.device import DeviceKind, DeviceTensor
from vosrt.engines.static_shape import Axes, Sizes, StaticShapeEngine, one_line, processors
from vosrt.errors import EngineError, MissingExtraError

Configure = Callable[[Any], None]
Provider: TypeAlias = tuple[str, Mapping[str, str]]

_FATAL_ONLY = 4
_DTYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}
_OPENVINO_REGISTRATION = "vosrt.openvino"
_openvino_lock = threading.Lock()


class OnnxRuntimeEngine(StaticShapeEngine):
    """Runs one graph with ONNX Runtime.

    Args:
        graph: the ONNX file.
        axes: per input, the names of its dynamic axes, None for fixed ones.
        info: what :attr:`info` says.
        threads: in one operator; 0 is one per processor.
        configure: adds a plugin's provider to the session options; None: see ``providers``.
        providers: built into ONNX Runtime, first choice first, each with its options.
        device: memory that outputs are left in by :meth:`run_on_device`.
    """

    def __init__(
        self,
        graph: Path,
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
            raise EngineError(f"{self._info.name} cannot run {self._graph.name}: {one_line(error)}") from error

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
                return ort.InferenceSession(self._graph, options)
            session = ort.InferenceSession(self._graph, options, providers=list(self._providers))
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise EngineError(f"{self._info.name} cannot load {self._graph.name}: {one_line(error)}") from error
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
            raise EngineError(f"{self._info.name} cannot run {self._graph.name}: {one_line(error)}") from error


def cpu_engine(graph: Path, axes: Axes, *, threads: int = 0, reason: str) -> OnnxRuntimeEngine:
    """ONNX Runtime's own CPU provider, fp32.

    Raises:
        EngineError: ONNX Runtime cannot be imported.
    """
    info = EngineInfo("cpu", "fp32", f"onnxruntime {load_onnxruntime().__version__}", reason)
    return OnnxRuntimeEngine(graph, axes, info, threads=threads)


def openvino_engine(graph: Path, axes: Axes, *, bf16: bool, threads: int = 0, reason: str) -> OnnxRuntimeEngine:
    """The CPU device of the OpenVINO plugin provider.

    Args:
        graph: the ONNX file.
        axes: see :class:`OnnxRuntimeEngine`.
        bf16: arithmetic in bf16, else in fp32.
        threads: 0 is one per processor.
        reason: for :class:`EngineInfo`.

    Raises:
        MissingExtraError: the plugin is not installed.
        EngineError: it offers no device for this processor.
    """
    device, version = find_openvino_device()
    precision = "bf16" if bf16 else "fp32"
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "INFERENCE_NUM_THREADS": str(threads or processors()),
        "PERFORMANCE_HINT": "LATENCY",
    }

    def configure(options: Any) -> None:
        options.add_provider_for_devices([device], {"load_config": json.dumps({"CPU": settings})})

    info = EngineInfo("openvino", precision, f"onnxruntime {load_onnxruntime().__version__}, {version}", reason)
    return OnnxRuntimeEngine(graph, axes, info, threads=threads, configure=configure)


def find_openvino_device() -> tuple[Any, str]:
    """The plugin's CPU device (an ``OrtEpDevice``) and the plugin's version; registers the plugin if need be.

    Raises:
        MissingExtraError: the plugin is not installed.
        EngineError: it cannot be loaded, or offers no device for this processor.
    """
    ort = load_onnxruntime()
    try:
        plugin = importlib.import_module("onnxruntime_ep_openvino")
    except ImportError:
        raise MissingExtraError("the OpenVINO engine", "openvino") from None
    version = f"onnxruntime-ep-openvino {importlib.metadata.version('onnxruntime-ep-openvino')}"
    with _openvino_lock:
        device = _openvino_cpu(ort, plugin)
        if device is None:
            try:
                ort.register_execution_provider_library(_OPENVINO_REGISTRATION, plugin.get_library_path())
            except Exception as error:
                if "already registered" not in str(error):
                    raise EngineError(f"{version} cannot be loaded: {one_line(error)}") from error
            device = _openvino_cpu(ort, plugin)
    if device is None:
        vendors = sorted({each.device.vendor for each in ort.get_ep_devices()})
        raise EngineError(
            f"{version} offers no CPU device here; it takes Intel processors only, this one is by {', '.join(vendors)}"
        )
    return device, version


def _openvino_cpu(ort: ModuleType, plugin: ModuleType) -> Any:
    for device in ort.get_ep_devices():
        if device.ep_name == plugin.get_ep_name() and device.ep_metadata.get("ov_device") == "CPU":
            return device
    return None


def load_onnxruntime() -> ModuleType:
    """Import ONNX Runtime when it is needed, not with vosrt.

    Raises:
        EngineError: it is not installed, or broken.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise EngineError(
            f"onnxruntime cannot be imported ({one_line(error)}); install it with: pip install onnxruntime"
        ) from error
