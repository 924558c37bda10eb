"""Mask embedding at inference: values are remembered, read out, decoded and refined (Li et al. 2023, algorithm S1).

Values are read in the native core where it is built; other array work is NumPy's. The order of events for one frame:

    memory.push -> read values with its top-k -> rounds of { mask encoder, decoder, aggregate }
                -> refined masks become the memory's, and are encoded as this frame's values
                   (or, without feedback, propagated masks stay the memory's, and it is those that are encoded)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vosrt import ops
from vosrt.bundle import CONTEXT, RES2, RES3, MaskSpec
from vosrt.encoder import Embedding
from vosrt.engines.base import Engine
from vosrt.errors import EngineError, InputError
from vosrt.memory import Memory
from vosrt.ops import reference
from vosrt.types import F32Array, I32Array, PropagationOptions, TopK, U8Array

NO_MAPS = "this embedding was made without the maps that refinement needs; encode the frame again"


@dataclass
class _Block:
    """Values of the objects that were marked in one frame, their reference; together they read.

    Attributes:
        frames: which frame each slot holds, -1 for none: slot 0 the reference, then the recent frames in turn.
        values: by object, f32 [1 + context, h * w, V].
    """

    frames: I32Array
    values: dict[int, F32Array] = field(default_factory=dict)


class ValueMemory:
    """What is known of every object's looks: its values at its reference, for ever, and at the most recent frames.

    Frames are counted as the `Memory` counts them, whose top-k says where to read.

    Args:
        context: recent frames that are kept.
        temperature: τ.
        threads: of the native core; 0 is one per processor.
    """

    def __init__(self, context: int, temperature: float, threads: int = 0) -> None:
        self._context = context
        self._temperature = temperature
        self._threads = threads
        self._blocks: dict[int, _Block] = {}  # by reference, in the order of the top-k's blocks

    def refer(self, frame: int, ids: list[int], shape: tuple[int, int]) -> None:
        """Make a frame the reference of objects.

        Args:
            frame: its number.
            ids: the objects.
            shape: h * w and V.
        """
        for block in self._blocks.values():
            for object_id in ids:
                block.values.pop(object_id, None)
        block = self._blocks.setdefault(frame, _Block(np.full(1 + self._context, -1, dtype=np.int32)))
        for object_id in ids:
            block.values[object_id] = np.zeros((1 + self._context, *shape), dtype=np.float32)
        self._drop_idle()

    def put(self, frame: int, object_id: int, values: F32Array) -> None:
        """Remember an object's values f32 [h, w, V] in a frame. Every object is to be given before the next is read."""
        reference_frame, block = next(each for each in self._blocks.items() if object_id in each[1].values)
        kept = block.values[object_id]
        slots = [0] if frame == reference_frame else []
        slots += [1 + frame % self._context] if self._context else []
        for slot in slots:
            kept[slot] = values.reshape(kept.shape[1:])
            block.frames[slot] = frame

    def read(self, top_k: TopK, ids: Sequence[int]) -> F32Array:
        """V_q in the newest frame: values, weighted as labels are in `reference.read_out`.

        Args:
            top_k: of the newest frame.
            ids: the objects, at least one.

        Returns:
            f32 [len(ids), h * w, V].
        """
        order: list[int] = []
        found: list[F32Array] = []
        for number, block in enumerate(self._blocks.values()):
            if not block.values:
                continue
            frame = top_k.frame[number]
            slot = np.full_like(frame, -1)
            for index, held in enumerate(block.frames):
                if held >= 0:
                    slot[frame == held] = index
            near = reference.Neighbours(top_k.similarity[number], slot, top_k.cell[number])
            order += block.values
            found.append(ops.read_values(near, list(block.values.values()), self._temperature, threads=self._threads))
        read = found[0] if len(found) == 1 else np.concatenate(found)
        return read if order == list(ids) else read[[order.index(each) for each in ids]]

    def remove(self, object_id: int) -> None:
        """Forget an object."""
        for block in self._blocks.values():
            block.values.pop(object_id, None)
        self._drop_idle()

    def _drop_idle(self) -> None:
        """Keep the references that the memory keeps: the first, and those of an object."""
        first = min(self._blocks, default=-1)
        self._blocks = {frame: each for frame, each in self._blocks.items() if each.values or frame == first}


@dataclass
class Refiner:
    """Refines one stream's masks. Keeps its values in step with the stream's memory.

    Attributes:
        spec: contract of the graphs.
        mask_encoder: its engine.
        decoder: its engine.
        options: how labels are propagated.
        rounds: of refinement; 0 decodes the read-out alone.
        threads: of the native core; 0 is one per processor.
    """

    spec: MaskSpec
    mask_encoder: Engine
    decoder: Engine
    options: PropagationOptions
    rounds: int
    threads: int = 0
    _frame: int = field(default=-1, init=False)
    _maps: dict[str, F32Array] = field(default_factory=dict, init=False)
    _working: U8Array | None = field(default=None, init=False)  # [height, width, 3]
    _soft: F32Array | None = field(default=None, init=False)  # [H, W, 1 + objects]
    _ids: tuple[int, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        self._values = ValueMemory(self.options.context, self.options.temperature, self.threads)

    def step(self, embedding: Embedding, memory: Memory) -> None:
        """Refine the masks that a memory has just propagated; with feedback, give them back to it.

        Args:
            embedding: of the newest frame, with the encoder's maps.
            memory: to which it has just been pushed.

        Raises:
            InputError: the embedding was made without maps.
            EngineError: an engine failed.
        """
        self._frame += 1
        self._maps, self._working = embedding.maps_on_host()
        self._ids, self._soft = memory.object_ids, None
        if not self._ids:
            return
        h, w = embedding.shape[:2]
        readout = self._values.read(memory.top_k(), self._ids).reshape(len(self._ids), h, w, -1)
        height, width = self._working_frame().shape[:2]
        soft = propagated = reference.resize_soft(memory.soft_masks(), height, width)
        values = self._encode(propagated) if self.rounds else readout
        soft = self._decode(readout, values, propagated)
        for _ in range(1, self.rounds):
            soft = self._decode(readout, self._encode(soft), propagated)
        self._soft = soft
        if self.spec.feedback:
            memory.set_soft_masks(reference.resize_soft(soft, h, w))
            self._remember(self._encode(soft))
        else:
            self._remember(values if self.rounds else self._encode(propagated))

    def annotate(self, mask: U8Array, memory: Memory) -> None:
        """Take note of objects that were just marked in the newest frame.

        Args:
            mask: u8 [H, W] in the frame's own size, 0 where nothing was said.
            memory: to which they have just been given.

        Raises:
            EngineError: an engine failed.
        """
        height, width = self._working_frame().shape[:2]
        self._ids = memory.object_ids
        grid = memory.soft_masks()
        marked, soft = mark(grid, self._ids, mask, height, width)
        self._soft = soft
        cells = grid.shape[0] * grid.shape[1]
        self._values.refer(self._frame, marked, (cells, self.spec.value_channels))
        self._remember(self._encode(soft))

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
        index, confidence = reference.upsample_labels(self._soft, height, width, align_corners=False)
        return np.array([0, *self._ids], dtype=np.uint8)[index], confidence

    def _remember(self, values: F32Array) -> None:
        """Keep what the mask encoder made of the newest frame's masks, f32 [M, h, w, V]."""
        for object_id, of_object in zip(self._ids, values, strict=True):
            self._values.put(self._frame, object_id, of_object)

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
        logits = reference.resize_soft(logits, *self._working_frame().shape[:2])
        return reference.correct(propagated, logits) if self.spec.residual else reference.aggregate(logits)

    def _map(self, name: str) -> F32Array:
        return self._maps[name]

    def _working_frame(self) -> U8Array:
        if self._working is None:
            raise InputError(NO_MAPS)
        return self._working


def mark(grid: F32Array, ids: tuple[int, ...], mask: U8Array, height: int, width: int) -> tuple[list[int], F32Array]:
    """Objects that were just marked, and soft masks of the frame with them as they were drawn.

    Args:
        grid: f32 [h, w, 1 + M], the memory's.
        ids: the M objects.
        mask: u8 [H, W] in the frame's own size, 0 where nothing was said.
        height: rows of the result.
        width: its columns.

    Returns:
        The marked ids, ascending, and f32 [height, width, 1 + M].
    """
    marked = [int(object_id) for object_id in np.unique(mask) if object_id]
    planes = np.stack([(mask == object_id).astype(np.float32) for object_id in marked], axis=-1)
    planes = reference.resize_soft(planes, height, width)
    soft = reference.resize_soft(grid, height, width)
    soft *= np.maximum(0, 1 - planes.sum(axis=-1, keepdims=True))
    for channel, object_id in enumerate(marked):
        soft[:, :, 1 + ids.index(object_id)] = planes[:, :, channel]
    return marked, soft


def _only(outputs: dict[str, F32Array], name: str) -> F32Array:
    if name not in outputs:
        raise EngineError(
            f"a graph of the bundle gave {', '.join(outputs)} instead of {name!r}; export the bundle again"
        )
    return outputs[name]
