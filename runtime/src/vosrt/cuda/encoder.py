"""An encoder whose inputs and outputs stay on a GPU, and the order in which streams write and read them."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from vosrt.arrays import DEFAULT_STREAM, DeviceTensor
from vosrt.cuda.runtime import CudaEvent, CudaQueue, TensorPool, open_queue
from vosrt.engines.base import DeviceEngine, Input, Sequel, SequelEngine
from vosrt.errors import OptionError
from vosrt.types import U8Array


class EncoderOnGpu:
    """Runs an engine and keeps its outputs on the GPU, each in memory of its own as long as it is referred to.

    An engine that queues its work overwrites its outputs with the next frame's, so they are copied behind it, on its
    stream; that memory is used again behind the work that reads it, which is queued on the same stream.

    Args:
        engine: what leaves its outputs there. One that queues its work has it on ``stream``, a handle; one that has
            none of the kind takes inputs that are whole.
        device: number of the GPU.
    """

    def __init__(self, engine: DeviceEngine, device: int) -> None:
        self._engine, self.device = engine, device
        self._lock = threading.Lock()  # nothing may come between a run and the copies of its inputs and outputs
        self._queue: CudaQueue | None = None
        self._pool = TensorPool("an embedding")
        self._batches: dict[tuple[int, ...], DeviceTensor] = {}
        self._producers: dict[int, CudaQueue] = {}
        self._events: dict[str, CudaEvent] = {}

    def run(self, inputs: Mapping[str, U8Array]) -> dict[str, DeviceTensor]:
        """Run the engine on host arrays; its outputs are whole for work that is queued on their stream."""
        with self._lock:
            return {name: self._keep(tensor) for name, tensor in self._engine.run_on_device(inputs).items()}

    def run_frames(self, name: str, frames: list[DeviceTensor], height: int, width: int) -> dict[str, DeviceTensor]:
        """Run the engine on frames that are on this GPU.

        Args:
            frames: u8 [H, W, 3] each; they are resized on the way. When this returns, a frame may be overwritten by
                work on its stream; one that names none, or the default one, has been waited for and may be
                overwritten by anybody.
            height: of the frames that the engine sees, in pixels.
            width: likewise.

        Returns:
            The engine's outputs, and the frames that it saw by the name of its input.
        """
        with self._lock:
            batch = self._gather(frames, height, width)
            outputs = {**self._engine.run_on_device({name: batch}), name: batch}
            return {key: self._keep(tensor) for key, tensor in outputs.items()}

    @property
    def stream(self) -> int:
        """That of an engine that takes what follows it."""
        assert isinstance(self._engine, SequelEngine)
        return self._engine.stream

    def run_with(self, name: str, frame: U8Array | DeviceTensor, height: int, width: int, sequel: Sequel) -> None:
        """Run the engine on one frame, and what follows it, see `vosrt.engines.base.SequelEngine`.

        Args:
            frame: u8 [height, width, 3] in host memory, or as for `run_frames`.
            height: of the frame that the engine sees, in pixels.
            width: likewise.
            sequel: takes the outputs where the engine leaves them; they are overwritten by its next run.
        """
        assert isinstance(self._engine, SequelEngine)
        with self._lock:
            given: Input = self._gather([frame], height, width) if isinstance(frame, DeviceTensor) else frame[None]
            self._engine.run_with({name: given}, sequel)

    def _gather(self, frames: list[DeviceTensor], height: int, width: int) -> DeviceTensor:
        """Frames in one array for the engine, queued on its stream."""
        queue = self._own_queue(getattr(self._engine, "stream", None))
        batch = self._batch((len(frames), height, width, 3), queue)
        self._bring(frames, batch, queue)
        return batch

    def _own_queue(self, stream: int | None) -> CudaQueue:
        if self._queue is None:
            self._queue = open_queue(self.device, stream)
        return self._queue

    def _batch(self, shape: tuple[int, ...], queue: CudaQueue) -> DeviceTensor:
        """Where frames are brought: written and read on one stream, so one for each shape will do."""
        if shape not in self._batches:
            self._batches[shape] = queue.allocate(shape, np.uint8, "frames")
        return self._batches[shape]

    def _bring(self, frames: list[DeviceTensor], batch: DeviceTensor, queue: CudaQueue) -> None:
        """Copy frames behind what writes them, and have their streams wait until that is done."""
        producers = dict[int, CudaQueue]()
        if not self._events:
            self._events = {name: CudaEvent(queue.runtime) for name in ("written", "read")}
        written, read = self._events["written"], self._events["read"]
        for i, frame in enumerate(frames):
            target = batch[i]
            if frame.stream is not None and frame.stream != queue.stream:
                if frame.stream not in self._producers:
                    self._producers[frame.stream] = open_queue(self.device, frame.stream)
                producers[frame.stream] = self._producers[frame.stream]
                producers[frame.stream].record(written)
                queue.wait_for(written)
            if frame.shape == target.shape:
                queue.copy(frame, target)
            else:
                queue.resize_bgr(frame, target)
        queue.record(read)
        for producer in producers.values():
            producer.wait_for(read)
        if getattr(self._engine, "stream", None) is None or any(f.stream in (None, DEFAULT_STREAM) for f in frames):
            read.wait()

    def _keep(self, tensor: DeviceTensor) -> DeviceTensor:
        check_on_gpu(tensor, self.device, self._engine)
        if tensor.stream is None:  # whole, and memory of its own
            return tensor
        queue = self._own_queue(tensor.stream)
        kept = self._pool.take(queue, tensor.shape, tensor.dtype)
        queue.copy(tensor, kept)
        return kept


def check_on_gpu(tensor: DeviceTensor, device: int, engine: DeviceEngine) -> None:
    """Nothing, if an engine left its output on a GPU, by number.

    Raises:
        OptionError: it is elsewhere.
    """
    if (tensor.device, tensor.device_id) != ("cuda", device):
        raise OptionError(
            f"the {engine.info.name} engine runs on {tensor.device}:{tensor.device_id}, the core on "
            f"cuda:{device}; use device 'cuda' and let CUDA_VISIBLE_DEVICES say which GPU that is"
        )
