"""The one wrapper of the CUDA runtime: streams, events, memory on a GPU and pinned memory on the host.

The calls come from libvosrt_cuda, or from NVIDIA's Python bindings, as TensorRT also runs without libvosrt_cuda.
"""

from __future__ import annotations

import ctypes
import importlib
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vosrt.arrays import DEFAULT_STREAM, DeviceTensor
from vosrt.cuda.device import load_cuda_library
from vosrt.errors import EngineError, MissingExtraError


class LibraryRuntime:
    """The calls of libvosrt_cuda for one GPU, by number. Every call makes it the thread's current one.

    Raises:
        OptionError: the library is not installed, or there is no such GPU.
    """

    def __init__(self, device: int) -> None:
        self.device, self.library = device, load_cuda_library()

    def call(self, function: str, *arguments: Any) -> None:
        """Call ``vosrt_cuda_…``.

        Raises:
            OptionError: not enough memory, or no such GPU.
            EngineError: CUDA failed; the message has its own words.
        """
        self.library.call(f"vosrt_cuda_{function}", *arguments)

    def _create(self, function: str, *arguments: Any) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self.call(function, *arguments, ctypes.byref(handle))
        return handle

    def allocate(self, size: int, what: str) -> int:
        return self._create("allocate", self.device, size, what.encode()).value or 0

    def allocate_host(self, size: int) -> int:
        return self._create("allocate_host", size).value or 0

    def release(self, function: str, handle: Any) -> None:
        """Call a ``vosrt_cuda_…`` that frees or destroys."""
        self.library.plain(f"vosrt_cuda_{function}", handle)

    def create_stream(self, stream: int | None) -> tuple[Any, int]:
        handle = self._create("queue_create", self.device)
        if stream is not None:
            self.call("queue_use_stream", handle, stream)
        return handle, int(self.library.plain("vosrt_cuda_queue_stream", handle))

    def create_event(self) -> Any:
        return self._create("event_create", self.device)


# What the functions of vosrt_cuda.h are in CUDA's own API.
_COPIES = {
    "queue_upload": "cudaMemcpyHostToDevice",
    "queue_download": "cudaMemcpyDeviceToHost",
    "queue_copy": "cudaMemcpyDeviceToDevice",
}
_CALLS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "queue_record": lambda stream, event: ("cudaEventRecord", event, stream),
    "queue_wait_for": lambda stream, event: ("cudaStreamWaitEvent", stream, event, 0),
    "queue_wait": lambda stream: ("cudaStreamSynchronize", stream),
    "event_wait": lambda event: ("cudaEventSynchronize", event),
}
_RELEASES = {
    "free": "cudaFree",
    "free_host": "cudaFreeHost",
    "queue_destroy": "cudaStreamDestroy",
    "event_destroy": "cudaEventDestroy",
}


class BindingsRuntime:
    """The calls of ``cuda.bindings.runtime`` for one GPU, by number. Every call makes it the thread's current one.

    Raises:
        MissingExtraError: ``cuda-bindings`` is not installed.
    """

    def __init__(self, device: int = 0) -> None:
        self.device = device
        try:
            self.api: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError:
            raise MissingExtraError("the CUDA bindings package", "tensorrt") from None

    def call(self, function: str, *arguments: Any) -> None:
        """Do what ``vosrt_cuda_…`` of `LibraryRuntime` does.

        Raises:
            EngineError: CUDA failed; the message has its own words.
        """
        if function in _COPIES:
            stream, to, source, size = arguments
            kind = getattr(self.api.cudaMemcpyKind, _COPIES[function])
            self.cuda("cudaMemcpyAsync", to, source, size, kind, stream)
        else:
            self.cuda(*_CALLS[function](*arguments))

    def release(self, function: str, handle: Any) -> None:
        """Free or destroy what ``vosrt_cuda_…`` of `LibraryRuntime` would."""
        getattr(self.api, _RELEASES[function])(handle)

    def cuda(self, function: str, *arguments: Any) -> Any:
        """Call a function of the runtime and return what it gives besides its status.

        Raises:
            EngineError: it failed; the message has CUDA's own words.
        """
        self.select()
        return self._check(function, *getattr(self.api, function)(*arguments))

    def select(self) -> None:
        """Make the GPU the calling thread's: another library may have chosen another one."""
        self._check("cudaSetDevice", *self.api.cudaSetDevice(self.device))

    def _check(self, function: str, status: Any, *results: Any) -> Any:
        if status != self.api.cudaError_t.cudaSuccess:
            _, words = self.api.cudaGetErrorString(status)
            text = f"CUDA failed in {function}: {words.decode() if isinstance(words, bytes) else words}"
            if status == self.api.cudaError_t.cudaErrorInsufficientDriver:
                remedy = (
                    "upgrade the NVIDIA driver, or install the bindings for its CUDA: pip install 'cuda-bindings<13'"
                )
                raise EngineError(f"{text}; {remedy}", reason=text, remedy=remedy)
            raise EngineError(text)
        return results[0] if len(results) == 1 else results

    def allocate(self, size: int, what: str) -> int:
        del what
        return int(self.cuda("cudaMalloc", size))

    def allocate_host(self, size: int) -> int:
        return int(self.cuda("cudaMallocHost", size))

    def create_stream(self, stream: int | None) -> tuple[Any, int]:
        handle = (
            int(self.cuda("cudaStreamCreateWithFlags", self.api.cudaStreamNonBlocking)) if stream is None else stream
        )
        return handle, handle

    def create_event(self) -> Any:
        return int(self.cuda("cudaEventCreateWithFlags", self.api.cudaEventDisableTiming))


Runtime: TypeAlias = LibraryRuntime | BindingsRuntime
_Free: TypeAlias = list[tuple[DeviceTensor, set[int]]]


class CudaQueue:
    """A stream, with arrays on its GPU; freed with the object.

    Args:
        stream: the cudaStream_t of one that exists, as an integer; None makes one.
    """

    def __init__(self, runtime: Runtime, stream: int | None = None) -> None:
        self.runtime = runtime
        self._handle, self.stream = runtime.create_stream(stream)
        if stream is None or isinstance(runtime, LibraryRuntime):
            # At the end of the process the driver may be gone before this is; it frees what is left by itself.
            weakref.finalize(self, runtime.release, "queue_destroy", self._handle).atexit = False

    def allocate(self, shape: tuple[int, ...], dtype: Any, what: str) -> DeviceTensor:
        """Allocate an array on the GPU that lives as long as the tensor's owner.

        Raises:
            OptionError: libvosrt_cuda finds not enough memory; the message has ``what``.
            EngineError: CUDA failed.
        """
        kind = np.dtype(dtype)
        pointer, owner = self.runtime.allocate(size_of(shape, kind), what), _Allocation(self)
        weakref.finalize(owner, self.runtime.release, "free", pointer).atexit = False
        return DeviceTensor(
            pointer=pointer,
            shape=shape,
            dtype=kind,
            device="cuda",
            device_id=self.runtime.device,
            owner=owner,
            stream=self.stream,
            hand_over=self.hand_over,
        )

    def hand_over(self, consumer: int) -> None:
        """Have another stream, a cudaStream_t, wait for what is queued so far."""
        event = CudaEvent(self.runtime)
        self.record(event)
        CudaQueue(self.runtime, consumer).wait_for(event)

    def upload(self, array: NDArray[Any], to: DeviceTensor) -> None:
        """Queue a copy of a dense array of the same size to the GPU; the array is pinned, or the call takes it."""
        self.runtime.call("queue_upload", self._handle, to.pointer, array.ctypes.data, array.nbytes)

    def copy(self, tensor: DeviceTensor, to: DeviceTensor) -> None:
        """Queue a copy on the GPU."""
        self.runtime.call("queue_copy", self._handle, to.pointer, tensor.pointer, size_of(tensor.shape, tensor.dtype))

    def download(self, tensor: DeviceTensor) -> NDArray[Any]:
        """Return the array in host memory, once everything queued before is done."""
        array: NDArray[Any] = np.empty(tensor.shape, tensor.dtype)
        self.download_to(tensor, array)
        self.wait()
        return array

    def download_to(self, tensor: DeviceTensor, array: NDArray[Any]) -> None:
        """Queue a copy into a dense array of the same size, which is pinned, or the call waits."""
        self.runtime.call("queue_download", self._handle, array.ctypes.data, tensor.pointer, array.nbytes)

    def record(self, event: CudaEvent) -> None:
        """Mark what is queued so far."""
        self.runtime.call("queue_record", self._handle, event.handle)

    def wait_for(self, event: CudaEvent) -> None:
        """Have what is queued from now on wait for what the event marks; for nothing if it was never recorded."""
        self.runtime.call("queue_wait_for", self._handle, event.handle)

    def wait(self) -> None:
        """Wait until everything queued so far is done."""
        self.runtime.call("queue_wait", self._handle)

    # Kernels of libvosrt_cuda.

    def resize_bgr(self, image: DeviceTensor, to: DeviceTensor) -> None:
        """Queue `vosrt.core.native.resize_bgr` of u8 [H, W, 3], into u8 [height, width, 3]; the same bytes."""
        height, width = image.shape[:2]
        target = (to.pointer, to.shape[0], to.shape[1])
        self.runtime.call("queue_resize_bgr", self._handle, image.pointer, height, width, 3 * width, *target)

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
        planes, colours = (luma, chroma, stride, *to.shape[:2]), (bt709, full_range)
        self.runtime.call("queue_nv12_to_bgr", self._handle, *planes, *colours, to.pointer)


def open_queue(device: int, stream: int | None = None) -> CudaQueue:
    """Open a stream of libvosrt_cuda on a GPU, by number.

    Raises:
        OptionError: the library is not installed, or there is no such GPU.
    """
    return CudaQueue(LibraryRuntime(device), stream)


class CudaEvent:
    """A mark in the work of a stream; freed with the object."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self.handle = runtime, runtime.create_event()
        weakref.finalize(self, runtime.release, "event_destroy", self.handle).atexit = False

    def wait(self) -> None:
        """Wait until what it marks is done; not at all if it was never recorded."""
        self._runtime.call("event_wait", self.handle)


class TensorPool:
    """Arrays on a GPU that are used again when nothing refers to them.

    New contents are queued behind what was queued on the same stream before, so readers have to be queued there, too.
    An array that was handed over to another stream is used again behind CUDA's default one, and freed behind others.

    Args:
        what: they are for, in an error's text.

    Attributes:
        bytes: allocated so far.
    """

    def __init__(self, what: str) -> None:
        self._what, self.bytes = what, 0
        self._free: dict[tuple[tuple[int, ...], np.dtype[Any]], _Free] = {}

    def take(self, stream: CudaQueue, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceTensor:
        """Return one to write on a stream.

        Raises:
            OptionError: there is not enough memory.
        """
        free = self._free.setdefault((shape, dtype), [])
        if free:
            kept, readers = free.pop()
            if readers:
                CudaQueue(stream.runtime, DEFAULT_STREAM).hand_over(stream.stream)
        else:
            kept = stream.allocate(shape, dtype, self._what)
            self.bytes += size_of(shape, dtype)
        lease = _Lease(stream)
        weakref.finalize(lease, self._give_back, free, kept, lease.readers).atexit = False
        return replace(kept, owner=lease, stream=stream.stream, hand_over=lease.hand_over)

    def _give_back(self, free: _Free, kept: DeviceTensor, readers: set[int]) -> None:
        if readers <= {DEFAULT_STREAM}:
            free.append((kept, readers))
        else:  # other streams may be gone by then; freeing waits for all of them
            self.bytes -= size_of(kept.shape, kept.dtype)


class _Lease:
    """Gives memory back when nothing refers to it.

    Attributes:
        readers: streams that it was handed over to.
    """

    def __init__(self, stream: CudaQueue) -> None:
        self._stream = stream
        self.readers: set[int] = set()

    def hand_over(self, consumer: int) -> None:
        """Have another stream wait for the array; see `CudaQueue.hand_over`."""
        self._stream.hand_over(consumer)
        self.readers.add(consumer)


class _Allocation:
    """Owns memory on the GPU, and keeps the stream that it is written on."""

    def __init__(self, stream: CudaQueue) -> None:
        self._stream = stream


def pinned_array(runtime: Runtime, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Allocate an array in host memory that a GPU copies from and to while the processor goes on."""
    size = size_of(shape, dtype)
    address = runtime.allocate_host(size)
    memory = (ctypes.c_char * size).from_address(address)
    weakref.finalize(memory, runtime.release, "free_host", address).atexit = False
    array: NDArray[Any] = np.ndarray(shape, dtype, buffer=memoryview(memory))
    return array


def size_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes of an array."""
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def download(tensor: DeviceTensor) -> NDArray[Any]:
    """Return an array on a GPU in host memory, once what is queued on its stream is done."""
    return open_queue(tensor.device_id, tensor.stream).download(tensor)
