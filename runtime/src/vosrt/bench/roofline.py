"""How fast this machine multiplies and copies, and how much of that matching needs."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from vosrt._telemetry import quiet_import
from vosrt.engines.openvino import processor_has_bf16
from vosrt.types import PropagationOptions

_BF16_ISAS = ("avx512bf16", "amx", "amx-emulated", "cuda")
_REPEATS = 5


@dataclass(frozen=True)
class MatchWork:
    """The arithmetic of one frame's matching in the steady state, and the least memory traffic it can have.

    Attributes:
        flop: floating-point operations of the products (two per multiply-add); selection is not counted.
        bytes: every slot's keys and the query once, in the precision of the products.
    """

    flop: float
    bytes: float


def match_work(grid: tuple[int, int], channels: int, *, options: PropagationOptions, isa: str) -> MatchWork:
    """Work of one reference and the recent slots, each searched everywhere or in a window clipped at the borders.

    Args:
        grid: rows h and columns w of the feature grid.
        channels: K.
        isa: path of the native core, which decides the bytes per number.
    """
    height, width = grid
    cells, radius = height * width, options.radius
    reach = math.ceil(radius)
    square = [(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1)]
    offsets = [(y, x) for y, x in square if y * y + x * x < radius**2]
    local = sum(max(0, height - abs(y)) * max(0, width - abs(x)) for y, x in offsets)
    pairs = cells * cells + options.context * local
    element = 2 if product_precision(isa) == "bf16" else 4
    return MatchWork(flop=2.0 * channels * pairs, bytes=float(element * channels * cells * (options.context + 2)))


def product_precision(isa: str) -> str:
    """Precision of the products on a path of the native core: ``"bf16"`` or ``"fp32"``."""
    return "bf16" if isa in _BF16_ISAS else "fp32"


def measure_rates(threads: int, *, side: int = 2048, copy_mb: int = 256) -> dict[str, Any]:
    """Measure this machine: best of some repetitions each.

    The number of threads of NumPy's BLAS is set by the environment, before NumPy is imported.

    Args:
        threads: that copy, and that OpenVINO multiplies with.
        side: rows and columns of the matrices that are multiplied.
        copy_mb: size of the array that is copied, in MB; far more than the caches hold.

    Returns:
        ``copy_gb_s`` (bytes read plus bytes written, 10⁹ a second), ``gemm_fp32_gflop_s`` (NumPy's BLAS) and
        ``gemm_bf16_gflop_s`` (OpenVINO; None where it is not installed, or the processor has no bf16).
    """
    return {
        "copy_gb_s": round(_copy_rate(threads, copy_mb), 1),
        "gemm_fp32_gflop_s": round(_gemm_fp32_rate(side), 1),
        "gemm_bf16_gflop_s": _rounded(_gemm_bf16_rate(side, threads)),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _best_s(work: Any) -> float:
    work()
    best = math.inf
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def _copy_rate(threads: int, copy_mb: int) -> float:
    source = np.ones(copy_mb * 125_000, np.float64)
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        return 2e-9 * source.nbytes / _best_s(lambda: list(pool.map(lambda part: np.copyto(part[1], part[0]), parts)))


def _gemm_fp32_rate(side: int) -> float:
    left, right = np.random.default_rng(0).random((2, side, side), dtype=np.float32)
    product = np.empty_like(left)
    return 2e-9 * side**3 / _best_s(lambda: np.matmul(left, right, out=product))


def _gemm_bf16_rate(side: int, threads: int) -> float | None:
    if not processor_has_bf16():
        return None
    try:
        openvino: Any = quiet_import("openvino")
        operations: Any = quiet_import("openvino.opset13")
    except ImportError:
        return None
    left = operations.parameter([side, side], np.float32)
    # The right-hand side is a constant, as weights are: then it is brought into the kernel's layout beforehand.
    right = operations.constant(np.random.default_rng(0).random((side, side), dtype=np.float32))
    model = openvino.Model([operations.matmul(left, right, False, False)], [left], "gemm")
    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(np.ones((side, side), np.float32)))
    return float(2e-9 * side**3 / _best_s(request.infer))
