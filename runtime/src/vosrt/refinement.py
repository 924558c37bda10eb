"""Mask embedding at inference: values are remembered, read out, decoded and refined (Li et al. 2023, algorithm S1).

Array work is NumPy's, and the definition of what a native core must do. The order of events for one frame:

    memory.push -> read values with its top-k -> rounds of { mask encoder, decoder, aggregate }
                -> refined masks become the memory's, and are encoded as this frame's values
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vosrt.bundle import CONTEXT, RES2, RES3, MaskSpec
from vosrt.encoder import Embedding
from vosrt.engines.base import Engine
from vosrt.errors import EngineError, InputError
from vosrt.memory import Memory
from vosrt.ops import reference
from vosrt.types import F32Array, I32Array, PropagationOptions, TopK, U8Array


@dataclass
class _ObjectValues:
    """Values of one object: slot 0 is its reference, then the recent frames in turn.

    Attributes:
        reference: frame in which the object was marked.
        values: f32 [1 + context, h * w, V].
        frames: which frame each slot holds; -1 for none.
    """

    reference: int
    values: F32Array
    frames: I32Array


class ValueMemory:
    """What is known of every object's looks: its values at its reference, for ever, and at the most recent frames.

    Frames are counted as the `Memory` counts them, whose top-k says where to read.

    Args:
        context: recent frames that are kept.
        temperature: τ.
    """

    def __init__(self, context: int, temperature: float) -> None:
        self._context = context
        self._temperature = temperature
        self._objects: dict[int, _ObjectValues] = {}
        self._references: list[int] = []  # frames, in the order of the top-k's blocks

    def refer(self, frame: int, ids: list[int], shape: tuple[int, int]) -> None:
        """Make a frame the reference of objects.

        Args:
            frame: its number.
            ids: the objects.
            shape: h * w and V.
        """
        for object_id in ids:
            values = np.zeros((1 + self._context, *shape), dtype=np.float32)
            frames = np.full(1 + self._context, -1, dtype=np.int32)
            self._objects[object_id] = _ObjectValues(frame, values, frames)
        if frame not in self._references:
            self._references.append(frame)
        self._drop_idle()

    def put(self, frame: int, object_id: int, values: F32Array) -> None:
        """Remember an object's values f32 [h, w, V] in a frame."""
        kept = self._objects[object_id]
        slots = [0] if frame == kept.reference else []
        slots += [1 + frame % self._context] if self._context else []
        for slot in slots:
            kept.values[slot] = values.reshape(kept.values.shape[1:])
            kept.frames[slot] = frame

    def read(self, top_k: TopK, object_id: int) -> F32Array:
        """V_q of one object in the newest frame: its values, weighted as labels are in `reference.read_out`.

        Args:
            top_k: of the newest frame.
            object_id: the object.

        Returns:
            f32 [h * w, V].
        """
        kept = self._objects[object_id]
        block = self._references.index(kept.reference)
        frame = top_k.frame[block]
        slot = np.full_like(frame, -1)
        for number, held in enumerate(kept.frames):
            if held >= 0:
                slot[frame == held] = number
        return read_values(top_k.similarity[block], slot, top_k.cell[block], kept.values, self._temperature)

    def remove(self, object_id: int) -> None:
        """Forget an object."""
        self._objects.pop(object_id, None)
        self._drop_idle()

    def _drop_idle(self) -> None:
        """Keep the references that the memory keeps: the first, and those of an object."""
        used = {kept.reference for kept in self._objects.values()}
        self._references = self._references[:1] + [frame for frame in self._references[1:] if frame in used]


def read_values(similarity: F32Array, slot: I32Array, cell: I32Array, values: F32Array, temperature: float) -> F32Array:
    """Weighted sum of the neighbours' values (Li et al. 2023, equation 7); the weights are a softmax.

    Args:
        similarity: f32 [h*w, k]; NaN where there are fewer neighbours.
        slot: i32 [h*w, k]; -1 where missing.
        cell: i32 [h*w, k]; -1 where missing.
        values: f32 [N, h*w, V].
        temperature: τ.

    Returns:
        f32 [h*w, V].
    """
    missing = slot < 0
    scaled = np.where(missing, -np.inf, similarity / np.float32(temperature)).astype(np.float32)
    largest = np.where(missing.all(axis=1), 0, scaled.max(axis=1)).astype(np.float32)
    weight = np.exp(scaled - largest[:, None])
    weight /= np.maximum(weight.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    total = np.zeros(values.shape[1:], dtype=np.float32)
    for rank in range(slot.shape[1]):
        total += weight[:, rank, None] * values[np.maximum(slot[:, rank], 0), np.maximum(cell[:, rank], 0)]
    return total


@dataclass
class Refiner:
    """Refines one stream's masks. Keeps its values in step with the stream's memory.

    Attributes:
        spec: contract of the graphs.
        mask_encoder: its engine.
        decoder: its engine.
        options: how labels are propagated.
        rounds: of refinement; 0 decodes the read-out alone.
    """

    spec: MaskSpec
    mask_encoder: Engine
    decoder: Engine
    options: PropagationOptions
    rounds: int
    _frame: int = field(default=-1, init=False)
    _newest: Embedding | None = field(default=None, init=False)
    _soft: F32Array | None = field(default=None, init=False)  # [H, W, 1 + objects]
    _ids: tuple[int, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        self._values = ValueMemory(self.options.context, self.options.temperature)

    def step(self, embedding: Embedding, memory: Memory) -> None:
        """Refine the masks that a memory has just propagated, and give them back to it.

        Args:
            embedding: of the newest frame, with the encoder's maps.
            memory: to which it has just been pushed.

        Raises:
            InputError: the embedding was made without maps.
            EngineError: an engine failed.
        """
        self._frame += 1
        self._newest, self._ids, self._soft = embedding, memory.object_ids, None
        if not self._ids:
            return
        h, w = embedding.array.shape[:2]
        top_k = memory.top_k()
        readout = np.stack([self._values.read(top_k, each).reshape(h, w, -1) for each in self._ids])
        height, width = self._working_frame().shape[:2]
        soft = reference.resize_soft(memory.soft_masks(), height, width)
        propagated = soft
        if self.rounds == 0:
            soft = self._decode(readout, readout, propagated)
        for _ in range(self.rounds):
            soft = self._decode(readout, self._encode(soft), propagated)
        self._soft = soft
        memory.set_soft_masks(reference.resize_soft(soft, h, w))
        self._remember(soft)

    def annotate(self, mask: U8Array, memory: Memory) -> None:
        """Take note of objects that were just marked in the newest frame.

        Args:
            mask: u8 [H, W] in the frame's own size, 0 where nothing was said.
            memory: to which they have just been given.

        Raises:
            EngineError: an engine failed.
        """
        marked = [int(object_id) for object_id in np.unique(mask) if object_id]
        height, width = self._working_frame().shape[:2]
        planes = np.stack([(mask == object_id).astype(np.float32) for object_id in marked], axis=-1)
        planes = reference.resize_soft(planes, height, width)
        self._ids = memory.object_ids
        grid = memory.soft_masks()
        soft = reference.resize_soft(grid, height, width)
        soft *= np.maximum(0, 1 - planes.sum(axis=-1, keepdims=True))
        for channel, object_id in enumerate(marked):
            soft[:, :, 1 + self._ids.index(object_id)] = planes[:, :, channel]
        self._soft = soft
        cells = grid.shape[0] * grid.shape[1]
        self._values.refer(self._frame, marked, (cells, self.spec.value_channels))
        self._remember(soft)

    def remove(self, object_id: int) -> None:
        """Forget an object; its area becomes background."""
        self._values.remove(object_id)
        if self._soft is not None and object_id in self._ids:
            channel = 1 + self._ids.index(object_id)
            self._soft[:, :, 0] += self._soft[:, :, channel]
            self._soft = np.delete(self._soft, channel, axis=2)
        self._ids = tuple(each for each in self._ids if each != object_id)

    def labels(self, height: int, width: int) -> tuple[U8Array, F32Array] | None:
        """Object ids u8 [height, width] and confidence f32 of the newest frame; None where nothing was refined."""
        if self._soft is None:
            return None
        index, confidence = reference.upsample_labels(self._soft, height, width)
        return np.array([0, *self._ids], dtype=np.uint8)[index], confidence

    def _remember(self, soft: F32Array) -> None:
        for object_id, values in zip(self._ids, self._encode(soft), strict=True):
            self._values.put(self._frame, object_id, values)

    def _encode(self, soft: F32Array) -> F32Array:
        """Values f32 [M, h, w, V] of soft masks f32 [H, W, 1 + M] of the newest frame."""
        inputs: dict[str, NDArray[Any]] = {
            "frames": self._working_frame()[None],
            "masks": np.ascontiguousarray(soft[:, :, 1:].transpose(2, 0, 1)),
            CONTEXT: self._map(self.spec.context),
        }
        return _only(self.mask_encoder.run(inputs), "values")

    def _decode(self, readout: F32Array, values: F32Array, propagated: F32Array) -> F32Array:
        """Soft masks f32 [H, W, 1 + M] of the newest frame, from scratch or as a correction of what was propagated."""
        inputs = {"readout": readout, "values": values, RES3: self._map(RES3), RES2: self._map(RES2)}
        logits = _only(self.decoder.run(inputs), "logits").transpose(1, 2, 0)
        height, width = self._working_frame().shape[:2]
        if self.spec.residual:
            return reference.correct(propagated, reference.place(logits, 4, height, width))
        return reference.aggregate(reference.resize_soft(logits, height, width))

    def _map(self, name: str) -> F32Array:
        assert self._newest is not None
        return self._newest.maps[name]

    def _working_frame(self) -> U8Array:
        if self._newest is None or self._newest.frame is None:
            raise InputError("this embedding was made without the maps that refinement needs; encode the frame again")
        return self._newest.frame


def _only(outputs: dict[str, F32Array], name: str) -> F32Array:
    if name not in outputs:
        raise EngineError(
            f"a graph of the bundle gave {', '.join(outputs)} instead of {name!r}; export the bundle again"
        )
    return outputs[name]
