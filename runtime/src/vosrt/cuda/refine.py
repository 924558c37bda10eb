"""Mask networks on a GPU as callbacks of a stream whose arrays stay there; nothing of a frame comes to the host.

The memory's kernels and the two graphs are queued behind each other; the host waits for engines that cannot queue, and
for no other. Only masks that are given, and those of a frame that an object is removed from, go by way of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vosrt.arrays import DeviceTensor
from vosrt.core.abi import CONSTANTS
from vosrt.cuda.network import NetworkOnGpu
from vosrt.cuda.runtime import CudaQueue
from vosrt.cuda.transfer import DoubleBuffer
from vosrt.encoder import Embedding
from vosrt.errors import InputError
from vosrt.refinement import NO_MAPS, MaskNetworks, Refinement


@dataclass(frozen=True)
class RefinementOnGpu(Refinement[NetworkOnGpu]):
    """How masks are refined where the memory is."""

    on_gpu = True

    def networks(self) -> MaskNetworksOnGpu:
        """Callbacks for one stream."""
        return MaskNetworksOnGpu(self)


class MaskNetworksOnGpu(MaskNetworks):
    """Callbacks whose arrays are on a GPU."""

    flags = CONSTANTS["VOSRT_ENGINE_ON_GPU"]

    def __init__(self, refinement: RefinementOnGpu) -> None:
        super().__init__(refinement)
        self._queue: CudaQueue | None = None
        self._brought: dict[str, DeviceTensor] = {}  # what came from the host, used again
        self._incoming: DoubleBuffer | None = None

    def follow_on(self, queue: CudaQueue, embedding: Embedding) -> DeviceTensor:
        """Work on a frame from now on, on the stream of the memory.

        Returns:
            The frame as the encoder saw it, u8 [height, width, 3].

        Raises:
            InputError: the embedding was made without maps.
            OptionError: there is not enough memory.
        """
        if embedding.frame is None or not embedding.maps:
            raise InputError(NO_MAPS)
        given = {**embedding.maps, "frames": embedding.frame}
        self._maps = {name: each for name, each in given.items() if isinstance(each, DeviceTensor)}
        on_host = {name: each for name, each in given.items() if isinstance(each, np.ndarray)}
        for name, array in on_host.items():
            held = self._brought.get(name)
            if held is None or held.shape != array.shape:
                self._brought[name] = queue.allocate(array.shape, array.dtype, f"refinement ({name})")
            self._maps[name] = self._brought[name]
        if on_host:
            self._incoming = self._incoming or DoubleBuffer(queue.runtime)
            self._incoming.upload(on_host, self._maps, queue)
        self._queue = queue
        frame: DeviceTensor = self._maps["frames"]
        return frame

    def _array(self, pointer: int, shape: tuple[int, ...], dtype: type[np.generic]) -> DeviceTensor:
        frame: DeviceTensor = self._maps["frames"]
        stream = None if self._queue is None else self._queue.stream
        return replace(
            frame, pointer=pointer, shape=shape, dtype=np.dtype(dtype), owner=None, stream=stream, hand_over=None
        )

    def _run(self, network: NetworkOnGpu, inputs: dict[str, Any], name: str, out: DeviceTensor) -> None:
        assert self._queue is not None
        network.run(inputs, out, self._queue)
