"""What a tracked video remembers: slots of past frames, references, and the labels they carry.

``create_memory`` gives the native core where it is built, else :class:`NumpyMemory`, its twin. Frames are counted
from 0 in the order of ``push``. A *reference* is a frame that was annotated; it keeps its key and soft masks for as
long as one of its objects is tracked (the first one for ever, because background is read from it).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vosrt.cuda_library import parse_device
from vosrt.cuda_memory import CudaMemory
from vosrt.errors import MaskError, OptionError
from vosrt.native import find_native
from vosrt.ops import reference
from vosrt.types import F32Array, Precision, PropagationOptions, TopK, U8Array

BACKGROUND = 0
_NEEDS_NATIVE = "needs the native core; unset VOSRT_CORE, or reinstall vosrt where a C++20 compiler is"


class Memory(Protocol):
    """One video's memory. Not safe for use by several threads at the same time."""

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Tracked objects, ascending."""

    @property
    def info(self) -> dict[str, Any]:
        """What the memory is and holds.

        ``isa``, ``threads``, ``objects``, ``references``, ``frames`` pushed, ``bytes``, ``shape`` (h, w, K),
        ``align_corners``.
        """

    def push(self, embedding: F32Array) -> None:
        """Take the next frame, f32 [h, w, K] of unit length per cell, and propagate the soft masks to it.

        Raises:
            OptionError: the array does not have the shape or dtype of this memory.
        """

    def annotate(self, mask: U8Array) -> None:
        """Mark objects in the newest frame: u8 [H, W], 0 keeps the prediction, else an object id.

        Raises:
            MaskError: the mask is empty, or an object cannot be represented on the grid; nothing has changed.
            OptionError: no frame has been pushed.
        """

    def remove(self, object_id: int) -> None:
        """Forget one object; its area becomes background.

        Raises:
            OptionError: no such object.
        """

    def labels(self, height: int, width: int) -> tuple[U8Array, F32Array]:
        """Object ids u8 [height, width] and confidence f32 [height, width] of the newest frame."""

    def soft_masks(self) -> F32Array:
        """Soft masks of the newest frame, f32 [h, w, 1 + objects]: background, then ids ascending."""

    def set_soft_masks(self, masks: F32Array) -> None:
        """Replace the newest frame's soft masks, f32 [h, w, 1 + objects]; references keep theirs.

        Raises:
            OptionError: the array does not have this shape or dtype, or holds a negative or not finite value.
        """

    def top_k(self) -> TopK:
        """What the newest frame attended to when it was pushed, one block per reference of that moment."""

    def save(self, frame_height: int, frame_width: int, annotation: U8Array | None, model: bytes) -> bytes:
        """The memory and what its stream knows besides, for :func:`load_session`.

        Args:
            frame_height: rows of the stream's frames, in pixels.
            frame_width: their columns.
            annotation: what was marked in the newest frame, u8 [frame_height, frame_width].
            model: SHA-256 of the encoder's graph, 32 bytes; zeros if it is not known.

        Raises:
            OptionError: no frame has been pushed, or this core cannot save.
        """


@dataclass
class _Slot:
    """A remembered frame: its key f32 [h, w, K] and its soft masks, one f32 [h, w] per id (0 = background)."""

    frame: int
    key: F32Array
    soft: dict[int, F32Array]

    def labels(self, ids: list[int]) -> F32Array:
        """Soft masks of some ids, f32 [h, w, len(ids)]."""
        absent = np.zeros(self.key.shape[:2], dtype=np.float32)
        return np.stack([self.soft.get(object_id, absent) for object_id in ids], axis=-1)

    def release(self, object_id: int) -> None:
        """Turn an object into background."""
        if object_id in self.soft:
            self.soft[BACKGROUND] = self.soft[BACKGROUND] + self.soft.pop(object_id)


@dataclass
class _Reference(_Slot):
    """An annotated frame and the objects that are read from it."""

    ids: set[int] = field(default_factory=set)


class NumpyMemory:
    """The memory in plain NumPy: slow, and the definition of what the native core must do.

    Args:
        height: grid rows, h.
        width: grid columns, w.
        channels: embedding channels, K.
        options: how labels are propagated.
        align_corners: see `EncoderSpec`.

    Raises:
        OptionError: a size is not positive.
    """

    def __init__(
        self,
        height: int,
        width: int,
        channels: int,
        options: PropagationOptions | None = None,
        *,
        align_corners: bool = True,
    ) -> None:
        if min(height, width, channels) < 1:
            raise OptionError(f"memory of {height} x {width} x {channels}; expected positive sizes")
        self._shape = (height, width, channels)
        self._options = options or PropagationOptions()
        self._align_corners = align_corners
        self._recent: deque[_Slot] = deque(maxlen=self._options.context + 1)
        self._references: list[_Reference] = []
        self._frames = 0
        self._top_k = self._empty_top_k()

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Tracked objects, ascending."""
        return tuple(sorted(set().union(*(reference.ids for reference in self._references))))

    @property
    def info(self) -> dict[str, Any]:
        """Counters; see :class:`Memory`."""
        slots = [*self._recent, *self._references]
        return {
            "isa": "numpy",
            "threads": 1,
            "objects": len(self.object_ids),
            "references": sum(bool(reference.ids) for reference in self._references),
            "frames": self._frames,
            "bytes": sum(slot.key.nbytes + sum(plane.nbytes for plane in slot.soft.values()) for slot in slots),
            "shape": self._shape,
            "align_corners": self._align_corners,
        }

    def push(self, embedding: F32Array) -> None:
        """Take the next frame; see :class:`Memory`."""
        _check_array("embedding", embedding, self._shape, np.float32)
        slot = _Slot(self._frames, embedding.copy(), {})
        if self._references:
            self._propagate_to(slot)
        else:
            slot.soft[BACKGROUND] = np.ones(self._shape[:2], dtype=np.float32)
            self._top_k = self._empty_top_k()
        self._recent.append(slot)
        self._frames += 1

    def _propagate_to(self, slot: _Slot) -> None:
        """Read the frame's soft masks from every reference's context and remember the attention."""
        blocks = []
        for position, anchor in enumerate(self._references):
            ids = ([BACKGROUND] if position == 0 else []) + sorted(anchor.ids)
            context, local = self._context_of(anchor, slot.frame)
            neighbours = reference.match(
                slot.key,
                [other.key for other in context],
                local,
                window=self._options.window,
                radius=self._options.radius,
                top_k=self._options.top_k,
            )
            soft = reference.read_out(
                neighbours, np.stack([other.labels(ids) for other in context]), self._options.temperature
            )
            slot.soft.update({object_id: soft[:, :, channel] for channel, object_id in enumerate(ids)})
            frames = np.array([*(other.frame for other in context), -1], dtype=np.int32)
            blocks.append((neighbours.similarity, frames[neighbours.slot], neighbours.cell))
        if self._options.yield_background:
            later = [slot.soft[object_id] for anchor in self._references[1:] for object_id in sorted(anchor.ids)]
            slot.soft[BACKGROUND] = slot.soft[BACKGROUND] * np.maximum(0, 1 - np.sum(later, axis=0, dtype=np.float32))
        self._top_k = TopK(*(np.stack(arrays) for arrays in zip(*blocks, strict=True)))

    def _context_of(self, anchor: _Reference, frame: int) -> tuple[list[_Slot], list[bool]]:
        """The slots that frame attends to for one reference, and which of them are windowed."""
        known = {slot.frame: slot for slot in self._recent}
        slots: list[_Slot] = [anchor]
        for earlier in range(frame - self._options.context, frame):
            if earlier >= anchor.frame:
                slots.append(known[earlier])
            elif self._options.pad_context:
                slots.append(anchor)
        return slots, [not self._options.global_reference] + [True] * (len(slots) - 1)

    def annotate(self, mask: U8Array) -> None:
        """Mark objects in the newest frame; see :class:`Memory`."""
        newest = self._newest("annotate")
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise OptionError(f"mask is {mask.dtype.name} {list(mask.shape)}; expected uint8 [H, W]")
        ids = [int(object_id) for object_id in np.unique(mask) if object_id != BACKGROUND]
        if not ids:
            raise MaskError("the mask marks no object; expected at least one pixel that is not 0")
        marked = reference.resize_mask(mask, ids, *self._shape[:2], align_corners=self._align_corners)

        # Rounding may carry the sum just past 1; soft masks are never negative.
        kept = np.maximum(0, 1 - marked.sum(axis=-1, dtype=np.float32))
        for object_id in ids:
            newest.release(object_id)
        newest.soft = {object_id: plane * kept for object_id, plane in newest.soft.items()}
        newest.soft |= {object_id: marked[:, :, channel].copy() for channel, object_id in enumerate(ids)}
        self._refer_to(newest, ids)

    def _refer_to(self, newest: _Slot, ids: list[int]) -> None:
        """Make the newest frame the reference of these objects."""
        for other in self._references:
            other.ids.difference_update(ids)
        if self._references and self._references[-1].frame == newest.frame:
            ids = [*ids, *self._references.pop().ids]
        self._references.append(_Reference(newest.frame, newest.key, dict(newest.soft), set(ids)))
        self._drop_idle_references()

    def remove(self, object_id: int) -> None:
        """Forget one object; see :class:`Memory`."""
        if object_id not in self.object_ids:
            raise OptionError(f"object {object_id} is not tracked; tracked are {list(self.object_ids)}")
        for slot in [*self._recent, *self._references]:
            slot.release(object_id)
        for anchor in self._references:
            anchor.ids.discard(object_id)
        self._drop_idle_references()

    def _drop_idle_references(self) -> None:
        self._references = self._references[:1] + [anchor for anchor in self._references[1:] if anchor.ids]

    def labels(self, height: int, width: int) -> tuple[U8Array, F32Array]:
        """Labels and confidence of the newest frame; see :class:`Memory`."""
        soft = self.soft_masks()
        index, confidence = reference.upsample_labels(soft, height, width, align_corners=self._align_corners)
        ids = np.array([BACKGROUND, *self.object_ids], dtype=np.uint8)
        return ids[index], confidence

    def soft_masks(self) -> F32Array:
        """Soft masks of the newest frame; see :class:`Memory`."""
        return self._newest("read soft masks").labels([BACKGROUND, *self.object_ids])

    def set_soft_masks(self, masks: F32Array) -> None:
        """Replace the newest frame's soft masks; see :class:`Memory`."""
        newest = self._newest("set soft masks")
        ids = [BACKGROUND, *self.object_ids]
        _check_array("soft masks", masks, (*self._shape[:2], len(ids)), np.float32)
        if (wrong := masks[~(np.isfinite(masks) & (masks >= 0))]).size:
            raise OptionError(f"a soft mask holds {wrong[0]}; expected finite values of at least 0")
        newest.soft = {object_id: masks[:, :, channel].copy() for channel, object_id in enumerate(ids)}

    def top_k(self) -> TopK:
        """What the newest frame attended to; see :class:`Memory`."""
        return self._top_k

    def save(self, frame_height: int, frame_width: int, annotation: U8Array | None, model: bytes) -> bytes:
        """Sessions are the native core's; this one only says so."""
        raise OptionError(f"saving a stream {_NEEDS_NATIVE}")

    def _newest(self, action: str) -> _Slot:
        if not self._recent:
            raise OptionError(f"cannot {action}: no frame was pushed; push a frame first")
        return self._recent[-1]

    def _empty_top_k(self) -> TopK:
        shape = (0, self._shape[0] * self._shape[1], self._options.top_k)
        return TopK(np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.int32), np.empty(shape, dtype=np.int32))


def _check_array(name: str, array: NDArray[Any], shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    if array.shape != shape or array.dtype != dtype:
        expected = f"{np.dtype(dtype).name} {list(shape)}"
        raise OptionError(f"{name} is {array.dtype.name} {list(array.shape)}; expected {expected}")


def create_memory(
    height: int,
    width: int,
    channels: int,
    options: PropagationOptions,
    *,
    align_corners: bool = True,
    precision: Precision = "auto",
    threads: int = 0,
    device: str = "cpu",
) -> tuple[Memory, str]:
    """Create a memory on a GPU if one is asked for, else on the native core where it is built, else in NumPy.

    The environment variable ``VOSRT_CORE`` (``native`` or ``numpy``) forces one; ``VOSRT_ISA`` forces an
    instruction-set path of the native core.

    Args:
        height: grid rows, h.
        width: grid columns, w.
        channels: embedding channels, K.
        options: how labels are propagated.
        align_corners: see `EncoderSpec`.
        precision: of the products in matching; ``"auto"`` is bf16 where the processor has it.
        threads: worker threads of the native core; 0 is one per processor.
        device: ``"cpu"``, or ``"cuda"`` or ``"cuda:N"`` for an NVIDIA GPU.

    Returns:
        The memory, and one sentence on why this one.

    Raises:
        OptionError: ``VOSRT_CORE`` or ``VOSRT_ISA`` forces what is not there, no core has the precision, or the GPU
            cannot be used.
    """
    if (gpu := parse_device(device)) is not None:
        on_gpu = CudaMemory(
            height, width, channels, options, align_corners=align_corners, device=gpu, precision=precision
        )
        return on_gpu, on_gpu.describe()
    native, why_not = find_native()
    if native is None:
        if precision == "bf16":
            raise OptionError(f"precision is 'bf16', but NumPy computes in fp32 ({why_not}); use 'auto' or 'fp32'")
        in_numpy = NumpyMemory(height, width, channels, options, align_corners=align_corners)
        return in_numpy, f"NumPy, slow: {why_not}"
    memory: Memory = native.Memory(
        height,
        width,
        channels,
        context=options.context,
        window=options.window,
        radius=options.radius,
        top_k=options.top_k,
        temperature=options.temperature,
        pad_context=options.pad_context,
        global_reference=options.global_reference,
        yield_background=options.yield_background,
        align_corners=align_corners,
        precision=precision,
        threads=threads,
    )
    info = memory.info
    return memory, f"native core {native.version()}, {info['isa']} on {info['threads']} threads"


@dataclass(frozen=True)
class Session:
    """A saved stream, ready to continue.

    Attributes:
        memory: its memory.
        frame_height: rows of its frames, in pixels.
        frame_width: their columns.
        annotation: what was marked in the newest frame, u8 [frame_height, frame_width], or None.
        model: SHA-256 of the encoder's graph, 32 bytes; zeros if it was not known.
    """

    memory: Memory
    frame_height: int
    frame_width: int
    annotation: U8Array | None
    model: bytes


def load_session(session: bytes, *, precision: Precision = "auto", threads: int = 0, device: str = "cpu") -> Session:
    """Read what ``Memory.save`` or the C function ``vosrt_stream_save`` wrote. The data are not trusted.

    Args:
        session: the bytes.
        precision: of the products in matching; ``"auto"`` is the session's, another than the session's is refused.
        threads: worker threads; 0 is one per processor.
        device: where it is to continue, as for :func:`create_memory`; on a GPU in bf16 only.

    Raises:
        SessionError: the session is damaged or made by a newer vosrt.
        OptionError: no core here can continue it.
    """
    if (gpu := parse_device(device)) is not None:
        return Session(*CudaMemory.load(session, gpu))
    native, _ = find_native()
    if native is None:
        raise OptionError(f"loading a saved stream {_NEEDS_NATIVE}")
    return Session(*native.load_session(session, precision=precision, threads=threads))
