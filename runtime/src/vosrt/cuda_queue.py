"""A CUDA stream, its events, and memory on a GPU and pinned on the host, through libvosrt_cuda."""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vosrt.cuda_library import CudaLibrary, load_cuda_library
from vosrt.engines.device import DeviceTensor


class CudaQueue:
    """A CUDA stream with arrays on its GPU; freed with the object.

    Args:
        library: libvosrt_cuda.
        device: number of the GPU.
        stream: handle of a stream that exists; None makes one.

    Raises:
        OptionError: there is no such GPU.
    """

    def __init__(self, library: CudaLibrary, device: int, stream: int | None = None) -> None:
        self._library, self.device = library, device
        self._handle = ctypes.c_void_p()
        library.call("vosrt_cuda_queue_create", device, ctypes.byref(self._handle))
        weakref.finalize(self, library.plain, "vosrt_cuda_queue_destroy", self._handle).atexit = False
        if stream is not None:
            library.call("vosrt_cuda_queue_use_stream", self._handle, stream)

    @property
    def stream(self) -> int:
        """The cudaStream_t, as an integer."""
        return int(self._library.plain("vosrt_cuda_queue_stream", self._handle))

    def allocate(self, shape: tuple[int, ...], dtype: Any, what: str) -> DeviceTensor:
        """An array on the GPU that lives as long as the tensor's owner.

        Raises:
            OptionError: there is not enough memory; the message has ``what``.
        """
        memory, kind = ctypes.c_void_p(), np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        self._library.call("vosrt_cuda_allocate", self.device, size, what.encode(), ctypes.byref(memory))
        owner = _Allocation()
        weakref.finalize(owner, self._library.plain, "vosrt_cuda_free", memory).atexit = False
        return DeviceTensor(
            pointer=memory.value or 0,
            shape=shape,
            dtype=kind,
            device="cuda",
            device_id=self.device,
            owner=owner,
            stream=self.stream,
        )

    def upload(self, array: NDArray[Any], to: DeviceTensor) -> None:
        """Copy a dense array of the same size to the GPU."""
        self._library.call("vosrt_cuda_queue_upload", self._handle, to.pointer, array.ctypes.data, array.nbytes)

    def copy(self, tensor: DeviceTensor, to: DeviceTensor) -> None:
        """Queue a copy on the GPU."""
        size = int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize
        self._library.call("vosrt_cuda_queue_copy", self._handle, to.pointer, tensor.pointer, size)

    def download(self, tensor: DeviceTensor) -> NDArray[Any]:
        """The array in host memory, once everything queued before is done."""
        array: NDArray[Any] = np.empty(tensor.shape, tensor.dtype)
        self.download_to(tensor, array)
        self.wait()
        return array

    def download_to(self, tensor: DeviceTensor, array: NDArray[Any]) -> None:
        """Queue a copy into a dense array of the same size, which is pinned, or the call waits."""
        self._library.call("vosrt_cuda_queue_download", self._handle, array.ctypes.data, tensor.pointer, array.nbytes)

    def resize_bgr(self, image: DeviceTensor, to: DeviceTensor) -> None:
        """Queue `vosrt.ops.resize_bgr` of u8 [H, W, 3], into u8 [height, width, 3]; the same bytes."""
        height, width = image.shape[:2]
        target = (to.pointer, to.shape[0], to.shape[1])
        self._library.call(
            "vosrt_cuda_queue_resize_bgr", self._handle, image.pointer, height, width, 3 * width, *target
        )

    def nv12_to_bgr(
        self, luma: int, chroma: int, stride: int, to: DeviceTensor, *, bt709: bool, full_range: bool
    ) -> None:
        """Queue the conversion of what video decoders give into u8 [H, W, 3].

        Args:
            luma: address on the GPU of u8 [H, W].
            chroma: address of u8 [H / 2, W / 2, 2], Cb and Cr, halves rounded up.
            stride: of the rows of both, in bytes.
            to: receives the picture in BGR order.
            bt709: the colours are BT.709's and not BT.601's.
            full_range: luma goes from 0 to 255 and not from 16 to 235.
        """
        height, width = to.shape[:2]
        self._library.call(
            "vosrt_cuda_queue_nv12_to_bgr",
            self._handle,
            luma,
            chroma,
            stride,
            height,
            width,
            bt709,
            full_range,
            to.pointer,
        )

    def record(self, event: CudaEvent) -> None:
        """Mark what is queued so far."""
        self._library.call("vosrt_cuda_queue_record", self._handle, event.handle)

    def wait_for(self, event: CudaEvent) -> None:
        """What is queued from now on waits for what the event marks."""
        self._library.call("vosrt_cuda_queue_wait_for", self._handle, event.handle)

    def wait(self) -> None:
        """Until everything queued so far is done."""
        self._library.call("vosrt_cuda_queue_wait", self._handle)


class CudaEvent:
    """A mark in the work of a queue; freed with the object.

    Args:
        library: libvosrt_cuda.
        device: number of the GPU.

    Attributes:
        handle: as the library's functions take it.
    """

    def __init__(self, library: CudaLibrary, device: int) -> None:
        self._library, self.handle = library, ctypes.c_void_p()
        library.call("vosrt_cuda_event_create", device, ctypes.byref(self.handle))
        weakref.finalize(self, library.plain, "vosrt_cuda_event_destroy", self.handle).atexit = False

    def wait(self) -> None:
        """Until what it marks is done."""
        self._library.call("vosrt_cuda_event_wait", self.handle)


class TensorPool:
    """Arrays on a GPU that are used again when nobody holds them.

    What is written into one anew is queued behind what was queued on the same stream before, so its readers belong
    there.

    Args:
        what: they are for, in an error's text.

    Attributes:
        bytes: allocated so far.
    """

    def __init__(self, what: str) -> None:
        self._what, self.bytes = what, 0
        self._free: dict[tuple[tuple[int, ...], np.dtype[Any]], list[DeviceTensor]] = {}

    def take(self, queue: CudaQueue, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceTensor:
        """One to write on a queue's stream.

        Raises:
            OptionError: there is not enough memory.
        """
        free = self._free.setdefault((shape, dtype), [])
        if free:
            kept = free.pop()
        else:
            kept = queue.allocate(shape, dtype, self._what)
            self.bytes += int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        lease = _Lease()
        weakref.finalize(lease, free.append, kept).atexit = False
        return replace(kept, owner=lease, stream=queue.stream)


class _Lease:
    """Gives memory back when nobody holds it."""


class _Allocation:
    """Owns memory on the GPU."""


def pinned_array(library: CudaLibrary, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array in host memory that a GPU copies to while the processor goes on."""
    address, size = ctypes.c_void_p(), int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    library.call("vosrt_cuda_allocate_host", size, ctypes.byref(address))
    memory = (ctypes.c_char * size).from_address(address.value or 0)
    weakref.finalize(memory, library.plain, "vosrt_cuda_free_host", address).atexit = False
    array: NDArray[Any] = np.ndarray(shape, dtype, buffer=memoryview(memory))
    return array


def download(tensor: DeviceTensor) -> NDArray[Any]:
    """An array on a GPU in host memory, once what is queued on its stream is done."""
    return CudaQueue(load_cuda_library(), tensor.device_id, tensor.stream).download(tensor)
