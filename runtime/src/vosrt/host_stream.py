"""One video's stream with its arrays in host memory: a thin face of ``vosrt_stream``, which has the order of events."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vosrt.bundle import EncoderSpec
from vosrt.core.abi import CONSTANTS
from vosrt.core.library import (
    STRUCTS,
    Library,
    LibraryMemory,
    address,
    memory_options,
    new_array,
    new_struct,
    objects_of,
)
from vosrt.cuda import Gpu, download
from vosrt.encoder import Embedding, WorkingFrame
from vosrt.errors import InputError, SessionError, VosrtError
from vosrt.refinement import Refinement
from vosrt.types import F32Array, Precision, PropagationOptions, StepResult, U8Array

NO_LABELS: U8Array = np.empty((0, 0), np.uint8)
NO_CONFIDENCE: F32Array = np.empty((0, 0), np.float32)
_GRAY = CONSTANTS["VOSRT_FORMAT_GRAY"]


class HostStream:
    """A ``vosrt_stream``, which takes frames that Python has encoded. Not safe for several threads at the same time.

    Args:
        library: libvosrt, or libvosrt_cuda with arrays in host memory.
        precision: of the products in matching.
        threads: of the native core; 0 is one per processor.
        refinement: how masks are refined; None shows them as they are propagated.
        model: SHA-256 of the encoder's graph, 32 bytes; zeros if it is not known.
        device: number of the GPU, for libvosrt_cuda; None for libvosrt.
        labels_on: where results are, ``"host"`` or ``"gpu"``.

    Attributes:
        queues_networks: whether `queue` takes frames that are not encoded, behind the first one.

    Raises:
        OptionError: an impossible value, or one that this processor or GPU cannot do.
    """

    queues_networks = False

    def __init__(
        self,
        library: Library,
        spec: EncoderSpec,
        options: PropagationOptions,
        *,
        precision: Precision,
        threads: int,
        refinement: Refinement[Any] | None,
        model: bytes,
        device: int | None = None,
        labels_on: str = "host",
    ) -> None:
        self._device = device
        self._results: Gpu | None = None
        if labels_on == "gpu" and device is not None:
            self._results = Gpu(device)
        self._frame_size: tuple[int, int] | None = None
        self._library = library
        self._networks = None if refinement is None else refinement.networks()
        self._memory: LibraryMemory | None = None
        memory = memory_options(
            (1, 1, spec.channels),
            options,
            align_corners=spec.align_corners,
            precision=precision,
            threads=threads,
            device=device or 0,
        )
        given = library.options(
            "vosrt_model_options",
            channels=spec.channels,
            stride=spec.stride,
            min_side=spec.min_side,
            max_side=spec.max_side,
            memory=ctypes.addressof(memory),
            graph_sha256=(ctypes.c_uint8 * 32)(*model),
            **({} if refinement is None else refinement.model_options()),
        )
        engine = new_struct(
            "vosrt_engine", name=b"Python", **({} if self._networks is None else self._networks.callbacks())
        )
        self._model = ctypes.c_void_p()
        library.call("vosrt_model_create", ctypes.byref(given), ctypes.byref(engine), ctypes.byref(self._model))
        weakref.finalize(self, library.plain, "vosrt_model_destroy", self._model).atexit = False
        self._handle = ctypes.c_void_p()
        library.call("vosrt_stream_create", self._model, None, ctypes.byref(self._handle))
        self._free = self._freed_with_this()

    def _freed_with_this(self) -> Any:
        free = weakref.finalize(self, self._library.plain, "vosrt_stream_destroy", self._handle)
        free.atexit = False
        return free

    def _call(self, function: str, *arguments: Any) -> None:
        """Call a function of the stream; a mask network's own error comes through as it was raised."""
        try:
            self._library.call(f"vosrt_stream_{function}", self._handle, *arguments, refused=InputError)
        except VosrtError:
            if self._networks is not None and (failure := self._networks.take_failure()) is not None:
                raise failure from None
            raise

    @property
    def memory(self) -> LibraryMemory | None:
        """The stream's memory; None before the first frame."""
        if self._memory is None:
            handle = ctypes.c_void_p()
            self._call("memory", ctypes.byref(handle))
            self._memory = self._hold(handle) if handle else None
        return self._memory

    def _hold(self, handle: ctypes.c_void_p) -> LibraryMemory:
        return LibraryMemory(self._library, handle)

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Tracked objects, ascending."""
        return self.memory.object_ids if self.memory else ()

    @property
    def frame_size(self) -> tuple[int, int] | None:
        """Rows and columns of the frames, in pixels; None before the first one."""
        if self._frame_size is None and self.memory is not None:  # after `load`
            result = self._result()
            self._frame_size = result.height, result.width
        return self._frame_size

    def _result(self) -> Any:
        result = new_struct("vosrt_result")
        self._call("result", ctypes.byref(result))
        return result

    def queue(self, frame: WorkingFrame) -> tuple[StepResult, Callable[[], StepResult] | None]:
        """Queue a frame that is not annotated, after the first one.

        Returns:
            The result as far as it is known, and what waits for the rest; None where all stays on the GPU.
        """
        raise NotImplementedError

    def take(self, embedding: Embedding, marks: U8Array | None) -> dict[str, float]:
        """Take the next frame with the objects u8 [H, W] that are marked in it.

        Returns:
            Milliseconds per stage so far.

        Raises:
            InputError: the frame has another size than the ones before, or was encoded for something else.
            MaskError: the mask does not fit the frame, is empty, or holds an object too small to represent.
        """
        array = self._on_host(embedding)
        given = embedding_struct((embedding.frame_height, embedding.frame_width), array.shape)
        given.array = address("embedding", array, (0, 0, 0), np.float32)
        frame = embedding.frame
        if self._networks is not None:
            frame = self._networks.follow(embedding)
        if isinstance(frame, np.ndarray):
            frame = np.ascontiguousarray(frame)  # lives until the call returns
            given.height, given.width = frame.shape[:2]
            given.bgr = address("frame", frame, (0, 0, 3), np.uint8)
        self._call("take", ctypes.byref(given), _mask(marks), None)
        self._frame_size = embedding.frame_height, embedding.frame_width
        result = self._result()
        refine_ms = {} if self._networks is None else {"refine": result.refine_ms}
        return {**embedding.timings_ms, "match": result.match_ms, **refine_ms}

    def _on_host(self, embedding: Embedding) -> F32Array:
        if embedding.tensor is not None and self._device is not None:
            return download(embedding.tensor)
        if embedding.tensor is not None:
            raise InputError("the embedding is on a GPU, this stream's memory is not; open the stream on device 'cuda'")
        return np.ascontiguousarray(embedding.array)

    def collect(self, timings_ms: Mapping[str, float]) -> StepResult:
        """What the newest frame gives, with copies of its labels and confidence.

        Args:
            timings_ms: milliseconds per stage so far; those of the result begin with them.
        """
        result = self._result()
        size = (result.height, result.width)
        labels, confidence = new_array(size, np.uint8), new_array(size, np.float32)
        ctypes.memmove(labels.ctypes.data, result.labels, labels.nbytes)
        ctypes.memmove(confidence.ctypes.data, result.confidence, confidence.nbytes)
        structs = ctypes.POINTER(STRUCTS["vosrt_object"])
        objects = objects_of(ctypes.cast(result.objects, structs)[: result.object_count])
        step = StepResult(
            index=result.index,
            labels=labels,
            confidence=confidence,
            object_ids=tuple(objects),
            timings_ms={**timings_ms, "upsample": result.labels_ms},
            objects=objects,
        )
        return step if self._results is None else _upload(step, self._results)

    def add(self, marks: U8Array) -> None:
        """Mark objects in the newest frame, u8 [H, W]."""
        self._call("add", _mask(marks), None)

    def remove(self, object_id: int) -> None:
        """Forget an object."""
        self._call("remove", object_id)

    def soft_masks(self) -> F32Array:
        """Soft masks of the newest frame, f32 [h * parts, w * parts, 1 + objects]."""
        assert self.memory is not None
        return self.memory.soft_masks()

    def save(self) -> bytes:
        """The stream as bytes."""
        return self._library.read_bytes("vosrt_stream_save", self._handle)

    def load(self, session: bytes) -> None:
        """Continue a saved stream in place of this one, which has not begun.

        Raises:
            SessionError: the session is damaged, or was saved with another network.
            OptionError: this core cannot continue it.
        """
        loaded = ctypes.c_void_p()
        self._library.call(
            "vosrt_stream_load", self._model, None, session, len(session), ctypes.byref(loaded), refused=SessionError
        )
        self._free()
        self._handle = loaded
        self._free = self._freed_with_this()

    def close(self) -> None:
        """Free the memory."""
        self._memory = None
        self._free()


def _upload(step: StepResult, gpu: Gpu) -> StepResult:
    """Move a result's labels and confidence to a GPU."""
    tensors = gpu.upload(step.labels, step.confidence)
    return StepResult(
        step.index,
        NO_LABELS,
        NO_CONFIDENCE,
        step.object_ids,
        timings_ms=step.timings_ms,
        labels_tensor=tensors[0],
        confidence_tensor=tensors[1],
    )


def embedding_struct(frame: tuple[int, int], shape: tuple[int, ...]) -> Any:
    """A ``vosrt_embedding`` of a frame's rows and columns and of its embedding's h, w and K."""
    fields = ("frame_height", "frame_width", "grid_height", "grid_width", "channels")
    return new_struct("vosrt_embedding", **dict(zip(fields, (*frame, *shape), strict=True)))


def _mask(marks: U8Array | None) -> Any:
    """A ``vosrt_image`` of a dense mask, by reference; the caller keeps the array alive."""
    if marks is None:
        return None
    height, width = marks.shape
    data = address("mask", marks, (0, 0), np.uint8)
    return ctypes.byref(new_struct("vosrt_image", format=_GRAY, height=height, width=width, data=data))
