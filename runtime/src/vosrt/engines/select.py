"""Choosing an engine: the fastest one that can run the graph, with the reasons why faster ones could not."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from vosrt.bundle import CONTEXT, RES2, RES3, EncoderSpec
from vosrt.engines.base import Engine, EngineInfo
from vosrt.engines.fake import FakeEngine
from vosrt.engines.nvidia import find_gpu
from vosrt.engines.nvidia_providers import cuda_engine, tensorrt_engine, tensorrt_rtx_engine
from vosrt.engines.onnxruntime import cpu_engine, openvino_engine
from vosrt.engines.openvino import OpenVinoEngine
from vosrt.engines.static_shape import Axes, StaticShapeEngine
from vosrt.engines.tensorrt import TensorRtEngine
from vosrt.engines.tensorrt_files import ENGINE_PRECISIONS
from vosrt.engines.tensorrt_flavour import TENSORRT, TENSORRT_RTX
from vosrt.errors import EngineError, MissingExtraError, OptionError
from vosrt.native import find_native
from vosrt.types import Precision

EngineName = Literal[
    "auto",
    "tensorrt-direct",
    "tensorrt-rtx-direct",
    "tensorrt",
    "tensorrt-rtx",
    "cuda",
    "openvino",
    "openvino-direct",
    "cpu",
    "fake",
]

ENGINE_NAMES: tuple[str, ...] = get_args(EngineName)  # the last one is for tests
NVIDIA_ENGINES = ("tensorrt-direct", "tensorrt-rtx-direct", "tensorrt", "tensorrt-rtx", "cuda")
AUTO_ORDER = (*NVIDIA_ENGINES, "openvino", "openvino-direct", "cpu")

# Dynamic axes of the further graphs of a mask-embedding bundle, by role and input.
MASK_AXES: dict[str, Axes] = {
    "mask_encoder": {
        "frames": (None, "height", "width", None),
        "masks": ("objects", "height", "width"),
        CONTEXT: (None, None, "h", "w"),
    },
    "decoder": {
        "readout": ("objects", "h", "w", None),
        "values": ("objects", "h", "w", None),
        RES3: (None, None, "h", "w"),
        RES2: (None, None, "h2", "w2"),
    },
}

_PROBE_SIDE = 32
_PROBE_SIZES = {"objects": 1, "height": 32, "width": 32, "h": 4, "w": 4, "h2": 8, "w2": 8}  # of the axes above
_DIRECT = {"tensorrt-direct": TENSORRT, "tensorrt-rtx-direct": TENSORRT_RTX}
_PROVIDERS = {"tensorrt": tensorrt_engine, "tensorrt-rtx": tensorrt_rtx_engine, "cuda": cuda_engine}


def create_encoder_engine(
    graph: Path, spec: EncoderSpec, *, engine: str = "auto", precision: Precision = "auto", threads: int = 0
) -> Engine:
    """Create the engine for an encoder graph and prove on a tiny frame that it runs.

    Args:
        graph: the ONNX file (not read by the fake engine).
        spec: its contract.
        engine: one of :data:`ENGINE_NAMES`; ``"auto"`` tries :data:`AUTO_ORDER`.
        precision: inside the graph; ``"auto"`` is what the engine is fastest in: bf16 where the processor has it
            natively, the narrowest that was built for a GPU.
        threads: 0 is one per processor.

    Raises:
        OptionError: no such engine, or one that does not have the precision.
        MissingExtraError: the engine that was asked for is not installed.
        EngineError: the engine that was asked for, or every one, cannot run the graph.
    """
    if engine not in ENGINE_NAMES:
        raise OptionError(f"engine is {engine!r}; expected one of {', '.join(ENGINE_NAMES[:-1])}")
    if precision == "bf16" and engine in ("cpu", "fake"):
        raise OptionError(
            f"the {engine} engine computes in fp32 only; use precision 'auto', or engine 'openvino-direct'"
        )
    if engine == "fake":
        return FakeEngine(spec)
    if engine != "auto":
        try:
            return _create(engine, graph, spec, precision, threads, "asked for")
        except EngineError as error:
            raise EngineError(f"{error}; engine 'auto' takes the fastest that runs here") from error
    refusals: list[str] = []
    order: tuple[str, ...] = AUTO_ORDER
    try:
        find_gpu()
    except EngineError as error:
        order = tuple(name for name in AUTO_ORDER if name not in NVIDIA_ENGINES)
        refusals.append(f"{', '.join(NVIDIA_ENGINES)} refused: {str(error).split('; ')[0]}")
    for name in order:
        reason = "; ".join(["fastest of those that can run here", *refusals])
        try:
            return _create(name, graph, spec, precision, threads, reason)
        except (EngineError, MissingExtraError, OptionError) as error:
            refusals.append(f"{name} refused: {error}")
    raise EngineError("no engine can run the encoder: " + "; ".join(refusals))


def _create(
    name: str, graph: Path, spec: EncoderSpec, precision: Precision, threads: int, reason: str
) -> StaticShapeEngine:
    axes = {spec.input_name: ("n", "height", "width", None)}
    bf16 = processor_has_bf16() if precision == "auto" else precision == "bf16"
    created: StaticShapeEngine
    if name in _DIRECT:
        narrow = ENGINE_PRECISIONS if precision == "auto" else (precision,)
        direct = TensorRtEngine(graph, axes, flavour=_DIRECT[name], precisions=narrow, reason=reason)
        direct.probe(direct.smallest_inputs())
        return direct
    if name in _PROVIDERS:
        created = _PROVIDERS[name](graph, axes, precision=precision, threads=threads, reason=reason)
    elif name == "openvino":
        created = openvino_engine(graph, axes, bf16=bf16, threads=threads, reason=reason)
    elif name == "openvino-direct":
        created = OpenVinoEngine(graph, axes, bf16=bf16, threads=threads, reason=reason)
    else:
        if precision == "bf16":
            raise OptionError("the cpu engine computes in fp32 only")
        created = cpu_engine(graph, axes, threads=threads, reason=reason)
    side = max(_PROBE_SIDE, spec.min_side)
    created.probe({spec.input_name: np.zeros((1, side, side, 3), dtype=np.uint8)})
    return created


def create_mask_engine(graph: Path, role: str, encoder: EngineInfo, *, threads: int = 0) -> Engine:
    """Create the engine for a further graph of a mask-embedding bundle, of the kind that runs the encoder.

    Beside every engine for NVIDIA GPUs that is ``"cuda"``: the others are built for each number of objects, or for
    frames alone. Where it is not to be had, the graph runs on the processor.

    Args:
        graph: the ONNX file.
        role: ``"mask_encoder"`` or ``"decoder"``.
        encoder: the engine that runs the encoder, and its precision.
        threads: 0 is one per processor.

    Raises:
        EngineError: the graph cannot be loaded.
    """
    axes, bf16 = MASK_AXES[role], encoder.precision == "bf16"
    reason = "as the encoder"
    if encoder.name == "openvino":
        return openvino_engine(graph, axes, bf16=bf16, threads=threads, reason=reason)
    if encoder.name == "openvino-direct":
        return OpenVinoEngine(graph, axes, bf16=bf16, threads=threads, reason=reason)
    reason = f"the encoder runs on {encoder.name}"
    if encoder.name in NVIDIA_ENGINES:
        precision: Precision = "fp32" if encoder.precision == "fp32" else "auto"
        try:
            on_gpu = cuda_engine(graph, axes, precision=precision, threads=threads, reason=reason)
            on_gpu.probe_loading({name: _PROBE_SIZES[name] for each in axes.values() for name in each if name})
        except EngineError as error:
            reason = f"{reason}; cuda refused: {error}"
        else:
            return on_gpu
    return cpu_engine(graph, axes, threads=threads, reason=reason)


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
    native, _ = find_native()
    return native is not None and any(native.isa_available(isa) for isa in ("avx512bf16", "amx"))
