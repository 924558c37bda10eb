"""One video's memory on an NVIDIA GPU; `vosrt.core.memory.Memory`, and methods for arrays that stay there."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from vosrt.arrays import DeviceTensor
from vosrt.core.library import LibraryMemory, create_handle, new_struct
from vosrt.cuda.device import CudaLibrary, load_cuda_library
from vosrt.cuda.runtime import CudaQueue, LibraryRuntime
from vosrt.cuda.transfer import Download, LabelArrays, LabelBuffers
from vosrt.errors import OptionError
from vosrt.types import Precision, PropagationOptions, U8Array

_MOST_HELD = 8
_STAGES = 5  # VOSRT_CUDA_STAGES of vosrt_cuda.h


class CudaMemory(LibraryMemory):
    """The memory on a GPU. Not safe for use by several threads at the same time.

    Args:
        channels: embedding channels, K.
        align_corners: see `EncoderSpec`.
        device: number of the GPU.
        precision: of the products in matching; the GPU has bf16 only.

    Raises:
        OptionError: no libvosrt_cuda, driver or GPU, not enough of its memory, or an impossible option.
    """

    def __init__(
        self,
        height: int,
        width: int,
        channels: int,
        options: PropagationOptions,
        *,
        align_corners: bool = True,
        device: int = 0,
        precision: Precision = "auto",
    ) -> None:
        library, shape = load_cuda_library(), (height, width, channels)
        handle = create_handle(library, shape, options, align_corners=align_corners, precision=precision, device=device)
        self._hold(library, handle, device)

    @classmethod
    def of(cls, handle: ctypes.c_void_p, device: int) -> CudaMemory:
        """The object for a memory that the library has made; freed with it, if it is not a stream's."""
        memory = cls.__new__(cls)
        memory._hold(load_cuda_library(), handle, device)
        return memory

    def _hold(self, library: CudaLibrary, handle: ctypes.c_void_p, device: int) -> None:
        """Own a memory of the library."""
        super().__init__(library, handle)
        self.device = device
        self._stream: int | None = None
        self._held: list[DeviceTensor] = []  # what queued work may still read
        self._results = LabelBuffers(LibraryRuntime(device))
        self._shown: DeviceTensor | None = None

    @property
    def info(self) -> dict[str, Any]:
        """Counters; see `vosrt.core.memory.Memory`."""
        info = super().info
        return {**info, "bytes": info["bytes"] + self._results.bytes}

    def push_tensor(self, embedding: DeviceTensor) -> None:
        """Take the next frame from this GPU, f32 [h, w, K], without waiting for it.

        Raises:
            OptionError: the array has another shape or dtype, or is elsewhere.
        """
        self.frame(embedding)

    def frame(
        self,
        embedding: DeviceTensor,
        *,
        labels: DeviceTensor | None = None,
        confidence: DeviceTensor | None = None,
        totals: DeviceTensor | None = None,
        frame: DeviceTensor | None = None,
    ) -> None:
        """Take the next frame and, if asked, label it, all on this GPU; queued on the embedding's stream.

        Args:
            embedding: f32 [h, w, K].
            labels: receives u8 [H, W].
            confidence: receives f32 [H, W].
            totals: receives u64 [256, 2]: per label, the sum of confidence in units of 2^-20, and pixels.
            frame: its picture u8 [height, width, 3], whose edges labels follow if the options ask for guided output;
                whole for work that is queued on the embedding's stream.

        Raises:
            OptionError: an array has another shape or dtype, or is elsewhere.
        """
        task = self._task(embedding, labels, confidence, totals, frame)
        self._call("frame", ctypes.byref(task), family="vosrt_cuda_memory")
        self._hold_until_read(embedding)

    def _hold_until_read(self, tensor: DeviceTensor) -> None:
        """Keep an array that queued work reads; on a stream of its own, its memory is given to others behind that."""
        self._held = [*(each for each in self._held if each.stream is None), tensor]
        if len(self._held) > _MOST_HELD:
            self.queue.wait()
            self._held.clear()

    def time_frame(
        self, embedding: DeviceTensor, *, labels: DeviceTensor | None = None, confidence: DeviceTensor | None = None
    ) -> list[float]:
        """`frame` with its kernels timed by CUDA events, for measuring.

        Returns:
            Milliseconds of each stage: advance, store, match, read-out, labels.
        """
        task, ms = self._task(embedding, labels, confidence, None), (ctypes.c_float * _STAGES)()
        self._call("time_frame", ctypes.byref(task), ms, family="vosrt_cuda_memory")
        return list(ms)

    def _task(
        self,
        embedding: DeviceTensor,
        labels: DeviceTensor | None,
        confidence: DeviceTensor | None,
        totals: DeviceTensor | None,
        frame: DeviceTensor | None = None,
    ) -> Any:
        """A frame's arrays, checked; work is queued on the embedding's stream from now on."""
        self._check("embedding", embedding, self._shape, np.float32)
        size = (0, 0) if labels is None else labels.shape[:2]
        picture = (0, 0) if frame is None else frame.shape[:2]
        for name, tensor, shape, dtype in (
            ("labels", labels, size, np.uint8),
            ("confidence", confidence, size, np.float32),
            ("totals", totals, (256, 2), np.uint64),
            ("frame", frame, (*picture, 3), np.uint8),
        ):
            if tensor is not None:
                self._check(name, tensor, shape, dtype)
        if embedding.stream is not None:
            self.use_stream(embedding.stream)
        return new_struct(
            "vosrt_cuda_frame",
            height=size[0],
            width=size[1],
            embedding=embedding.pointer,
            labels=labels.pointer if labels else None,
            confidence=confidence.pointer if confidence else None,
            totals=totals.pointer if totals else None,
            bgr=frame.pointer if frame else None,
            bgr_height=picture[0],
            bgr_width=picture[1],
        )

    def use_stream(self, stream: int) -> None:
        """Queue this memory's work on a stream from now on, behind what it was queued on before."""
        if stream != self._stream:
            self._call("use_stream", stream, family="vosrt_cuda_memory")
            self._stream = stream

    def replayed(self) -> None:
        """Advance the frame counter after an external CUDA graph that contains `frame` was launched."""
        self.call_there("repeated")

    @property
    def recordings(self) -> int:
        """How many CUDA graphs this memory recorded by itself so far."""
        count = ctypes.c_int64()
        self._call("recordings", ctypes.byref(count), family="vosrt_cuda_memory")
        return count.value

    def guide(self, frame: U8Array | DeviceTensor) -> None:
        """Take the newest frame's picture, in host memory or on this GPU; see `vosrt.core.memory.Memory`.

        Args:
            frame: u8 [H, W, 3]. One on the GPU is not waited for.

        Raises:
            OptionError: no frame has been pushed, or the array has another shape or dtype, or is elsewhere.
        """
        if isinstance(frame, DeviceTensor):
            self._check("frame", frame, (*frame.shape[:2], 3), np.uint8)
            if frame.hand_over is not None and frame.stream != self.queue.stream:
                frame.hand_over(self.queue.stream)
            self.call_there("guide", frame.pointer, *frame.shape[:2])
            self._hold_until_read(frame)
        else:
            super().guide(frame)

    def download_labels(self, arrays: LabelArrays) -> Download:
        """Start an asynchronous copy of labels to the host, behind the work that writes them.

        Two can be on their way; the third one waits for the first.
        """
        return self._results.download(arrays, self.queue)

    def labels_there(self, height: int, width: int) -> LabelArrays:
        """Labels u8 and confidence f32 [height, width] of the newest frame, left on the GPU.

        They are not awaited: they are whole for work that is queued on their stream. Their memory is used again when
        nothing refers to them.

        Raises:
            OptionError: no frame was pushed, or there is no memory for them.
        """
        there = self.label_arrays(height, width)
        pointers = {name: tensor.pointer for name, tensor in there._asdict().items()}
        task = new_struct("vosrt_cuda_frame", height=height, width=width, **pointers)
        self.call_there("labels", ctypes.byref(task))
        return there

    def label_arrays(self, height: int, width: int) -> LabelArrays:
        """Room for a frame's labels, to be written on this memory's stream; used again when nothing refers to it.

        Raises:
            OptionError: there is no memory for it.
        """
        queue, size = self.queue, (max(height, 1), max(width, 1))
        return LabelArrays(*(self._results.take(queue, size, np.dtype(kind)) for kind in (np.uint8, np.float32)))

    def show(self, planes: DeviceTensor | None) -> None:
        """Have labels made of planes f32 [1 + objects, H, W] in place of the newest frame's soft masks.

        Args:
            planes: shown until the next frame, annotation or removal; None shows the soft masks again.
        """
        self._shown = planes  # kept alive
        self.call_there("show", *((None, 0, 0) if planes is None else (planes.pointer, *planes.shape[1:])))

    def call_there(self, function: str, *arguments: Any) -> None:
        """Call ``vosrt_cuda_memory_…`` of vosrt_cuda.h: work with arrays on this GPU, queued.

        Raises:
            OptionError: an impossible value.
            EngineError: CUDA failed.
        """
        self._call(function, *arguments, family="vosrt_cuda_memory")

    @property
    def queue(self) -> CudaQueue:
        """The stream that this memory's work is queued on."""
        stream = ctypes.c_void_p()
        self._call("stream", ctypes.byref(stream), family="vosrt_cuda_memory")
        return self._results.stream_of(stream.value or 0)

    def describe(self) -> str:
        """One sentence on what runs."""
        return describe_core(self.device)

    def _check(self, name: str, tensor: DeviceTensor, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        if tensor.device != "cuda" or tensor.device_id != self.device:
            raise OptionError(f"{name} is on {tensor.device}:{tensor.device_id}; expected cuda:{self.device}")
        if tensor.shape != shape or tensor.dtype != dtype:
            expected = f"{np.dtype(dtype).name} {list(shape)}"
            raise OptionError(f"{name} is {tensor.dtype.name} {list(tensor.shape)}; expected {expected}")


def describe_core(device: int) -> str:
    """One sentence on what would run on a GPU.

    Raises:
        OptionError: it cannot be used.
    """
    library = load_cuda_library()
    gpu = library.device(device)
    return f"libvosrt_cuda {library.version}, bf16, {gpu.name} ({gpu.architecture}), CUDA {gpu.driver}"
