"""The few calls of the CUDA runtime that an engine needs, through NVIDIA's own Python bindings."""

from __future__ import annotations

import ctypes
import importlib
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vosrt.errors import EngineError, MissingExtraError, VosrtError

logger = logging.getLogger(__name__)

_MOST_RECORDED = 8  # kinds of work: two sets of labels, and what comes when objects change


class Cuda:
    """The CUDA runtime, with statuses turned into errors.

    Raises:
        MissingExtraError: ``cuda-bindings`` is not installed.
    """

    def __init__(self) -> None:
        try:
            self.api: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError:
            raise MissingExtraError("the CUDA bindings package", "tensorrt") from None

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the runtime and return what it gives besides its status.

        Raises:
            EngineError: it failed; the message has CUDA's own words.
        """
        status, *results = getattr(self.api, function)(*arguments)
        if status != self.api.cudaError_t.cudaSuccess:
            _, words = self.api.cudaGetErrorString(status)
            raise EngineError(f"CUDA failed in {function}: {words.decode() if isinstance(words, bytes) else words}")
        return results[0] if len(results) == 1 else tuple(results)

    def create_stream(self) -> Stream:
        """A stream that does not wait for the default one."""
        return Stream(self)

    def create_event(self) -> Event:
        """A mark in the work of a stream, for others to wait for."""
        return Event(self)

    def device_array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        """Memory on the GPU for an array."""
        return DeviceArray(self, shape, dtype)

    def pinned_array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array in host memory that the GPU copies from and to while the processor goes on."""
        size = _bytes_of(shape, dtype)
        address = int(self.call("cudaMallocHost", size))
        memory = (ctypes.c_char * size).from_address(address)
        weakref.finalize(memory, self.api.cudaFreeHost, address).atexit = False
        array: NDArray[Any] = np.ndarray(shape, dtype, buffer=memoryview(memory))
        return array


class Stream:
    """One queue of the GPU; freed with the object.

    Attributes:
        handle: as CUDA's and TensorRT's functions take it.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.handle = int(cuda.call("cudaStreamCreateWithFlags", cuda.api.cudaStreamNonBlocking))
        # At the end of the process the driver may be gone before this is; it frees what is left by itself.
        weakref.finalize(self, cuda.api.cudaStreamDestroy, self.handle).atexit = False

    def upload(self, source: NDArray[Any], target: DeviceArray) -> None:
        """Queue a copy from a pinned array to the GPU."""
        kind = self._cuda.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._cuda.call("cudaMemcpyAsync", target.pointer, source.ctypes.data, source.nbytes, kind, self.handle)

    def download(self, source: DeviceArray, target: NDArray[Any]) -> None:
        """Queue a copy from the GPU to a pinned array."""
        kind = self._cuda.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._cuda.call("cudaMemcpyAsync", target.ctypes.data, source.pointer, target.nbytes, kind, self.handle)

    def copy(self, source: int, target: DeviceArray) -> None:
        """Queue a copy on the GPU, of as many bytes as the target has, from an address there."""
        kind = self._cuda.api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._cuda.call("cudaMemcpyAsync", target.pointer, source, target.nbytes, kind, self.handle)

    def record(self, event: Event) -> None:
        """Mark what is queued so far."""
        self._cuda.call("cudaEventRecord", event.handle, self.handle)

    def wait_for(self, event: Event) -> None:
        """What is queued from now on waits for what the event marks; for nothing if it was never recorded."""
        self._cuda.call("cudaStreamWaitEvent", self.handle, event.handle, 0)

    def wait(self) -> None:
        """Until everything queued so far is done."""
        self._cuda.call("cudaStreamSynchronize", self.handle)

    def begin_capture(self) -> None:
        """Record what is queued from now on instead of doing it."""
        mode = self._cuda.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda.call("cudaStreamBeginCapture", self.handle, mode)

    def end_capture(self) -> Graph:
        """What was recorded, ready to be repeated."""
        return Graph(self._cuda, self.handle)


class Event:
    """A mark in the work of a stream; freed with the object.

    Attributes:
        handle: as CUDA's functions take it.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.handle = int(cuda.call("cudaEventCreateWithFlags", cuda.api.cudaEventDisableTiming))
        weakref.finalize(self, cuda.api.cudaEventDestroy, self.handle).atexit = False

    def wait(self) -> None:
        """Until what it marks is done; at once if it was never recorded."""
        self._cuda.call("cudaEventSynchronize", self.handle)


class Graph:
    """Recorded work, launched with one call."""

    def __init__(self, cuda: Cuda, stream: int) -> None:
        self._cuda = cuda
        recorded = cuda.call("cudaStreamEndCapture", stream)
        try:
            self._runnable = cuda.call("cudaGraphInstantiate", recorded, 0)
        finally:
            cuda.call("cudaGraphDestroy", recorded)
        weakref.finalize(self, cuda.api.cudaGraphExecDestroy, self._runnable).atexit = False

    def launch(self, stream: Stream) -> None:
        """Queue it once more."""
        self._cuda.call("cudaGraphLaunch", self._runnable, stream.handle)


Recordings: TypeAlias = OrderedDict[Hashable, "Graph | None"]
"""Graphs by what they were recorded for, the last used one at the end; None: done once, not recorded."""


class Recorder:
    """Records work that comes again and again as CUDA graphs.

    Where something cannot be recorded (some networks cannot), it is done as if nobody had tried, a warning is logged,
    and this recorder records nothing more.

    Args:
        name: of whose work it is, for the warning.

    Attributes:
        refused: why nothing more is recorded; None as long as everything was.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.refused: str | None = None

    def run(self, stream: Stream, recordings: Recordings, kind: Hashable, work: Callable[[], None]) -> bool:
        """Do work on a stream the first time, record it the second time, and from then on launch the recording.

        Args:
            stream: what the work is queued on.
            recordings: of the caller. It clears them when they no longer fit; beyond eight kinds, what was not used
                for longest is forgotten.
            kind: a recording fits as long as this is the same.
            work: queues it.

        Returns:
            Whether a recording was launched: ``work`` itself was then not done, but recorded now or earlier.
        """
        if self.refused is None and kind in recordings:
            recordings.move_to_end(kind)
            graph = recordings[kind]
            if graph is None:
                graph, why = self._record(stream, work)
                if graph is None:
                    work()  # if this fails too, the work is to blame and not its recording
                    self._refuse(why, recordings)
                    return False
                recordings[kind] = graph
            graph.launch(stream)
            return True
        work()
        if self.refused is None:
            recordings[kind] = None
            if len(recordings) > _MOST_RECORDED:
                recordings.popitem(last=False)
        return False

    @staticmethod
    def _record(stream: Stream, work: Callable[[], None]) -> tuple[Graph | None, str]:
        """A graph, or why there is none."""
        stream.begin_capture()
        try:
            work()
        except BaseException as error:
            with suppress(EngineError):  # the stream must not stay in capture
                stream.end_capture()
            if isinstance(error, VosrtError):
                return None, str(error)
            raise
        try:
            return stream.end_capture(), ""
        except EngineError as error:
            return None, str(error)

    def _refuse(self, why: str, recordings: Recordings) -> None:
        recordings.clear()
        self.refused = why
        logger.warning(
            "%s cannot be recorded as a CUDA graph, so its work is queued piece by piece: %s", self._name, why
        )


class DeviceArray:
    """Memory on the GPU; freed with the object.

    Attributes:
        pointer: its address there.
        shape: of the array that it is for.
        dtype: of its elements.
        nbytes: of all of them.
    """

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype, self.nbytes = shape, dtype, _bytes_of(shape, dtype)
        self.pointer = int(cuda.call("cudaMalloc", self.nbytes))
        weakref.finalize(self, cuda.api.cudaFree, self.pointer).atexit = False


def _bytes_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
