"""The way of arrays between the host and a GPU: asynchronous copies through two pinned buffers."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vosrt.arrays import DeviceTensor
from vosrt.cuda.runtime import CudaEvent, CudaQueue, Runtime, TensorPool, pinned_array


class PinnedBuffer:
    """Pinned arrays by name, for one transfer at a time.

    Attributes:
        copied: the copies are done.
        download: whose arrays are in it and have not been taken; None for uploads.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._arrays: dict[tuple[str, tuple[int, ...], np.dtype[Any]], NDArray[Any]] = {}
        self.copied = CudaEvent(runtime)
        self.download: Download | None = None

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the array of a name; another one where shape or dtype differ from before."""
        key = (name, shape, dtype)
        if key not in self._arrays:
            self._arrays = {kept: each for kept, each in self._arrays.items() if kept[0] != name}
            self._arrays[key] = pinned_array(self._runtime, shape, dtype)
        return self._arrays[key]


class DoubleBuffer:
    """Two pinned buffers, so that the processor fills or reads one while the GPU copies the other."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._buffers: list[PinnedBuffer] = []
        self._written: CudaEvent | None = None

    def older(self) -> PinnedBuffer:
        """Return the buffer that was used less recently."""
        full = len(self._buffers) == 2
        self._buffers.append(self._buffers.pop(0) if full else PinnedBuffer(self._runtime))
        return self._buffers[-1]

    @property
    def newest(self) -> PinnedBuffer:
        """The buffer that was used most recently."""
        return self._buffers[-1]

    def upload(
        self,
        arrays: Mapping[str, NDArray[Any]],
        to: Mapping[str, DeviceTensor],
        stream: CudaQueue,
        after: CudaEvent | None = None,
    ) -> None:
        """Start asynchronous copies from the host, whose arrays are the caller's again when this returns.

        Args:
            arrays: by name.
            to: on the GPU, by name.
            after: what the copies wait for, besides what is queued on the stream; None is nothing.
        """
        buffer = self.older()
        buffer.copied.wait()
        pinned = {name: buffer.array(name, each.shape, each.dtype) for name, each in arrays.items()}
        for name, array in arrays.items():
            np.copyto(pinned[name], array)
        if after is not None:
            stream.wait_for(after)
        for name, array in pinned.items():
            stream.upload(array, to[name])
        stream.record(buffer.copied)

    def download(
        self, tensors: Sequence[DeviceTensor], written_on: CudaQueue, beside: CudaQueue | None = None
    ) -> Download:
        """Start asynchronous copies to the host, behind the work that writes them.

        Two can be on their way; the third one finishes the first.

        Args:
            tensors: to be copied; they are held until then.
            written_on: their stream.
            beside: the stream to copy on, so that later work on theirs does not wait; None copies on theirs.
        """
        buffer = self.older()
        if buffer.download is not None:
            buffer.download.finish()
        copies = written_on if beside is None else beside
        if beside is not None:
            self._written = self._written or CudaEvent(self._runtime)
            written_on.record(self._written)
            beside.wait_for(self._written)
        arrays = [buffer.array(str(i), each.shape, each.dtype) for i, each in enumerate(tensors)]
        for tensor, array in zip(tensors, arrays, strict=True):
            copies.download_to(tensor, array)
        copies.record(buffer.copied)
        buffer.download = Download(tensors, arrays, buffer)
        return buffer.download


class Download:
    """Arrays that come to the host. Safe to use from several threads.

    Args:
        tensors: on the GPU.
        arrays: pinned memory, in the same order.
    """

    def __init__(self, tensors: Sequence[DeviceTensor], arrays: list[NDArray[Any]], buffer: PinnedBuffer) -> None:
        self._tensors: Sequence[DeviceTensor] | None = tensors
        self._arrays, self._buffer = arrays, buffer
        self._lock = threading.Lock()

    def take(self) -> list[NDArray[Any]]:
        """Return the arrays, waited for, in memory of their own."""
        self.finish()
        return self._arrays

    def finish(self) -> None:
        """Wait for the arrays, and let the buffer be used for others."""
        with self._lock:
            if self._tensors is None:
                return
            self._buffer.copied.wait()
            self._arrays = [array.copy() for array in self._arrays]
            self._tensors = self._buffer.download = None


class LabelArrays(NamedTuple):
    """What a frame's work writes, on the GPU.

    Attributes:
        labels: u8 [H, W].
        confidence: f32 [H, W].
    """

    labels: DeviceTensor
    confidence: DeviceTensor


class LabelBuffers:
    """Where a memory's labels are written on the GPU, and their way to the host."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._pool = TensorPool("the labels")
        self._buffers = DoubleBuffer(runtime)
        self._memorys: CudaQueue | None = None
        self._copies: CudaQueue | None = None

    @property
    def bytes(self) -> int:
        """On the GPU, so far."""
        return self._pool.bytes

    def stream_of(self, stream: int) -> CudaQueue:
        """Return the memory's stream, a cudaStream_t."""
        if self._memorys is None or self._memorys.stream != stream:
            self._memorys = CudaQueue(self._runtime, stream)
        return self._memorys

    def take(self, stream: CudaQueue, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceTensor:
        """Return room for an array that is written on a stream; see `TensorPool.take`."""
        return self._pool.take(stream, shape, dtype)

    def download(self, arrays: LabelArrays, written_on: CudaQueue) -> Download:
        """Start asynchronous copies on a stream of their own; see `DoubleBuffer.download`."""
        if self._copies is None:
            self._copies = CudaQueue(self._runtime)
        return self._buffers.download(arrays, written_on, self._copies)
