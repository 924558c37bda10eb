"""What a `CudaMemory` does for refinement: masks as planes, and the values of objects, all on its GPU.

Planes are f32 [1 + M, H, W]: soft masks of the background, then of the M objects by ascending id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vosrt.arrays import DeviceTensor
from vosrt.core.library import address
from vosrt.cuda.memory import CudaMemory
from vosrt.cuda.runtime import CudaQueue, TensorPool
from vosrt.errors import OptionError
from vosrt.types import U8Array


def draw_planes(memory: CudaMemory, out: DeviceTensor) -> None:
    """Queue the newest frame's soft masks, resized (`vosrt.core.reference.resize_soft`), into planes."""
    memory.call_there("planes", out.pointer, *out.shape[1:])


def refine_planes(memory: CudaMemory, logits: DeviceTensor, out: DeviceTensor, *, residual: bool) -> None:
    """Queue what a decoder makes of the newest frame's soft masks.

    Args:
        memory: that propagated them.
        logits: f32 [M, h4, w4].
        out: receives planes: `vosrt.core.reference.correct` of the resized soft masks with the resized logits, or
            `vosrt.core.reference.aggregate` of these.
        residual: which of the two.
    """
    memory.call_there("refine", logits.pointer, *logits.shape[1:], residual, out.pointer, *out.shape[1:])


def mark_planes(memory: CudaMemory, planes: DeviceTensor, mask: U8Array) -> None:
    """Draw the marked objects of u8 [H, W], which the memory tracks, into planes, and wait for that."""
    data = address("mask", mask, (0, 0), np.uint8)
    memory.call_there("mark_planes", planes.pointer, *planes.shape[1:], data, *mask.shape, mask.shape[1])


def keep_planes(memory: CudaMemory, planes: DeviceTensor) -> None:
    """Queue that planes, resized, become the newest frame's soft masks."""
    memory.call_there("set_planes", planes.pointer, *planes.shape[1:])


@dataclass(frozen=True)
class _ObjectValues:
    """Values of one object: f32 [h * w, V] at its reference, and [slots, h * w, V], frame t in slot t mod slots."""

    reference: DeviceTensor
    recent: DeviceTensor


class CudaValues:
    """`vosrt.refinement.ValueMemory` on a GPU.

    Args:
        context: recent frames that are kept.
    """

    def __init__(self, context: int) -> None:
        self._context = context
        self._pool = TensorPool("the values of objects")
        self._blocks: dict[int, dict[int, _ObjectValues]] = {}  # by reference (the memory's order), by object

    def refer(self, frame: int, ids: list[int], shape: tuple[int, int], queue: CudaQueue) -> None:
        """Make a frame the reference of objects.

        Args:
            frame: its number.
            ids: the objects.
            shape: h * w and V.
            queue: of the memory.

        Raises:
            OptionError: there is not enough memory.
        """
        dtype = np.dtype(np.float32)
        recent = (max(1, self._context), *shape)
        fresh = {
            each: _ObjectValues(self._pool.take(queue, shape, dtype), self._pool.take(queue, recent, dtype))
            for each in ids
        }
        for block in self._blocks.values():
            for object_id in ids:
                block.pop(object_id, None)
        self._blocks.setdefault(frame, {}).update(fresh)
        self._drop_idle()

    def put(self, frame: int, ids: Sequence[int], values: DeviceTensor, queue: CudaQueue) -> None:
        """Queue copies of all objects' values f32 [M, h, w, V] in a frame. To be done before the next one is read."""
        for reference_frame, block in self._blocks.items():
            for object_id, kept in block.items():
                of_object = values[ids.index(object_id)]
                if frame == reference_frame:
                    queue.copy(of_object, kept.reference)
                if self._context:
                    queue.copy(of_object, kept.recent[frame % self._context])

    def read(self, memory: CudaMemory, ids: Sequence[int], out: DeviceTensor) -> None:
        """Queue V_q of the newest frame, f32 [M, h, w, V]: values, weighted as the memory weighs its soft masks.

        Raises:
            OptionError: an object has no values, as there was no memory for them when it was marked.
        """
        if unknown := set(ids).difference(*self._blocks.values()):
            raise OptionError(
                f"object {min(unknown)} has no values since marking it failed; mark it again, or remove it"
            )
        for number, block in enumerate(self._blocks.values()):
            for object_id, kept in block.items():
                at = out[ids.index(object_id)]
                slots, _, channels = kept.recent.shape
                task = (kept.reference.pointer, kept.recent.pointer, slots, channels, at.pointer)
                memory.call_there("values", number, *task)

    def remove(self, object_id: int) -> None:
        """Forget an object."""
        for block in self._blocks.values():
            block.pop(object_id, None)
        self._drop_idle()

    def _drop_idle(self) -> None:
        """Keep the references that the memory keeps: the first, and those of an object."""
        first = min(self._blocks, default=-1)
        self._blocks = {frame: block for frame, block in self._blocks.items() if block or frame == first}
