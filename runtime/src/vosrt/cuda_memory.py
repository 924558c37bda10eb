"""One video's memory on an NVIDIA GPU; the methods of `vosrt.memory.Memory`, and those for arrays that stay there."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vosrt.cuda_labels import LabelArrays, LabelBuffers, LabelsOnTheirWay
from vosrt.cuda_library import CudaLibrary, load_cuda_library, new_struct
from vosrt.cuda_queue import CudaQueue
from vosrt.engines.device import DeviceTensor
from vosrt.errors import OptionError
from vosrt.types import F32Array, Precision, PropagationOptions, TopK, U8Array

_MOST_HELD = 8
_STAGES = 5  # VOSRT_CUDA_STAGES of vosrt_cuda.h
_PRECISIONS: dict[Precision, int] = {"auto": 0, "fp32": 1, "bf16": 2}


class SavedMemory(NamedTuple):
    """What a session holds; the fields of `vosrt.memory.Session`."""

    memory: CudaMemory
    frame_height: int
    frame_width: int
    annotation: U8Array | None
    model: bytes


class CudaMemory:
    """The memory on a GPU. Not safe for use by several threads at the same time.

    Args:
        height: grid rows, h.
        width: grid columns, w.
        channels: embedding channels, K.
        options: how labels are propagated.
        align_corners: see `EncoderSpec`.
        device: number of the GPU.
        precision: of the products in matching; the GPU has bf16 only.

    Attributes:
        device: as given.
        changes: of objects and references so far; work that was recorded fits as long as there is no other.
        shown: planes f32 [1 + objects, H, W] that labels are made of in place of the newest frame's soft masks. None,
            as after every new frame, annotation and removal: these.
        mean_confidence: per tracked object its mean confidence over its pixels, 0 where it has none, as :meth:`labels`
            last gave them.

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
        library = load_cuda_library()
        given = new_struct(
            "vosrt_memory_options",
            height=height,
            width=width,
            channels=channels,
            context=options.context or -1,
            window=("circle", "square").index(options.window),
            radius=options.radius,
            top_k=options.top_k,
            temperature=options.temperature,
            drop_padding=not options.pad_context,
            local_reference=not options.global_reference,
            keep_background=not options.yield_background,
            precision=_PRECISIONS[precision],
            device=device,
            half_pixel=not align_corners,
        )
        handle = ctypes.c_void_p()
        library.call("vosrt_memory_create", ctypes.byref(given), ctypes.byref(handle))
        self._hold(library, handle, device)

    @classmethod
    def load(cls, session: bytes, device: int) -> SavedMemory:
        """Continue a memory that :meth:`save` or a bf16 path of the native core wrote. The data are not trusted.

        Args:
            session: the bytes.
            device: number of the GPU.

        Raises:
            SessionError: the session is damaged or made by a newer vosrt.
            OptionError: its keys are fp32, or the GPU cannot be used.
        """
        library, handle, extra = load_cuda_library(), ctypes.c_void_p(), new_struct("vosrt_session")
        library.call("vosrt_cuda_memory_load", device, session, len(session), ctypes.byref(handle), ctypes.byref(extra))
        memory = cls.__new__(cls)
        memory._hold(library, handle, device)
        height, width = extra.frame_height, extra.frame_width
        annotation = None
        if extra.annotation:
            marked = ctypes.string_at(extra.annotation, height * width)
            annotation = np.frombuffer(marked, np.uint8).reshape(height, width).copy()
        return SavedMemory(memory, height, width, annotation, bytes(extra.model))

    def _hold(self, library: CudaLibrary, handle: ctypes.c_void_p, device: int) -> None:
        """Own a memory of the library."""
        self._library, self._handle, self.device = library, handle, device
        weakref.finalize(self, library.plain, "vosrt_memory_destroy", handle).atexit = False
        info = self._info()
        self._shape, self._top_k = (info.height, info.width, info.channels), int(info.top_k)
        self._stream: int | None = None
        self._held: list[DeviceTensor] = []  # what queued work may still read
        self._results = LabelBuffers(library, device)
        self.changes = 0
        self.shown: DeviceTensor | None = None
        self.mean_confidence: dict[int, float] = {}

    def _info(self) -> Any:
        info = new_struct("vosrt_memory_info")
        self._call("get_info", ctypes.byref(info))
        return info

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Tracked objects, ascending."""
        ids, count = (ctypes.c_uint8 * 255)(), ctypes.c_int32()
        self._call("object_ids", ids, ctypes.byref(count))
        return tuple(ids[: count.value])

    @property
    def info(self) -> dict[str, Any]:
        """Counters; see `vosrt.memory.Memory`."""
        info = self._info()
        counters = {name: getattr(info, name) for name in ("threads", "objects", "references", "frames", "bytes")}
        counters["bytes"] += self._results.bytes
        return {"isa": "cuda", **counters, "shape": self._shape, "align_corners": info.half_pixel == 0}

    def push(self, embedding: F32Array) -> None:
        """Take the next frame from host memory; see `vosrt.memory.Memory`."""
        array = _dense("embedding", embedding, self._shape, np.float32)
        self.shown = None
        self._call("push", array.ctypes.data)

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
    ) -> None:
        """Take the next frame and, if asked, label it, all on this GPU; queued on the embedding's stream.

        Args:
            embedding: f32 [h, w, K].
            labels: receives u8 [H, W].
            confidence: receives f32 [H, W].
            totals: receives u64 [256, 2]: per label, the sum of confidence in units of 2^-20, and pixels.

        Raises:
            OptionError: an array has another shape or dtype, or is elsewhere.
        """
        task = self._task(embedding, labels, confidence, totals)
        self._call("frame", ctypes.byref(task), family="vosrt_cuda_memory")
        # On a stream of its own, the embedding's memory is given to others behind this work.
        self._held = [*(self._held if embedding.stream is None else []), embedding]
        if len(self._held) > _MOST_HELD:
            self.queue.wait()
            self._held.clear()

    def time_frame(
        self, embedding: DeviceTensor, *, labels: DeviceTensor | None = None, confidence: DeviceTensor | None = None
    ) -> list[float]:
        """:meth:`frame` with its kernels timed by CUDA events, for measuring.

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
    ) -> Any:
        """A frame's arrays, checked; work is queued on the embedding's stream from now on."""
        self._check("embedding", embedding, self._shape, np.float32)
        self.shown = None
        size = (0, 0) if labels is None else (labels.shape[0], labels.shape[1])
        for name, tensor, shape, dtype in (
            ("labels", labels, size, np.uint8),
            ("confidence", confidence, size, np.float32),
            ("totals", totals, (256, 2), np.uint64),
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
        )

    def use_stream(self, stream: int) -> None:
        """Queue this memory's work on a stream from now on, behind what it was queued on before."""
        if stream != self._stream:
            self._call("use_stream", stream, family="vosrt_cuda_memory")
            self._stream = stream

    def repeated(self) -> None:
        """A recording of :meth:`frame` that somebody else made was launched: a frame was taken."""
        self.shown = None
        self.shown = None
        self.call_there("repeated")

    @property
    def recordings(self) -> int:
        """How many CUDA graphs this memory recorded by itself so far."""
        count = ctypes.c_int64()
        self._call("recordings", ctypes.byref(count), family="vosrt_cuda_memory")
        return count.value

    def annotate(self, mask: U8Array) -> None:
        """Mark objects in the newest frame; see `vosrt.memory.Memory`."""
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise OptionError(f"mask is {mask.dtype.name} {list(mask.shape)}; expected uint8 [H, W]")
        dense = np.ascontiguousarray(mask)
        self.changes += 1
        self.shown = None
        self._call("annotate", dense.ctypes.data, dense.shape[0], dense.shape[1], dense.shape[1])

    def remove(self, object_id: int) -> None:
        """Forget one object; see `vosrt.memory.Memory`."""
        self.changes += 1
        self.shown = None
        self._call("remove", object_id)

    def labels(self, height: int, width: int) -> tuple[U8Array, F32Array]:
        """Labels and confidence of the newest frame, in host memory; see `vosrt.memory.Memory`.

        They come through pinned memory on a stream beside the memory's, and that alone is waited for: work that others
        have queued on the memory's stream meanwhile, such as the next frame's encoder, is not.
        """
        labels, confidence, self.mean_confidence = self.bring_labels(self._label(height, width)).take()
        self._held.clear()
        return labels, confidence

    def bring_labels(self, there: LabelArrays) -> LabelsOnTheirWay:
        """Queue labels' way to the host, behind the work that writes them, without waiting for it.

        Two can be on their way; the third one waits for the first.
        """
        return self._results.bring(there, self.queue, self.object_ids)

    def labels_there(self, height: int, width: int) -> tuple[DeviceTensor, DeviceTensor]:
        """Labels u8 and confidence f32 [height, width] of the newest frame, left on the GPU.

        They are not awaited: they are whole for work that is queued on their stream. Their memory is used again when
        nobody holds them.

        Raises:
            OptionError: no frame was pushed, or there is no memory for them.
        """
        return self._label(height, width)[:2]

    def upload_labels(self, labels: U8Array, confidence: F32Array) -> tuple[DeviceTensor, DeviceTensor]:
        """Labels and confidence from the host, in place of :meth:`labels_there`."""
        queue, there = self.queue, []
        for array in (labels, confidence):
            there.append(self._results.take(queue, array.shape, array.dtype))
            queue.upload(np.ascontiguousarray(array), there[-1])
        queue.wait()  # the arrays are the caller's again
        return there[0], there[1]

    def label_arrays(self, height: int, width: int) -> LabelArrays:
        """Room for a frame's labels, to be written on this memory's stream; used again when nobody holds it.

        Raises:
            OptionError: there is no memory for it.
        """
        queue, size = self.queue, (max(height, 1), max(width, 1))
        kinds = ((size, np.uint8), (size, np.float32), ((256, 2), np.uint64))
        return LabelArrays(*(self._results.take(queue, shape, np.dtype(kind)) for shape, kind in kinds))

    def _label(self, height: int, width: int) -> LabelArrays:
        """Labels of the newest frame, queued."""
        there = self.label_arrays(height, width)
        pointers = {name: tensor.pointer for name, tensor in there._asdict().items()}
        task = new_struct("vosrt_cuda_frame", height=height, width=width, **pointers)
        if (planes := self.shown) is None:
            self.call_there("labels", ctypes.byref(task))
        else:
            self.call_there("label_planes", planes.pointer, *planes.shape[1:], ctypes.byref(task))
        return there

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
        return self._results.queue_on(stream.value or 0)

    def soft_masks(self) -> F32Array:
        """Soft masks of the newest frame; see `vosrt.memory.Memory`."""
        masks = np.empty((*self._shape[:2], 1 + len(self.object_ids)), np.float32)
        self._call("soft_masks", masks.ctypes.data)
        return masks

    def set_soft_masks(self, masks: F32Array) -> None:
        """Replace the newest frame's soft masks; see `vosrt.memory.Memory`."""
        array = _dense("soft masks", masks, (*self._shape[:2], 1 + len(self.object_ids)), np.float32)
        self._call("set_soft_masks", array.ctypes.data)

    def top_k(self) -> TopK:
        """What the newest frame attended to; see `vosrt.memory.Memory`."""
        references = ctypes.c_int32()
        self._call("top_k_references", ctypes.byref(references))
        shape = (references.value, self._shape[0] * self._shape[1], self._top_k)
        found = TopK(np.empty(shape, np.float32), np.empty(shape, np.int32), np.empty(shape, np.int32))
        self._call("top_k", found.similarity.ctypes.data, found.frame.ctypes.data, found.cell.ctypes.data)
        return found

    def save(self, frame_height: int, frame_width: int, annotation: U8Array | None, model: bytes) -> bytes:
        """The memory as bytes; see `vosrt.memory.Memory`."""
        marked = None if annotation is None else _dense("annotation", annotation, (frame_height, frame_width), np.uint8)
        extra = new_struct(
            "vosrt_session",
            frame_height=frame_height,
            frame_width=frame_width,
            annotation=None if marked is None else marked.ctypes.data,
            model=(ctypes.c_uint8 * 32)(*model),
        )
        size = ctypes.c_size_t(self._library.session_size(self._handle, ctypes.byref(extra)))
        buffer = ctypes.create_string_buffer(size.value)
        self._call("save", ctypes.byref(extra), buffer, size.value, ctypes.byref(size))
        return buffer.raw

    def describe(self) -> str:
        """One sentence on what runs."""
        return describe_core(self.device)

    def _call(self, function: str, *arguments: Any, family: str = "vosrt_memory") -> None:
        self._library.call(f"{family}_{function}", self._handle, *arguments)

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


def _dense(name: str, array: NDArray[Any], shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    if array.shape != shape or array.dtype != dtype:
        expected = f"{np.dtype(dtype).name} {list(shape)}"
        raise OptionError(f"{name} is {array.dtype.name} {list(array.shape)}; expected {expected}")
    return np.ascontiguousarray(array)
