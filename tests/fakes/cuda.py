"""NVIDIA's CUDA bindings, as far as vosrt calls them, in host memory and with CUDA's rules.

Work on a stream is done when somebody waits for it, and not before. Every thread has a current GPU. An error that loses
the context stays. A capture takes what any thread queues on its stream, and is spoilt by what CUDA forbids meanwhile.
"""

from __future__ import annotations

import ctypes
import enum
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

LEGACY = 1  # cudaStreamLegacy
_FIRST_STREAM = 10


class Status(enum.IntEnum):
    """``cudaError_t``."""

    cudaSuccess = 0  # noqa: N815 (CUDA's name, as below)
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorInvalidDevice = 101  # noqa: N815
    cudaErrorIllegalState = 401  # noqa: N815
    cudaErrorIllegalAddress = 700  # noqa: N815
    cudaErrorStreamCaptureUnsupported = 900  # noqa: N815
    cudaErrorStreamCaptureInvalidated = 901  # noqa: N815
    cudaErrorStreamCaptureMerge = 902  # noqa: N815
    cudaErrorStreamCaptureUnjoined = 904  # noqa: N815
    cudaErrorStreamCaptureIsolation = 905  # noqa: N815
    cudaErrorCapturedEvent = 907  # noqa: N815
    cudaErrorStreamCaptureWrongThread = 908  # noqa: N815


class CopyKind(enum.IntEnum):
    """``cudaMemcpyKind``."""

    cudaMemcpyHostToDevice = 1  # noqa: N815
    cudaMemcpyDeviceToHost = 2  # noqa: N815
    cudaMemcpyDeviceToDevice = 3  # noqa: N815


class CaptureMode(enum.IntEnum):
    """``cudaStreamCaptureMode``."""

    cudaStreamCaptureModeGlobal = 0  # noqa: N815
    cudaStreamCaptureModeThreadLocal = 1  # noqa: N815
    cudaStreamCaptureModeRelaxed = 2  # noqa: N815


Work = Callable[[], None]


@dataclass
class Capture:
    """What is recorded, from its first stream and those that joined it."""

    origin: int
    mode: CaptureMode
    thread: int = field(default_factory=threading.get_ident)
    work: list[Work] = field(default_factory=list)
    unjoined: set[int] = field(default_factory=set)
    valid: bool = True


@dataclass
class Mark:
    """A recorded event."""

    stream: int
    position: int = 0
    reached: bool = False
    capture: Capture | None = None

    def reach(self) -> None:
        """Let those go on that wait for it."""
        self.reached = True


@dataclass
class Queue:
    """A stream."""

    device: int = 0
    waiting: list[Work] = field(default_factory=list)
    captured: Capture | None = None
    position: int = 0  # of the newest work


Result = tuple[Status]


class FakeCuda(ModuleType):
    """``cuda.bindings.runtime``.

    Attributes:
        calls: what was called since the last ``clear``, but for allocations and what nobody waits for.
    """

    cudaError_t = Status  # noqa: N815
    cudaMemcpyKind = CopyKind  # noqa: N815
    cudaStreamCaptureMode = CaptureMode  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaEventDisableTiming = 2  # noqa: N815

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.devices = 1
        self.memory: dict[int, Any] = {}  # buffers, or the sizes of those that are somebody else's
        self.device_of: dict[int, int] = {}  # of memory
        self.pinned: set[int] = set()
        self.queues: dict[int, Queue] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.events: dict[int, Mark | None] = {}
        self.captures: list[Capture] = []
        self.calls: list[str] = []
        self.launches = 0
        self.streams = _FIRST_STREAM
        self.created = 0  # events
        self.allocations = 0
        self.working = threading.RLock()  # a stream's work is done in order, whoever waits for it
        self.memory_left = 1 << 30
        self.failing: dict[str, Status] = {}  # what the next call of a function gives
        self._lost = Status.cudaSuccess
        self._current = threading.local()

    def __getattribute__(self, name: str) -> Any:
        """A function, which fails if it is to, or if the context is lost."""
        value = super().__getattribute__(name)
        if (
            not name.startswith("cuda")
            or not callable(value)
            or isinstance(value, type)
            or name == "cudaGetErrorString"
        ):
            return value
        status = self.failing.pop(name, Status.cudaSuccess)
        if 700 <= status < 900:
            self._lost = status
        status = self._lost or status
        return value if status == Status.cudaSuccess else lambda *_: (status,)

    @property
    def current(self) -> int:
        """The calling thread's GPU."""
        return int(getattr(self._current, "device", 0))

    def cudaSetDevice(self, device: int) -> Result:  # noqa: N802
        if not 0 <= device < self.devices:
            return (Status.cudaErrorInvalidDevice,)
        self._current.device = device
        return (Status.cudaSuccess,)

    def submit(self, stream: int, work: Work) -> Status:
        """Queue work, or record it while the stream is captured."""
        queue = self.queue(stream)
        queue.position += 1
        capture = queue.captured
        if capture is None:
            queue.waiting.append(work)
            return Status.cudaSuccess
        if not capture.valid:
            return Status.cudaErrorStreamCaptureInvalidated
        if stream != capture.origin:
            capture.unjoined.add(stream)
        capture.work.append(work)
        return Status.cudaSuccess

    def queue(self, stream: int) -> Queue:
        """What is queued on a stream, which somebody else may have made."""
        return self.queues.setdefault(stream, Queue(self.current))

    def cudaGetErrorString(self, status: Status) -> tuple[Status, bytes]:  # noqa: N802
        return Status.cudaSuccess, status.name.removeprefix("cudaError").encode()

    def _allocate(self, size: int) -> tuple[Status, int | None]:
        if size > self.memory_left:
            return Status.cudaErrorMemoryAllocation, None
        if (status := self.count_allocation()) != Status.cudaSuccess:
            return status, None
        buffer = (ctypes.c_char * max(size, 1))()
        self.memory[ctypes.addressof(buffer)] = buffer
        self.device_of[ctypes.addressof(buffer)] = self.current
        return Status.cudaSuccess, ctypes.addressof(buffer)

    def count_allocation(self) -> Status:
        """Note one more, unless a capture forbids it."""
        if (status := self._spoil_captures()) == Status.cudaSuccess:
            self.allocations += 1
        return status

    def _spoil_captures(self) -> Status:
        """What may wait for the GPU, or allocate, is refused during a capture unless that is relaxed, and spoils it."""
        status = Status.cudaSuccess
        for capture in self.captures:
            own = (
                capture.mode == CaptureMode.cudaStreamCaptureModeThreadLocal and capture.thread == threading.get_ident()
            )
            if own or capture.mode == CaptureMode.cudaStreamCaptureModeGlobal:
                capture.valid, status = False, Status.cudaErrorStreamCaptureUnsupported
        return status

    def cudaMalloc(self, size: int) -> tuple[Status, int | None]:  # noqa: N802
        return self._allocate(size)

    def cudaMallocHost(self, size: int) -> tuple[Status, int | None]:  # noqa: N802
        status, address = self._allocate(size)
        if address:
            self.pinned.add(address)
        return status, address

    def cudaFree(self, address: int) -> Result:  # noqa: N802
        if (status := self._spoil_captures()) != Status.cudaSuccess:
            return (status,)
        for stream, queue in list(self.queues.items()):
            if queue.captured is None:
                self.cudaStreamSynchronize(stream)
        del self.memory[address]
        return (Status.cudaSuccess,)

    def cudaFreeHost(self, address: int) -> Result:  # noqa: N802
        self.pinned.remove(address)
        return self.cudaFree(address)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Status, int]:  # noqa: N802
        assert flags == self.cudaStreamNonBlocking
        self.streams += 1
        self.queues[self.streams] = Queue(self.current)
        return Status.cudaSuccess, self.streams

    def cudaStreamDestroy(self, stream: int) -> Result:  # noqa: N802
        self.queues[stream].waiting.clear()
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> Result:  # noqa: N802
        queue = self.queue(stream)
        if queue.captured is not None:
            queue.captured.valid = False
            return (Status.cudaErrorStreamCaptureUnsupported,)
        self.calls.append(f"host waits for all of {stream}")
        with self._at_work():
            while queue.waiting:
                queue.waiting.pop(0)()
        return (Status.cudaSuccess,)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Status, int]:  # noqa: N802
        assert flags == self.cudaEventDisableTiming
        self.created += 1
        self.events[self.created] = None
        return Status.cudaSuccess, self.created

    def cudaEventDestroy(self, event: int) -> Result:  # noqa: N802
        del self.events[event]
        return (Status.cudaSuccess,)

    def cudaEventRecord(self, event: int, stream: int) -> Result:  # noqa: N802
        queue = self.queue(stream)
        mark = self.events[event] = Mark(stream, capture=queue.captured)
        if queue.captured is None:
            self.submit(stream, mark.reach)
        mark.position = queue.position
        self.calls.append(f"record {event} on {stream}")
        return (Status.cudaSuccess,)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> Result:  # noqa: N802
        self.calls.append(f"{stream} waits for {event}")
        queue, mark = self.queue(stream), self.events.get(event)
        if mark is None:
            return (Status.cudaSuccess,)
        if queue.captured is not None and queue.captured is not mark.capture:  # it cannot depend on what is outside it
            queue.captured.valid = False
            outside = mark.capture is None
            return (Status.cudaErrorStreamCaptureIsolation if outside else Status.cudaErrorStreamCaptureMerge,)
        if mark.capture is None:
            self.submit(stream, lambda: self._work_up_to(mark))
        elif mark.capture not in self.captures:
            return (Status.cudaErrorCapturedEvent,)
        elif queue.captured is None:  # the stream joins the capture
            queue.captured = mark.capture
            mark.capture.unjoined.add(stream)
        elif mark.position == self.queues[mark.stream].position:
            mark.capture.unjoined.discard(mark.stream)
        return (Status.cudaSuccess,)

    def cudaEventSynchronize(self, event: int) -> Result:  # noqa: N802
        mark = self.events.get(event)
        if mark is not None and mark.capture is not None:
            mark.capture.valid = False
            return (Status.cudaErrorCapturedEvent,)
        if mark is not None:
            self._work_up_to(mark)
        self.calls.append(f"host waits for {event}")
        return (Status.cudaSuccess,)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """One thread at a time; and nothing is freed in between, which would wait for the work that is being done."""
        with self.working:
            collecting = gc.isenabled()
            gc.disable()
            try:
                yield
            finally:
                if collecting:
                    gc.enable()

    def _work_up_to(self, mark: Mark) -> None:
        with self._at_work():
            while not mark.reached:
                self.queues[mark.stream].waiting.pop(0)()

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: CopyKind, stream: int) -> Result:  # noqa: N802
        on_host = [self._inside(address, size) in self.pinned for address in (source, target)]
        if (
            None in (self._inside(source, size), self._inside(target, size))
            or on_host
            != {
                CopyKind.cudaMemcpyHostToDevice: [True, False],
                CopyKind.cudaMemcpyDeviceToHost: [False, True],
                CopyKind.cudaMemcpyDeviceToDevice: [False, False],
            }[kind]
        ):
            return (Status.cudaErrorInvalidValue,)
        self.calls.append(f"{kind.name.removeprefix('cudaMemcpy')} on {stream}")

        def copy() -> None:
            ctypes.memmove(target, source, size)

        return (self.submit(stream, copy),)

    def _inside(self, address: int, size: int) -> int | None:
        for start, buffer in list(self.memory.items()):
            if start <= address and address + size <= start + (buffer if isinstance(buffer, int) else len(buffer)):
                return start
        return None

    def cudaStreamBeginCapture(self, stream: int, mode: CaptureMode) -> Result:  # noqa: N802
        if stream == LEGACY:
            return (Status.cudaErrorStreamCaptureUnsupported,)
        if self.queue(stream).captured is not None:
            return (Status.cudaErrorIllegalState,)
        capture = self.queue(stream).captured = Capture(stream, mode)
        self.captures.append(capture)
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Status, list[Work] | None]:  # noqa: N802
        capture = self.queue(stream).captured
        if capture is None or capture.origin != stream:
            return Status.cudaErrorIllegalState, None
        if capture.mode != CaptureMode.cudaStreamCaptureModeRelaxed and capture.thread != threading.get_ident():
            return Status.cudaErrorStreamCaptureWrongThread, None
        self.captures.remove(capture)
        for each in (stream, *capture.unjoined):
            self.queues[each].captured = None
        if not capture.valid:
            return Status.cudaErrorStreamCaptureInvalidated, None
        if capture.unjoined:
            return Status.cudaErrorStreamCaptureUnjoined, None
        return Status.cudaSuccess, capture.work

    def cudaGraphInstantiate(self, graph: list[Work], flags: int) -> tuple[Status, int]:  # noqa: N802
        self.graphs[len(self.graphs) + 1] = list(graph)
        return Status.cudaSuccess, len(self.graphs)

    def cudaGraphDestroy(self, graph: list[Work]) -> Result:  # noqa: N802
        graph.clear()
        return (Status.cudaSuccess,)

    def cudaGraphExecDestroy(self, runnable: int) -> Result:  # noqa: N802
        self.graphs[runnable].clear()
        return (Status.cudaSuccess,)

    def cudaGraphLaunch(self, runnable: int, stream: int) -> Result:  # noqa: N802
        self.launches += 1
        self.calls.append(f"graph on {stream}")
        for work in self.graphs[runnable]:
            self.submit(stream, work)
        return (Status.cudaSuccess,)
