"""What a `CudaMemory` does to masks as planes on its GPU, for refinement.

Planes are f32 [1 + M, H, W]: soft masks of the background, then of the M objects by ascending id.
"""

from __future__ import annotations

from vosrt.arrays import DeviceTensor
from vosrt.cuda.memory import CudaMemory


def draw_planes(memory: CudaMemory, out: DeviceTensor) -> None:
    """Queue the newest frame's soft masks, resized (`vosrt.core.reference.resize_soft`), into planes."""
    memory.call_there("planes", out.pointer, *out.shape[1:])


def refine_planes(memory: CudaMemory, logits: DeviceTensor, out: DeviceTensor, *, residual: bool) -> None:
    """Queue what a decoder makes of the newest frame's soft masks.

    Args:
        logits: f32 [M, h4, w4].
        out: receives planes: `vosrt.core.reference.correct` of the resized soft masks with the resized logits, or
            `vosrt.core.reference.aggregate` of these.
        residual: which of the two.
    """
    memory.call_there("refine", logits.pointer, *logits.shape[1:], residual, out.pointer, *out.shape[1:])


def keep_planes(memory: CudaMemory, planes: DeviceTensor) -> None:
    """Queue that planes, resized, become the newest frame's soft masks."""
    memory.call_there("set_planes", planes.pointer, *planes.shape[1:])
