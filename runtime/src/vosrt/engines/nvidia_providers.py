"""ONNX Runtime's providers for NVIDIA GPUs: CUDA and TensorRT from `onnxruntime-gpu`, TensorRT-RTX from its plugin."""

from __future__ import annotations

import importlib
import importlib.util
import threading
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from vosrt.cache import cache_root
from vosrt.engines.base import EngineInfo
from vosrt.engines.nvidia import Gpu, find_gpu
from vosrt.engines.onnxruntime import OnnxRuntimeEngine, load_onnxruntime
from vosrt.engines.registry import Registration, encoder_factory
from vosrt.engines.static_shape import Axes
from vosrt.errors import EngineError, MissingExtraError
from vosrt.onnx_file import Graph, as_graph
from vosrt.text import reason_of
from vosrt.types import ModelPrecision

_GPU_PACKAGE = "pip uninstall --yes onnxruntime && pip install 'vosrt[gpu]'"
_CUDA, _TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
_RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
_RTX_REGISTRATION = "vosrt.tensorrt-rtx"
_rtx_lock = threading.Lock()


def cuda_engine(
    graph: Graph | Path, axes: Axes, *, precision: ModelPrecision, threads: int = 0, reason: str
) -> OnnxRuntimeEngine:
    """The CUDA provider.

    Args:
        precision: ``"auto"`` lets products be rounded to TF32, ``"fp32"`` does not.

    Raises:
        EngineError: no GPU, or an ONNX Runtime without this provider.
    """
    gpu, ort = find_gpu(), _onnxruntime_with(_CUDA)
    tf32 = precision != "fp32"
    info = EngineInfo("cuda", "tf32" if tf32 else "fp32", _version(ort, gpu), reason)
    return OnnxRuntimeEngine(graph, axes, info, threads=threads, providers=[_cuda(tf32)], device="cuda")


def tensorrt_engine(
    graph: Graph | Path, axes: Axes, *, precision: ModelPrecision, threads: int = 0, reason: str
) -> OnnxRuntimeEngine:
    """The TensorRT provider; it builds an engine for each frame size, which takes minutes, and keeps it on disk.

    Args:
        precision: ``"auto"`` and ``"fp16"`` are fp16, which computes what a graph is not quantised in, too.

    Raises:
        EngineError: no GPU, or an ONNX Runtime without this provider.
    """
    graph = as_graph(graph)
    gpu, ort = find_gpu(), _onnxruntime_with(_TENSORRT)
    with suppress(ImportError, OSError):  # its libraries may have come from PyPI, where no loader looks for them
        importlib.import_module("tensorrt")
    fp16, quantised = precision != "fp32", graph.quantised is not None and precision in ("auto", graph.quantised)
    folder = cache_folder(f"tensorrt-{ort.__version__}-{gpu.architecture}-{'fp16' if fp16 else 'fp32'}", graph)
    options = {
        "device_id": "0",
        "trt_fp16_enable": "1" if fp16 else "0",
        "trt_int8_enable": "1" if quantised else "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }
    info = EngineInfo("onnxruntime-tensorrt", "fp16" if fp16 else "fp32", _version(ort, gpu), reason)
    # TensorRT takes the graph but for the bytes of the frame, which CUDA turns into floats.
    providers = [(_TENSORRT, options), _cuda(tf32=False)]
    return OnnxRuntimeEngine(graph, axes, info, threads=threads, providers=providers, device="cuda")


def tensorrt_rtx_engine(
    graph: Graph | Path, axes: Axes, *, precision: ModelPrecision, threads: int = 0, reason: str
) -> OnnxRuntimeEngine:
    """The TensorRT-RTX provider, which comes as a plugin for the plain ``onnxruntime``.

    Args:
        precision: computes as the graph says, and may round products to TF32, at every precision.

    Raises:
        MissingExtraError: the plugin is not installed.
        EngineError: no GPU, or none that the plugin takes.
    """
    device, version, gpu = find_tensorrt_rtx_device()
    folder = cache_folder(f"{version.replace(' ', '-')}-{gpu.architecture}", graph)

    def configure(options: Any) -> None:
        options.add_provider_for_devices([device], {"nv_runtime_cache_path": str(folder)})

    shown = f"onnxruntime {load_onnxruntime().__version__}, {version}, {gpu.name} ({gpu.architecture})"
    info = EngineInfo("onnxruntime-tensorrt-rtx", "tf32", shown, reason)
    return OnnxRuntimeEngine(graph, axes, info, threads=threads, configure=configure)


def find_tensorrt_rtx_device() -> tuple[Any, str, Gpu]:
    """The plugin's device (an ``OrtEpDevice``), the plugin's version and the GPU; registers the plugin if need be.

    Raises:
        MissingExtraError: the plugin is not installed.
        EngineError: there is no GPU, or the plugin cannot be loaded or takes none of this machine's.
    """
    if importlib.util.find_spec(_RTX_PLUGIN) is None:
        raise MissingExtraError("the TensorRT-RTX provider", "onnxruntime-tensorrt-rtx")
    gpu = find_gpu()  # before the plugin, which loads 250 MB of libraries when it is imported
    ort = load_onnxruntime()
    try:
        plugin = importlib.import_module(_RTX_PLUGIN)
    except (ImportError, OSError) as error:
        raise EngineError(f"{_RTX_PLUGIN} cannot be imported: {reason_of(error)}") from error
    version = f"{_RTX_PLUGIN.replace('_', '-')} {plugin.__version__}"
    with _rtx_lock:
        devices = _devices(ort, plugin)
        if not devices:
            try:
                ort.register_execution_provider_library(_RTX_REGISTRATION, plugin.get_library_path())
            except Exception as error:  # ONNX Runtime's exceptions share no base class
                if "already registered" not in str(error):
                    raise EngineError(f"{version} cannot be loaded: {reason_of(error)}") from error
            devices = _devices(ort, plugin)
    if not devices:
        raise EngineError(f"{version} offers no device for {gpu.name} ({gpu.architecture})")
    return devices[0], version, gpu


def _version_with(provider: str) -> str:
    find_gpu()
    return f"onnxruntime {_onnxruntime_with(provider).__version__}"


def cache_folder(key: str, graph: Graph | Path) -> Path:
    """Where a provider may keep what it builds: one folder per key and content of the graph, made if need be.

    Raises:
        EngineError: it cannot be made.
    """
    folder = cache_root() / f"{key}-{as_graph(graph).sha256[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(
            f"{folder} cannot be made ({error.strerror}); set VOSRT_CACHE to a writable folder"
        ) from error
    return folder


def _devices(ort: ModuleType, plugin: ModuleType) -> list[Any]:
    return [each for each in ort.get_ep_devices() if each.ep_name == plugin.get_ep_name()]


def _onnxruntime_with(provider: str) -> ModuleType:
    ort = load_onnxruntime()
    if provider not in ort.get_available_providers():
        reason = f"onnxruntime {ort.__version__} has no {provider}"
        line = f"{reason}; replace it by the build for GPUs: {_GPU_PACKAGE}"
        raise EngineError(line, reason=reason, remedy=_GPU_PACKAGE)
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA and cuDNN may have come from PyPI, where no loader looks for them
    return ort


def _cuda(tf32: bool) -> tuple[str, dict[str, str]]:
    return _CUDA, {"device_id": "0", "use_tf32": "1" if tf32 else "0"}


def _version(ort: ModuleType, gpu: Gpu) -> str:
    return f"onnxruntime {ort.__version__}, CUDA {gpu.cuda}, {gpu.name} ({gpu.architecture})"


CUDA = Registration(
    name="cuda",
    needs="an NVIDIA GPU and onnxruntime-gpu",
    devices=("cuda",),
    precisions=("fp32",),
    factory=encoder_factory(cuda_engine),
    mask_factory=cuda_engine,
    find=lambda: _version_with(_CUDA),
    rank=5,
    fallback=True,
)
TENSORRT = Registration(
    name="onnxruntime-tensorrt",
    needs="an NVIDIA GPU, onnxruntime-gpu and TensorRT",
    devices=("cuda",),
    precisions=("fp16", "fp32"),
    factory=encoder_factory(tensorrt_engine),
    find=lambda: _version_with(_TENSORRT),
    rank=3,
)
TENSORRT_RTX = Registration(
    name="onnxruntime-tensorrt-rtx",
    needs="an NVIDIA RTX GPU and the TensorRT-RTX plugin of ONNX Runtime",
    devices=("cuda",),
    precisions=(),
    factory=encoder_factory(tensorrt_rtx_engine),
    find=lambda: find_tensorrt_rtx_device()[1],
    rank=4,
)
