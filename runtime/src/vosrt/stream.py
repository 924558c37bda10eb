"""One video's state: frames in, labels out. The order of events of a frame is that of ``vosrt_stream`` in libvosrt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vosrt.core.native import libvosrt
from vosrt.cuda import open_device
from vosrt.encoder import Embedding, FrameArray, FrameEncoder, WorkingFrame, check_size, frame_size
from vosrt.errors import InputError, MaskError, OptionError, SessionError
from vosrt.explanation import Explanation, explain
from vosrt.host_stream import HostStream
from vosrt.locking import CallLock, Closing, NotCopied, exclusive
from vosrt.refinement import Refinement
from vosrt.types import (
    MAX_OBJECT_ID,
    F32Array,
    Precision,
    PropagationOptions,
    StepResult,
    U8Array,
    WorkingSize,
    check_threads,
)

LabelsOn = Literal["host", "gpu"]
MaskArray = NDArray[np.integer[Any]] | NDArray[np.bool_]


class PendingStep:
    """A frame that was taken; its result may not be complete yet.

    Args:
        result: as far as it is known.
        complete: waits for the GPU and gives the whole result; None if `result` is whole.
    """

    def __init__(self, result: StepResult, complete: Callable[[], StepResult] | None = None) -> None:
        self._result, self._complete = result, complete

    def result(self) -> StepResult:
        """Wait for the result; may be called in any thread.

        Raises:
            EngineError: the GPU failed.
        """
        return self._result if self._complete is None else self._complete()


class Stream(Closing, NotCopied):
    """Tracks objects through one video. Made by ``Model.stream``.

    Several threads may share a stream: its calls run one after the other; only `prepare` runs beside others. In a
    process that was forked, a stream goes on if it and its model have one thread; otherwise it is refused.

        with model.stream() as stream:
            result = stream.start(frame, mask)
            for frame in frames:
                result = stream.step(frame)

    Masks are integer or boolean arrays [H, W] of the frame's size: 0 says nothing, another value is an object id.

    Args:
        precision: of the products in matching.
        threads: of the native core; 0 is one per processor.
        refiner: how the masks of every frame are refined; None takes them as they are propagated.
        model_sha256: of the encoder's graph, 64 hexadecimal digits, so that sessions are not mixed up; "" is unknown.
        device: where the memory is, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        size: short side of the frames that the encoder sees, in pixels; None is the encoder's default, ``"native"`` the
            frames' own.
        labels_on: where results are: ``"host"``, or ``"gpu"`` if the memory is on one.

    Attributes:
        lock: lets one call run at a time.
    """

    _instead = "save() gives bytes from which another one goes on with load()"

    def __init__(
        self,
        encoder: FrameEncoder,
        options: PropagationOptions,
        *,
        precision: Precision = "auto",
        threads: int = 0,
        refiner: Refinement[Any] | None = None,
        model_sha256: str = "",
        device: str = "cpu",
        size: WorkingSize = None,
        labels_on: LabelsOn = "host",
    ) -> None:
        if labels_on not in ("host", "gpu"):
            raise OptionError(f"labels_on is {labels_on!r}; expected 'host' or 'gpu'")
        if labels_on == "gpu" and device == "cpu":
            raise OptionError("labels_on is 'gpu', but the stream's memory is not there; load with device 'cuda'")
        check_size(size)
        if not isinstance(options, PropagationOptions):
            raise OptionError(f"options are {options!r}; expected PropagationOptions")
        self.lock = CallLock()
        self.encoder, self.size = encoder, size
        self._temperature, self._loaded = options.temperature, False
        model, gpu = bytes.fromhex(model_sha256) or bytes(32), open_device(device)
        self._core: HostStream | None
        on_gpu = refiner is not None and refiner.on_gpu
        if gpu is not None and (refiner is None or on_gpu):
            self._core = gpu.stream(
                encoder, options, precision=precision, refinement=refiner, model=model, labels_on=labels_on
            )
        elif on_gpu:
            raise InputError("masks are refined on a GPU, the stream's memory is not there; open it on device 'cuda'")
        else:  # mask networks that are not on the GPU refine by way of the host, wherever the memory is
            self._core = HostStream(
                libvosrt() if gpu is None else gpu.library,
                encoder.spec,
                options,
                precision=precision,
                threads=check_threads(threads),
                refinement=refiner,
                model=model,
                device=None if gpu is None else gpu.number,
                labels_on=labels_on,
            )

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Tracked objects, ascending."""
        return self._core.object_ids if self._core else ()

    def start(self, frame: FrameArray | WorkingFrame | Embedding, mask: MaskArray) -> StepResult:
        """Take the first frame with its objects.

        Args:
            frame: u8 [H, W, 3] BGR, or its embedding.
            mask: [H, W], objects of this frame.

        Raises:
            InputError: the stream has begun, or the frame does not fit.
            MaskError: the mask does not fit the frame, is empty, or holds an object too small to represent.
        """
        with self.lock.hold("start"):
            if self._open().frame_size is not None:
                raise InputError(
                    "the stream has begun; mark objects with step(frame, mask) or add(mask), or open another"
                )
            pending = self._submit(frame, mask)
        return pending.result()

    def step(self, frame: FrameArray | WorkingFrame | Embedding, mask: MaskArray | None = None) -> StepResult:
        """Take the next frame and follow the objects into it.

        Frames may come before the first mask; they are background. If an object of the mask turns out to be too
        small to represent, the frame counts as taken without a mask.

        Args:
            frame: u8 [H, W, 3] BGR, what `prepare` made of it, or its embedding.
            mask: [H, W], objects that appear in this frame, or are corrected in it.

        Raises:
            InputError: the stream is closed, or the frame has another size than the ones before.
            MaskError: the mask does not fit the frame, is empty, or holds an object too small to represent.
            EngineError: the encoder failed.
        """
        with self.lock.hold("step"):
            pending = self._submit(frame, mask)
        return pending.result()

    def prepare(self, frame: FrameArray) -> WorkingFrame | Embedding:
        """Do for a frame what can be done ahead of its turn; may be called from several threads.

        The frame is encoded; where the network is queued together with the memory's work, it is only resized.

        Args:
            frame: u8 [H, W, 3] BGR. One on a GPU stays as it is until its turn.

        Raises:
            InputError: the frame is no such array, or its working size is out of the encoder's range.
            EngineError: the encoder failed.
        """
        if self._core is not None and self._core.queues_networks:
            return self.encoder.prepare(frame, self.size)
        return self.encoder.encode(frame, self.size)

    def submit(self, frame: FrameArray | WorkingFrame | Embedding, mask: MaskArray | None = None) -> PendingStep:
        """`step` that does not wait for a GPU, so that it goes on with the next frame meanwhile.

        Args:
            frame: as for `step`.
            mask: likewise.

        Raises:
            VosrtError: as for `step`.
        """
        with self.lock.hold("submit"):
            return self._submit(frame, mask)

    def _submit(self, frame: FrameArray | WorkingFrame | Embedding, mask: MaskArray | None) -> PendingStep:
        marks, core = self.check(frame, mask), self._open()
        if isinstance(frame, Embedding):
            return PendingStep(self.collect(self.take(frame, marks)))
        if core.queues_networks and core.frame_size is not None and marks is None:
            working = frame if isinstance(frame, WorkingFrame) else self.encoder.prepare(frame, self.size)
            return PendingStep(*core.queue(working))
        return PendingStep(self.collect(self.take(self.encoder.encode(frame, self.size), marks)))

    # The stages of a step, which `step_all` goes through for several streams side by side, each in a turn of its own.

    def check(self, frame: FrameArray | WorkingFrame | Embedding, mask: MaskArray | None) -> U8Array | None:
        """A step's first stage: the mask as u8 [H, W], before anything is done for the frame.

        Raises:
            InputError: the stream is closed, or the frame is none.
            MaskError: the mask does not fit the frame, or is empty.
        """
        self._open()
        return None if mask is None else as_mask(mask, *_frame_size(frame))

    def take(self, embedding: Embedding, marks: U8Array | None) -> dict[str, float]:
        """The stage after encoding: match, propagate, annotate.

        Args:
            marks: what `check` gave.

        Returns:
            Milliseconds per stage so far.

        Raises:
            InputError: the frame has another size than the ones before.
            MaskError: the mask holds an object too small to represent.
        """
        return self._open().take(embedding, marks)

    @exclusive
    def result(self, timings_ms: Mapping[str, float]) -> StepResult:
        """Return what the newest frame gives once more, e.g. after `remove` or `load`.

        Args:
            timings_ms: milliseconds per stage so far; those of the result begin with them.

        Raises:
            InputError: no frame was given yet.
        """
        return self.collect(timings_ms)

    def collect(self, timings_ms: Mapping[str, float]) -> StepResult:
        """The last stage: what the newest frame gives.

        Args:
            timings_ms: what `take` gave.

        Raises:
            InputError: no frame was given yet.
        """
        return self._begun("read labels").collect(timings_ms)

    @exclusive
    def add(self, mask: MaskArray) -> StepResult:
        """Mark objects in the newest frame: new ones, or corrections.

        Raises:
            InputError: no frame was given yet.
            MaskError: as for ``step``; nothing has changed.
        """
        core = self._begun("add objects")
        assert core.frame_size is not None
        core.add(as_mask(mask, *core.frame_size))
        return core.collect({})

    @exclusive
    def remove(self, object_id: int) -> None:
        """Stop tracking an object; its area becomes background.

        Raises:
            InputError: no such object is tracked.
        """
        core = self._begun("remove an object")
        whole = isinstance(object_id, int | np.integer) and not isinstance(object_id, bool)
        if not whole or object_id not in core.object_ids:  # C would take the lowest 32 bits
            raise InputError(f"object {object_id!r} is not tracked; tracked are {list(core.object_ids)}")
        core.remove(int(object_id))

    @exclusive
    def soft_masks(self) -> F32Array:
        """Soft masks of the newest frame, f32 [h * parts, w * parts, 1 + objects]: background, then ids ascending."""
        return self._begun("read soft masks").soft_masks()

    @exclusive
    def explain(self, y: int, x: int) -> Explanation:
        """Tell which past cells the newest frame's label at a pixel was read from, and with which weights.

        Args:
            y: row of the pixel.

        Raises:
            InputError: no frame was given yet, the pixel is outside it, nothing was matched with it (a first marked
                frame), the stream's memory is on a GPU, or the stream was loaded, as sessions keep no matches.
        """
        core = self._begun("explain a pixel")
        if not isinstance(core, HostStream) or self._loaded:
            raise InputError("the matches of this stream are not kept; use a stream on device 'cpu' from its start")
        assert core.memory is not None
        assert core.frame_size is not None
        return explain(core.memory, self._temperature, core.frame_size, y, x)

    @exclusive
    def set_soft_masks(self, masks: F32Array) -> None:
        """Replace the soft masks of the newest frame, from which later frames are labelled; its own result stays.

        Args:
            masks: f32 [h * parts, w * parts, 1 + objects], as `soft_masks` gives them.

        Raises:
            InputError: no frame was given yet.
            OptionError: the array has another shape or dtype, or holds a negative or not finite value.
        """
        memory = self._begun("replace soft masks").memory
        assert memory is not None
        memory.set_soft_masks(masks)

    @exclusive
    def describe(self) -> dict[str, Any]:
        """Describe the memory as ``info`` of `vosrt.core.memory.Memory` does; empty before the first frame."""
        memory = self._open().memory
        return {} if memory is None else memory.info

    @exclusive
    def save(self) -> bytes:
        """The stream as bytes, from which `load` continues bit for bit, in any process, in Python, C or C++.

        Raises:
            InputError: no frame was given yet.
            OptionError: the stream refines masks.
        """
        return self._begun("save the stream").save()

    @exclusive
    def load(self, session: bytes | bytearray | memoryview) -> None:
        """Continue a saved stream in this new one. How labels are propagated comes from the session.

        Raises:
            InputError: the stream has begun.
            SessionError: the session is damaged, or was saved with another network.
            OptionError: no core of this machine can continue it.
        """
        core = self._open()
        if core.frame_size is not None:
            raise InputError("the stream has begun; load a session into a new one")
        try:
            data = bytes(memoryview(session))
        except (TypeError, ValueError, BufferError) as error:
            raise SessionError(
                f"the session is {type(session).__name__}; expected the bytes that save() gave"
            ) from error
        core.load(data)
        self._loaded = True

    @exclusive
    def close(self) -> None:
        """Free the memory; the stream cannot be used afterwards."""
        if self._core is not None:
            self._core.close()
        self._core = None

    def _open(self) -> HostStream:
        self.encoder.check_process()
        if self._core is None:
            raise InputError("the stream is closed; open another with model.stream()")
        return self._core

    def _begun(self, action: str) -> HostStream:
        core = self._open()
        if core.frame_size is None:
            raise InputError(f"cannot {action} before the first frame; call start(frame, mask) first")
        return core


def _frame_size(frame: FrameArray | WorkingFrame | Embedding) -> tuple[int, int]:
    """Rows and columns of the frame, in pixels."""
    if isinstance(frame, Embedding | WorkingFrame):
        return frame.frame_height, frame.frame_width
    return frame_size(frame)


def as_mask(mask: MaskArray, height: int, width: int) -> U8Array:
    """Check a mask and bring it to u8 [H, W].

    Raises:
        MaskError: it does not fit, or is empty.
    """
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
