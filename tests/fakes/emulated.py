"""The emulated GPU on a fake CUDA runtime that does work as late as it may."""

from __future__ import annotations

import ctypes
import gc
import weakref
from pathlib import Path
from typing import Any

from tests.fakes.cuda import CaptureMode, FakeCuda, Status


class EmulatedGpu:
    """libvosrt_cuda_emulated on a fake CUDA runtime, which both TensorRT and it then queue their work on.

    Args:
        cuda: does the work, as late as it may.
    """

    def __init__(self, library: Path, cuda: FakeCuda) -> None:
        self._library, self._cuda = ctypes.CDLL(str(library)), cuda
        for name in ("use", "run", "forget"):
            getattr(self._library, f"vosrt_cuda_emulated_{name}").argtypes = (ctypes.c_void_p,)
        status, address = ctypes.c_int, ctypes.c_void_p
        kinds: dict[str, tuple[Any, ...]] = {
            "submit": (status, address, address),
            "synchronise": (status, address),
            "is_capturing": (status, address),
            "begin_capture": (status, address, status),
            "end_capture": (ctypes.c_int, address),
            "launch": (status, ctypes.c_int, address),
            "destroy": (None, ctypes.c_int),
            "record": (status, address, address),
            "wait_for": (status, address, address),
            "wait": (status, address),
            "allocated": (status, address, ctypes.c_size_t, ctypes.c_int),
            "freed": (status, address),
        }
        functions = [ctypes.CFUNCTYPE(*kind) for kind in kinds.values()]
        runtime = type("Runtime", (ctypes.Structure,), {"_fields_": list(zip(kinds, functions, strict=True))})
        self._runtime: Any = runtime(
            *(function(getattr(self, f"_{name}")) for name, function in zip(kinds, functions, strict=True))
        )

    def __enter__(self) -> EmulatedGpu:
        self._library.vosrt_cuda_emulated_use(ctypes.byref(self._runtime))
        return self

    def __exit__(self, *_: object) -> None:
        """Let everything go that was made on it, before it works by itself again."""
        gc.collect()
        for stream in list(self._cuda.queues):
            self._cuda.cudaStreamSynchronize(stream)
        self._library.vosrt_cuda_emulated_use(None)

    def _submit(self, stream: int, work: int) -> int:
        return self._cuda.submit(stream, _NativeWork(self._library, work))

    def _synchronise(self, stream: int) -> int:
        return self._cuda.cudaStreamSynchronize(stream)[0]

    def _is_capturing(self, stream: int) -> int:
        return self._cuda.queue(stream).captured is not None

    def _begin_capture(self, stream: int, mode: int) -> int:
        return self._cuda.cudaStreamBeginCapture(stream, CaptureMode(mode))[0]

    def _end_capture(self, stream: int) -> int:
        status, *graph = self._cuda.cudaStreamEndCapture(stream)
        return 0 if status else self._cuda.cudaGraphInstantiate(graph[0] or [], 0)[1]

    def _launch(self, graph: int, stream: int) -> int:
        return self._cuda.cudaGraphLaunch(graph, stream)[0]

    def _destroy(self, graph: int) -> None:
        self._cuda.cudaGraphExecDestroy(graph)

    def _record(self, event: int, stream: int) -> int:
        return self._cuda.cudaEventRecord(event, stream)[0]

    def _wait_for(self, stream: int, event: int) -> int:
        return self._cuda.cudaStreamWaitEvent(stream, event, 0)[0]

    def _wait(self, event: int) -> int:
        return self._cuda.cudaEventSynchronize(event)[0]

    def _allocated(self, memory: int, size: int, pinned: int) -> int:
        if (status := self._cuda.count_allocation()) == Status.cudaSuccess:
            self._cuda.memory[memory] = size
            if pinned:
                self._cuda.pinned.add(memory)
        return status

    def _freed(self, memory: int) -> int:
        self._cuda.pinned.discard(memory)
        known = memory in self._cuda.memory  # not what was there before
        return self._cuda.cudaFree(memory)[0] if known else 0


class _NativeWork:
    """Work of the library, to be done once or, in a graph, again and again."""

    def __init__(self, library: ctypes.CDLL, work: int) -> None:
        self._run, self._work = library.vosrt_cuda_emulated_run, work
        weakref.finalize(self, library.vosrt_cuda_emulated_forget, work)

    def __call__(self) -> None:
        self._run(self._work)
