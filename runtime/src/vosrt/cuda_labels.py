"""Where a memory on a GPU writes labels, and the way that they take to the host."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vosrt.cuda_library import CudaLibrary
from vosrt.cuda_queue import CudaEvent, CudaQueue, TensorPool, pinned_array
from vosrt.engines.device import DeviceTensor
from vosrt.types import F32Array, U8Array

_CONFIDENCE_UNIT = 1 << 20  # of vosrt_cuda_frame.totals


class LabelArrays(NamedTuple):
    """What a frame's work writes, on the GPU.

    Attributes:
        labels: u8 [H, W].
        confidence: f32 [H, W].
        totals: u64 [256, 2]: per label, the sum of confidence in units of 2^-20, and pixels.
    """

    labels: DeviceTensor
    confidence: DeviceTensor
    totals: DeviceTensor


class LabelBuffers:
    """Where a memory's labels are written on the GPU, and the way that they take to the host.

    Args:
        library: libvosrt_cuda.
        device: number of the GPU.
    """

    def __init__(self, library: CudaLibrary, device: int) -> None:
        self._library, self._device = library, device
        self._pool = TensorPool("the labels")
        self._landings: list[_Landing] = []
        self._queues: dict[int, CudaQueue] = {}  # the memory's stream, and the one before
        self._copies: CudaQueue | None = None

    @property
    def bytes(self) -> int:
        """On the GPU, so far."""
        return self._pool.bytes

    def queue_on(self, stream: int) -> CudaQueue:
        """The queue of the memory's stream."""
        if stream not in self._queues:
            self._queues = {stream: CudaQueue(self._library, self._device, stream)}
        return self._queues[stream]

    def take(self, queue: CudaQueue, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceTensor:
        """Room for an array that is written on a queue; see `TensorPool.take`."""
        return self._pool.take(queue, shape, dtype)

    def bring(self, there: LabelArrays, written_on: CudaQueue, object_ids: tuple[int, ...]) -> LabelsOnTheirWay:
        """Queue copies to the host on a stream of their own; the one of two landings that was free for longer."""
        if self._copies is None:
            self._copies = CudaQueue(self._library, self._device)
        if len(self._landings) < 2:
            self._landings.append(_Landing(self._library, self._device))
        else:
            self._landings.append(self._landings.pop(0))
        landing = self._landings[-1]
        if (before := landing.taken_by) is not None:
            before.finish()
        written_on.record(landing.written)
        self._copies.wait_for(landing.written)
        arrays = [landing.pinned(tensor) for tensor in there]
        for tensor, array in zip(there, arrays, strict=True):
            self._copies.download_to(tensor, array)
        self._copies.record(landing.landed)
        landing.taken_by = LabelsOnTheirWay(there, arrays, landing, object_ids)
        return landing.taken_by


class _Landing:
    """Pinned memory for one frame's labels.

    Attributes:
        written: the labels are whole on the GPU.
        landed: they are whole in host memory.
        taken_by: whose labels are there; None once they have been taken.
    """

    def __init__(self, library: CudaLibrary, device: int) -> None:
        self._library = library
        self._pinned: dict[tuple[tuple[int, ...], np.dtype[Any]], NDArray[Any]] = {}
        self.written, self.landed = CudaEvent(library, device), CudaEvent(library, device)
        self.taken_by: LabelsOnTheirWay | None = None

    def pinned(self, tensor: DeviceTensor) -> NDArray[Any]:
        key = (tensor.shape, tensor.dtype)
        if key not in self._pinned:
            self._pinned[key] = pinned_array(self._library, *key)
        return self._pinned[key]


class LabelsOnTheirWay:
    """Labels that come to the host. Safe to use from several threads.

    Args:
        there: on the GPU, kept from being written anew until they have landed.
        arrays: pinned memory, in the same order.
        landing: that the memory belongs to.
        object_ids: tracked when the labels were queued.
    """

    def __init__(
        self, there: LabelArrays, arrays: list[NDArray[Any]], landing: _Landing, object_ids: tuple[int, ...]
    ) -> None:
        self._there: LabelArrays | None = there
        self._arrays, self._landing, self._ids = arrays, landing, object_ids
        self._lock = threading.Lock()

    def take(self) -> tuple[U8Array, F32Array, dict[int, float]]:
        """Labels u8 [H, W], confidence f32 [H, W] and its mean per object (0 where it has no pixel), waited for."""
        self.finish()
        labels, confidence, totals = self._arrays
        means = {each: float(totals[each, 0]) / _CONFIDENCE_UNIT / max(int(totals[each, 1]), 1) for each in self._ids}
        return labels, confidence, means

    def finish(self) -> None:
        """Wait for them, and let the landing be used for others."""
        with self._lock:
            if self._there is None:
                return
            self._landing.landed.wait()
            self._arrays = [array.copy() for array in self._arrays]
            self._there = self._landing.taken_by = None
