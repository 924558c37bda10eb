"""Mask embedding on a GPU: as refiner.cpp does it, and nothing of a frame comes to the host.

Maps, masks and values stay where the memory is. Its kernels and the two graphs are queued behind each other; the host
waits for engines that cannot queue, and for no other. Only masks that are given, and those of a frame that an object is
removed from, go by way of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vosrt.arrays import DeviceTensor
from vosrt.bundle import CONTEXT, RES2, RES3, MaskSpec
from vosrt.core.memory import Memory
from vosrt.cuda.memory import CudaMemory
from vosrt.cuda.network import NetworkOnGpu
from vosrt.cuda.planes import CudaValues, draw_planes, keep_planes, mark_planes, refine_planes
from vosrt.cuda.runtime import CudaQueue
from vosrt.cuda.transfer import DoubleBuffer
from vosrt.encoder import Embedding
from vosrt.errors import InputError
from vosrt.refinement import NO_MAPS
from vosrt.types import PropagationOptions, U8Array


class RefinerOnGpu:
    """Refines one stream's masks where its memory is, which shows them in place of its own.

    Args:
        spec: contract of the graphs.
        mask_encoder: its graph.
        decoder: its graph.
        options: how labels are propagated.
        rounds: of refinement; 0 decodes the read-out alone.
    """

    def __init__(
        self,
        spec: MaskSpec,
        mask_encoder: NetworkOnGpu,
        decoder: NetworkOnGpu,
        options: PropagationOptions,
        rounds: int,
    ) -> None:
        self._spec, self._rounds = spec, rounds
        self._mask_encoder, self._decoder = mask_encoder, decoder
        self._values = CudaValues(options.context)
        self._arrays = _Arrays()
        self._frame = -1
        self._maps: dict[str, DeviceTensor] = {}  # by name, and the working frame u8 [1, H, W, 3] as "frames"
        self._grid: tuple[int, int] = (0, 0)
        self._ids: tuple[int, ...] = ()
        self._memory: CudaMemory | None = None
        self._refined: DeviceTensor | None = None  # planes of the newest frame

    def step(self, embedding: Embedding, memory: Memory) -> None:
        """Refine the masks that a memory has just propagated; see refiner.cpp.

        Raises:
            InputError: the embedding was made without maps, or the memory is not on a GPU.
            EngineError: an engine failed.
        """
        there = self._memory = _on_gpu(memory)
        queue = there.queue
        self._frame += 1
        self._grid = (embedding.shape[0], embedding.shape[1])
        self._maps = self._bring_maps(embedding, queue)
        self._ids, self._refined = there.object_ids, None
        if not self._ids:
            return
        planes = self._planes(queue)
        readout = values = self._new_values("readout", queue)
        self._values.read(there, self._ids, readout)
        if self._rounds or not self._spec.feedback:
            draw_planes(there, planes)
            coarse = self._encode(planes, queue)
            values = coarse if self._rounds else readout
            if not self._spec.feedback:
                self._values.put(self._frame, self._ids, coarse, queue)
        self._decode(there, readout, values, planes)
        for _ in range(1, self._rounds):
            self._decode(there, readout, self._encode(planes, queue), planes)
        if self._spec.feedback:
            keep_planes(there, planes)
            self._values.put(self._frame, self._ids, self._encode(planes, queue), queue)
        self._show(planes)

    def annotate(self, mask: U8Array, memory: Memory) -> None:
        """Take note of objects that were just marked in the newest frame; see refiner.cpp.

        Raises:
            InputError: the memory is not on a GPU.
            EngineError: an engine failed.
        """
        there = self._memory = _on_gpu(memory)
        self._ids, self._refined, queue = there.object_ids, None, there.queue
        planes = self._planes(queue)
        draw_planes(there, planes)
        mark_planes(there, planes, mask)
        self._show(planes)
        marked = [int(object_id) for object_id in np.unique(mask) if object_id]
        self._values.refer(self._frame, marked, (self._grid[0] * self._grid[1], self._spec.value_channels), queue)
        self._values.put(self._frame, self._ids, self._encode(planes, queue), queue)

    def _bring_maps(self, embedding: Embedding, queue: CudaQueue) -> dict[str, DeviceTensor]:
        """The encoder's maps and the frame that it saw, u8 [1, H, W, 3], on the GPU."""
        if embedding.frame is None:
            raise InputError(NO_MAPS)
        given = {**embedding.maps, "frames": embedding.frame}
        there = {name: each for name, each in given.items() if isinstance(each, DeviceTensor)}
        here = {name: each for name, each in given.items() if isinstance(each, np.ndarray)}
        there |= self._arrays.upload(here, queue)
        return {**there, "frames": replace(there["frames"], shape=(1, *there["frames"].shape))}

    def remove(self, object_id: int) -> None:
        """Forget an object; its area becomes background."""
        self._values.remove(object_id)
        left = tuple(each for each in self._ids if each != object_id)
        if self._memory is not None and self._refined is not None and left != self._ids:
            queue, channel = self._memory.queue, 1 + self._ids.index(object_id)
            soft = queue.download(self._refined)
            soft[0] += soft[channel]
            self._ids = left
            planes = self._planes(queue)
            queue.upload(np.delete(soft, channel, axis=0), planes)
            self._show(planes)
        self._ids = left

    def _show(self, planes: DeviceTensor) -> None:
        """Have them labelled."""
        assert self._memory is not None
        self._refined = planes
        self._memory.show(planes)

    def _encode(self, planes: DeviceTensor, queue: CudaQueue) -> DeviceTensor:
        """Values f32 [M, h, w, V] of the objects' planes of the newest frame; the next call's take their place."""
        first = planes[1]
        masks = replace(first, shape=(len(self._ids), *first.shape))
        inputs = {"frames": self._maps["frames"], "masks": masks, CONTEXT: self._maps[self._spec.context]}
        values = self._new_values("values", queue)
        self._mask_encoder.run(inputs, values, queue)
        return values

    def _decode(self, memory: CudaMemory, readout: DeviceTensor, values: DeviceTensor, out: DeviceTensor) -> None:
        """Planes of the newest frame, from scratch or as a correction of what was propagated."""
        res3, res2 = self._maps[RES3], self._maps[RES2]
        queue = memory.queue
        logits = self._arrays.take("logits", (len(self._ids), *res2.shape[2:]), np.float32, queue)
        self._decoder.run({"readout": readout, "values": values, RES3: res3, RES2: res2}, logits, queue)
        refine_planes(memory, logits, out, residual=self._spec.residual)

    def _planes(self, queue: CudaQueue) -> DeviceTensor:
        """Where masks at the working frame's size are, f32 [1 + M, H, W]."""
        return self._arrays.take("planes", (1 + len(self._ids), *self._maps["frames"].shape[1:3]), np.float32, queue)

    def _new_values(self, name: str, queue: CudaQueue) -> DeviceTensor:
        return self._arrays.take(name, (len(self._ids), *self._grid, self._spec.value_channels), np.float32, queue)


class _Arrays:
    """Arrays on a GPU by name, allocated again where a shape changes, and the way from the host into them."""

    def __init__(self) -> None:
        self._arrays: dict[str, DeviceTensor] = {}
        self._incoming: DoubleBuffer | None = None

    def take(self, name: str, shape: tuple[int, ...], dtype: Any, queue: CudaQueue) -> DeviceTensor:
        """Return an array to write on a stream, behind all work with what was in it.

        Raises:
            OptionError: there is not enough memory.
        """
        held = self._arrays.get(name)
        if held is None or held.shape != shape:
            held = self._arrays[name] = queue.allocate(shape, dtype, f"refinement ({name})")
        return held

    def upload(self, arrays: Mapping[str, NDArray[Any]], queue: CudaQueue) -> dict[str, DeviceTensor]:
        """Start asynchronous copies of arrays in host memory, which are the caller's again when this returns."""
        taken = {name: self.take(name, array.shape, array.dtype, queue) for name, array in arrays.items()}
        if taken:
            self._incoming = self._incoming or DoubleBuffer(queue.runtime)
            self._incoming.upload(arrays, taken, queue)
        return taken


def _on_gpu(memory: Memory) -> CudaMemory:
    if not isinstance(memory, CudaMemory):
        raise InputError("masks are refined on a GPU, the stream's memory is not there; open it on device 'cuda'")
    return memory
