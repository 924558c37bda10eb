"""One video's state: frames in, labels out. All array work is the core's; this holds the order of events."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vosrt.cuda_labels import LabelsOnTheirWay
from vosrt.cuda_memory import CudaMemory
from vosrt.encoder import Embedding, FrameArray, FrameEncoder, WorkingFrame, frame_size
from vosrt.engines.device import DeviceTensor
from vosrt.errors import InputError, MaskError, OptionError, SessionError
from vosrt.memory import Memory, create_memory, load_session
from vosrt.refinement import Refiner
from vosrt.refinement_on_gpu import RefinerOnGpu
from vosrt.types import MAX_OBJECT_ID, F32Array, Precision, PropagationOptions, StepResult, U8Array
from vosrt.whole_frame import WholeFrames

LabelsOn = Literal["host", "gpu"]
MaskArray = NDArray[np.integer[Any]] | NDArray[np.bool_]

_NO_LABELS: U8Array = np.empty((0, 0), np.uint8)
_NO_CONFIDENCE: F32Array = np.empty((0, 0), np.float32)


class PendingStep:
    """A frame that was taken; its result may still be on its way.

    Args:
        result: as far as it is known.
        labels: are missing in it; None if none are.
    """

    def __init__(self, result: StepResult, labels: LabelsOnTheirWay | None = None) -> None:
        self._result, self._labels = result, labels

    def result(self) -> StepResult:
        """Wait for the result; may be called in any thread.

        Raises:
            EngineError: the GPU failed.
        """
        if self._labels is None:
            return self._result
        started = time.perf_counter()
        labels, confidence, means = self._labels.take()
        timings_ms = {**self._result.timings_ms, "wait": 1e3 * (time.perf_counter() - started)}
        return replace(
            self._result, labels=labels, confidence=confidence, object_confidence=means, timings_ms=timings_ms
        )


class Stream:
    """Tracks objects through one video. Made by ``Model.stream``; used by one thread at a time.

        with model.stream() as stream:
            result = stream.start(frame, mask)
            for frame in frames:
                result = stream.step(frame)

    Masks are integer or boolean arrays [H, W] of the frame's size: 0 says nothing, another value is an object id.

    Args:
        encoder: turns frames into embeddings.
        options: how labels are propagated.
        precision: of the products in matching.
        threads: of the native core; 0 is one per processor.
        refiner: refines the masks of every frame, for this stream alone; None takes them as they are propagated.
        model_sha256: of the encoder's graph, 64 hexadecimal digits, so that sessions are not mixed up; "" is unknown.
        device: where the memory is, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        size: short side of the frames that the encoder sees, in pixels; None is the encoder's default.
        labels_on: where results are: ``"host"``, or ``"gpu"`` for a memory that is there.

    Attributes:
        encoder: as given.
        size: as given.
    """

    def __init__(
        self,
        encoder: FrameEncoder,
        options: PropagationOptions,
        *,
        precision: Precision = "auto",
        threads: int = 0,
        refiner: Refiner | RefinerOnGpu | None = None,
        model_sha256: str = "",
        device: str = "cpu",
        size: int | None = None,
        labels_on: LabelsOn = "host",
    ) -> None:
        if labels_on not in ("host", "gpu"):
            raise OptionError(f"labels_on is {labels_on!r}; expected 'host' or 'gpu'")
        if labels_on == "gpu" and device == "cpu":
            raise OptionError("labels_on is 'gpu', but the stream's memory is not there; load with device 'cuda'")
        self._labels_on = labels_on
        self.encoder, self.size = encoder, size
        self._refiner = refiner
        self._device = device
        self._model = bytes.fromhex(model_sha256) or bytes(32)
        self._options = options
        self._precision = precision
        self._threads = threads
        # A refiner's networks run between the encoder's and the labels.
        self._takes_whole_frames = device != "cpu" and encoder.takes_sequels and refiner is None
        self._whole: WholeFrames | None = None
        self._memory: Memory | None = None
        self._shape: tuple[int, ...] = ()  # frame height and width, then the embedding's h, w, K
        self._index = -1
        self._annotation: U8Array | None = None  # [H, W], what was marked in the newest frame
        self._closed = False

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Tracked objects, ascending."""
        return self._memory.object_ids if self._memory else ()

    def start(self, frame: FrameArray | WorkingFrame | Embedding, mask: MaskArray) -> StepResult:
        """Take the first frame with its objects.

        Args:
            frame: u8 [H, W, 3] BGR, or its embedding.
            mask: [H, W], objects of this frame.

        Raises:
            InputError: the stream has begun, or the frame does not fit.
            MaskError: the mask does not fit the frame, is empty, or holds an object too small to represent.
        """
        if self._index >= 0:
            raise InputError("the stream has begun; mark objects with step(frame, mask) or add(mask), or open another")
        return self.step(frame, mask)

    def step(self, frame: FrameArray | WorkingFrame | Embedding, mask: MaskArray | None = None) -> StepResult:
        """Take the next frame and follow the objects into it.

        Frames may come before the first mask; they are background. If an object of the mask turns out to be too
        small to represent, the frame counts as taken without a mask.

        Args:
            frame: u8 [H, W, 3] BGR, what :meth:`prepare` made of it, or its embedding.
            mask: [H, W], objects that appear or are marked anew in this very frame.

        Raises:
            InputError: the stream is closed, or the frame has another size than the ones before.
            MaskError: the mask does not fit the frame, is empty, or holds an object too small to represent.
            EngineError: the encoder failed.
        """
        return self.submit(frame, mask).result()

    def prepare(self, frame: FrameArray) -> WorkingFrame | Embedding:
        """Do for a frame what can be done ahead of its turn; may be called from several threads.

        That is to encode it; or only to resize it, where the network is queued together with the memory's work.

        Args:
            frame: u8 [H, W, 3] BGR. One on a GPU stays as it is until its turn.

        Raises:
            InputError: the frame is no such array, or its working size is out of the encoder's range.
            EngineError: the encoder failed.
        """
        if self._takes_whole_frames:
            return self.encoder.prepare(frame, self.size)
        return self.encoder.encode(frame, self.size)

    def submit(self, frame: FrameArray | WorkingFrame | Embedding, mask: MaskArray | None = None) -> PendingStep:
        """:meth:`step` that does not wait for a GPU, so that it goes on with the next frame meanwhile.

        Args:
            frame: as for :meth:`step`.
            mask: likewise.

        Raises:
            VosrtError: as for :meth:`step`.
        """
        marks = self.check(frame, mask)
        if marks is None and not isinstance(frame, Embedding) and self._takes_whole_frames and self._memory is not None:
            working = frame if isinstance(frame, WorkingFrame) else self.encoder.prepare(frame, self.size)
            return self._submit_whole(working)
        embedding = frame if isinstance(frame, Embedding) else self.encoder.encode(frame, self.size)
        return PendingStep(self.result(self.take(embedding, marks)))

    def _submit_whole(self, frame: WorkingFrame) -> PendingStep:
        """Queue a frame that is not annotated, after the first one, which made the memory."""
        spec, memory = self.encoder.spec, self._memory
        assert isinstance(memory, CudaMemory)
        self._check_shape((frame.frame_height, frame.frame_width, *spec.grid(frame.height, frame.width), spec.channels))
        started = time.perf_counter()
        if self._whole is None:
            self._whole = WholeFrames(self.encoder, memory)
        there = self._whole.queue(frame)
        self._index += 1
        self._annotation = None
        on_gpu = self._labels_on == "gpu"
        on_their_way = None if on_gpu else memory.bring_labels(there)
        result = StepResult(
            index=self._index,
            labels=_NO_LABELS,
            confidence=_NO_CONFIDENCE,
            object_ids=memory.object_ids,
            timings_ms={"resize": frame.resize_ms, "queue": 1e3 * (time.perf_counter() - started)},
            labels_tensor=there.labels if on_gpu else None,
            confidence_tensor=there.confidence if on_gpu else None,
        )
        return PendingStep(result, on_their_way)

    # The stages of a step, which `step_all` goes through for several streams side by side.

    def check(self, frame: FrameArray | WorkingFrame | Embedding, mask: MaskArray | None) -> U8Array | None:
        """A step's first stage: the mask as u8 [H, W], before anything is done for the frame.

        Raises:
            InputError: the stream is closed, or the frame is none.
            MaskError: the mask does not fit the frame, or is empty.
        """
        self._check_open()
        return None if mask is None else _as_mask(mask, *_frame_size(frame))

    def take(self, embedding: Embedding, marks: U8Array | None) -> dict[str, float]:
        """The stage after encoding: match, propagate, annotate.

        Args:
            embedding: of the next frame.
            marks: what :meth:`check` gave.

        Returns:
            Milliseconds per stage so far.

        Raises:
            InputError: the frame has another size than the ones before.
            MaskError: the mask holds an object too small to represent.
        """
        memory = self._memory_for(embedding)
        started = time.perf_counter()
        _push(memory, embedding)
        timings_ms = {**embedding.timings_ms, "match": 1e3 * (time.perf_counter() - started)}
        if self._refiner is not None:
            started = time.perf_counter()
            self._refiner.step(embedding, memory)
            timings_ms["refine"] = 1e3 * (time.perf_counter() - started)
        self._index += 1
        self._annotation = None
        if marks is not None:
            self._annotate(memory, marks)
        return timings_ms

    def result(self, timings_ms: Mapping[str, float]) -> StepResult:
        """The last stage: what the newest frame gives.

        Args:
            timings_ms: what :meth:`take` gave.

        Raises:
            InputError: no frame was given yet.
        """
        memory = self._begun("read labels")
        started = time.perf_counter()
        labels, confidence, means = _NO_LABELS, _NO_CONFIDENCE, dict[int, float]()
        on_gpu: tuple[DeviceTensor, DeviceTensor] | tuple[None, None] = (None, None)
        if self._labels_on == "gpu" and isinstance(memory, CudaMemory):
            on_gpu = self._labels_there(memory)
        else:
            labels, confidence, means = self._labels_here(memory)
        return StepResult(
            index=self._index,
            labels=labels,
            confidence=confidence,
            object_ids=memory.object_ids,
            object_confidence=means,
            timings_ms={**timings_ms, "upsample": 1e3 * (time.perf_counter() - started)},
            labels_tensor=on_gpu[0],
            confidence_tensor=on_gpu[1],
        )

    def add(self, mask: MaskArray) -> StepResult:
        """Mark objects, new or anew, in the newest frame.

        Raises:
            InputError: no frame was given yet.
            MaskError: as for ``step``; nothing has changed.
        """
        memory = self._begun("add objects")
        self._annotate(memory, _as_mask(mask, *self._shape[:2]))
        return self.result({})

    def remove(self, object_id: int) -> None:
        """Stop tracking an object; its area becomes background.

        Raises:
            InputError: no such object is tracked.
        """
        memory = self._begun("remove an object")
        if object_id not in memory.object_ids:
            raise InputError(f"object {object_id} is not tracked; tracked are {list(memory.object_ids)}")
        memory.remove(object_id)
        if self._refiner is not None:
            self._refiner.remove(object_id)
        if self._annotation is not None:
            self._annotation = np.where(self._annotation == object_id, 0, self._annotation).astype(np.uint8)

    def soft_masks(self) -> F32Array:
        """Soft masks of the newest frame, f32 [h, w, 1 + objects]: background, then ids ascending."""
        return self._begun("read soft masks").soft_masks()

    def save(self) -> bytes:
        """The stream as bytes, from which :meth:`load` continues bit for bit, in any process, in Python, C or C++.

        Raises:
            InputError: no frame was given yet.
            OptionError: the memory runs in NumPy, which cannot save, or the stream refines masks.
        """
        memory = self._begun("save the stream")
        if self._refiner is not None:
            raise OptionError("a stream that refines masks cannot be saved yet; open it with refine='off'")
        return memory.save(self._shape[0], self._shape[1], self._annotation, self._model)

    def load(self, session: bytes) -> None:
        """Continue a saved stream in this new one. How labels are propagated comes from the session.

        Raises:
            InputError: the stream has begun.
            SessionError: the session is damaged, or was saved with another network.
            OptionError: no core here can continue it.
        """
        self._check_open()
        if self._index >= 0:
            raise InputError("the stream has begun; load a session into a new one")
        if self._refiner is not None:
            raise OptionError("a saved stream continues without refinement; open this one with refine='off'")
        loaded = load_session(session, precision=self._precision, threads=self._threads, device=self._device)
        if any(self._model) and any(loaded.model) and self._model != loaded.model:
            raise SessionError("the session was saved with another network; load the bundle that it was saved with")
        if not loaded.frame_height or not loaded.frame_width:
            raise SessionError("the session holds a memory without a stream; save it with Stream.save")
        info = loaded.memory.info
        if info["align_corners"] != self.encoder.spec.align_corners:
            has, wants = ("not ", "") if self.encoder.spec.align_corners else ("", "not ")
            raise SessionError(
                f"the session's corners are {has}aligned, those of this model are {wants}aligned; "
                "load the bundle that it was saved with"
            )
        self._memory = loaded.memory
        self._shape = (loaded.frame_height, loaded.frame_width, *info["shape"])
        self._index = info["frames"] - 1
        self._annotation = loaded.annotation

    def close(self) -> None:
        """Free the memory; the stream cannot be used afterwards."""
        self._closed = True
        self._memory = self._whole = None
        self._annotation = None

    def __enter__(self) -> Stream:
        """The stream itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the stream."""
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("the stream is closed; open another with model.stream()")

    def _begun(self, action: str) -> Memory:
        self._check_open()
        if self._memory is None:
            raise InputError(f"cannot {action} before the first frame; call start(frame, mask) first")
        return self._memory

    def _labels_here(self, memory: Memory) -> tuple[U8Array, F32Array, dict[int, float]]:
        """Labels, confidence and its means in host memory."""
        refined = self._refiner.labels(*self._shape[:2]) if isinstance(self._refiner, Refiner) else None
        labels, confidence = memory.labels(*self._shape[:2]) if refined is None else refined
        if self._annotation is not None:
            _overrule(labels, confidence, self._annotation)
        elif refined is None and isinstance(memory, CudaMemory):
            return labels, confidence, memory.mean_confidence
        return labels, confidence, _mean_confidence(labels, confidence, memory.object_ids)

    def _labels_there(self, memory: CudaMemory) -> tuple[DeviceTensor, DeviceTensor]:
        """Labels and confidence on the GPU; they come from the host where it has to have a say in them."""
        if self._annotation is None and not isinstance(self._refiner, Refiner):
            return memory.labels_there(*self._shape[:2])
        labels, confidence, _ = self._labels_here(memory)
        return memory.upload_labels(labels, confidence)

    def _memory_for(self, embedding: Embedding) -> Memory:
        """The stream's memory, made for the first frame; later frames must be like it."""
        shape = (embedding.frame_height, embedding.frame_width, *embedding.shape)
        if self._memory is None:
            height, width, channels = embedding.shape
            self._memory, _ = create_memory(
                height,
                width,
                channels,
                self._options,
                align_corners=self.encoder.spec.align_corners,
                precision=self._precision,
                threads=self._threads,
                device=self._device,
            )
            self._shape = shape
        self._check_shape(shape)
        return self._memory

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if shape != self._shape:
            was, now = (f"{w} x {h} pixels (grid {gw} x {gh} x {k})" for h, w, gh, gw, k in (self._shape, shape))
            raise InputError(f"the frame size changed within the stream from {was} to {now}; open a stream per size")

    def _annotate(self, memory: Memory, mask: U8Array) -> None:
        memory.annotate(mask)
        if self._refiner is not None:
            self._refiner.annotate(mask, memory)
        before = self._annotation if self._annotation is not None else np.zeros_like(mask)
        before = np.where(np.isin(before, mask), 0, before)
        self._annotation = np.where(mask != 0, mask, before).astype(np.uint8)


def _push(memory: Memory, embedding: Embedding) -> None:
    if embedding.tensor is None:
        memory.push(np.ascontiguousarray(embedding.array))
    elif isinstance(memory, CudaMemory):
        memory.push_tensor(embedding.tensor)
    else:
        raise InputError("the embedding is on a GPU, this stream's memory is not; open the stream on device 'cuda'")


def _frame_size(frame: FrameArray | WorkingFrame | Embedding) -> tuple[int, int]:
    """Rows and columns of the frame, in pixels."""
    if isinstance(frame, Embedding | WorkingFrame):
        return frame.frame_height, frame.frame_width
    return frame_size(frame)


def _as_mask(mask: MaskArray, height: int, width: int) -> U8Array:
    """Check a mask and bring it to u8 [H, W]."""
    array = np.asarray(mask)
    if array.ndim != 2 or not (array.dtype == np.bool_ or np.issubdtype(array.dtype, np.integer)):
        raise MaskError(
            f"mask is {array.dtype} {list(array.shape)}; expected integers [height, width] with 0 for background"
        )
    if array.shape != (height, width):
        raise MaskError(
            f"mask is {array.shape[1]} x {array.shape[0]} pixels, the frame {width} x {height}; "
            "give a mask of the frame's size"
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > MAX_OBJECT_ID:
        raise MaskError(f"mask holds values from {low} to {high}; expected object ids from 1 to {MAX_OBJECT_ID}")
    if high == 0:
        raise MaskError("the mask marks no object; expected at least one pixel that is not 0")
    return np.ascontiguousarray(array, dtype=np.uint8)


def _overrule(labels: U8Array, confidence: F32Array, annotation: U8Array) -> None:
    """Let an annotated frame show its annotation: inside, the marked ids; outside, none of them."""
    marked = annotation != 0
    spilled = np.isin(labels, np.unique(annotation[marked])) & ~marked
    labels[spilled] = 0
    labels[marked] = annotation[marked]
    confidence[marked | spilled] = 1


def _mean_confidence(labels: U8Array, confidence: F32Array, ids: tuple[int, ...]) -> dict[int, float]:
    """Mean confidence over each object's pixels, 0 where it has none."""
    pixels = np.bincount(labels.ravel(), minlength=MAX_OBJECT_ID + 1)
    total = np.bincount(labels.ravel(), weights=confidence.ravel(), minlength=MAX_OBJECT_ID + 1)
    return {object_id: float(total[object_id] / max(pixels[object_id], 1)) for object_id in ids}
