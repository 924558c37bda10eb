"""A further graph of a bundle between the kernels of a memory, all on one GPU."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from vosrt.arrays import DeviceTensor
from vosrt.cuda.encoder import check_on_gpu
from vosrt.cuda.runtime import CudaEvent, CudaQueue, LibraryRuntime, open_queue
from vosrt.engines.base import DeviceEngine, Input
from vosrt.errors import EngineError


class NetworkOnGpu:
    """Runs an engine behind what a memory has queued, and has the memory go on behind it. Shared by streams.

    An engine that queues its work has it on a stream of its own (``stream``, a handle), and overwrites its outputs with
    the next run's: the two streams wait for each other, and the output is copied behind the run. One that has
    none of the kind takes inputs that are whole, so that the host waits.

    Args:
        engine: what leaves its outputs on the GPU.
        output: name of the one that is returned.
        device: number of the GPU.
    """

    def __init__(self, engine: DeviceEngine, output: str, device: int) -> None:
        self._engine, self._output, self._device = engine, output, device
        self._lock = threading.Lock()  # nothing may come between a run and the copy of its output
        self._queue: CudaQueue | None = None
        self._ready, self._done = (CudaEvent(LibraryRuntime(device)) for _ in range(2))

    def run(self, inputs: Mapping[str, Input], out: DeviceTensor, queue: CudaQueue) -> None:
        """Queue a run.

        Args:
            inputs: by name; on the GPU, whole for work that is queued on ``queue``.
            out: f32, receives the output; whole for work that is queued on ``queue`` afterwards.

        Raises:
            EngineError: the engine failed, or the graph gives something else than ``out`` is for.
            OptionError: the engine runs on another GPU.
        """
        with self._lock:
            own = self._own_queue()
            queue.record(self._ready)
            if own is None:
                self._ready.wait()
            else:
                own.wait_for(self._ready)
            given = self._take(self._engine.run_on_device(inputs), out)
            (own or queue).copy(given, out)
            (own or queue).record(self._done)
            if own is None:
                self._done.wait()  # the output is the engine's again
            else:
                queue.wait_for(self._done)

    def _own_queue(self) -> CudaQueue | None:
        stream = getattr(self._engine, "stream", None)
        if stream is not None and self._queue is None:
            self._queue = open_queue(self._device, stream)
        return self._queue

    def _take(self, outputs: Mapping[str, DeviceTensor], out: DeviceTensor) -> DeviceTensor:
        """The output that is returned."""
        given = outputs.get(self._output)
        if given is None or given.shape != out.shape or given.dtype != np.float32:
            found = {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in outputs.items()}
            raise EngineError(
                f"a graph of the bundle gave {found}; expected {self._output!r}: float32 {list(out.shape)}; export the "
                "bundle again"
            )
        check_on_gpu(given, self._device, self._engine)
        return given
