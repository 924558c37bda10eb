"""One video's stream whose arrays stay on a GPU: a ``vosrt_stream`` whose frames are queued and not waited for."""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from vosrt.core.library import LibraryMemory, measure_with
from vosrt.cuda.device import load_cuda_library
from vosrt.cuda.memory import CudaMemory
from vosrt.cuda.refine import MaskNetworksOnGpu, RefinementOnGpu
from vosrt.cuda.transfer import Download
from vosrt.cuda.whole_frame import WholeFrames
from vosrt.encoder import Embedding, FrameEncoder, WorkingFrame
from vosrt.host_stream import NO_CONFIDENCE, NO_LABELS, HostStream, embedding_struct
from vosrt.types import Precision, PropagationOptions, StepResult, U8Array

_MOST_QUEUED = 2  # there are two pinned buffers


@dataclass
class _Queued:
    """A frame whose labels are on their way to the host.

    Attributes:
        result: as far as it was known when the frame was queued.
        whole: the whole result; None until the frame was measured.
    """

    result: StepResult
    download: Download
    whole: StepResult | None = None


class CudaStream(HostStream):
    """A stream on a GPU, which pushes embeddings to the memory itself. Not safe for several threads at the same time.

    Args:
        device: number of the GPU.
        precision: of the products in matching; the GPU has bf16 only.
        refinement: how masks are refined on the GPU; None shows them as they are propagated.
        model: SHA-256 of the encoder's graph, 32 bytes; zeros if it is not known.
        labels_on: where results are, ``"host"`` or ``"gpu"``.
    """

    def __init__(
        self,
        encoder: FrameEncoder,
        options: PropagationOptions,
        *,
        device: int,
        precision: Precision,
        refinement: RefinementOnGpu | None,
        model: bytes,
        labels_on: str,
    ) -> None:
        super().__init__(
            load_cuda_library(),
            encoder.spec,
            options,
            precision=precision,
            threads=0,
            refinement=refinement,
            model=model,
            device=device,
            labels_on=labels_on,
        )
        self._encoder, self._gpu = encoder, device
        self._guided = options.guided > 0
        # Mask networks run between the encoder and the labels, so that the two are no one graph.
        self.queues_networks = encoder.takes_sequels and refinement is None
        self._whole: WholeFrames | None = None
        self._queued, self._measuring = deque[_Queued](), threading.RLock()
        self._expected: tuple[tuple[int, int], tuple[int, ...]] | None = None  # sizes that fit
        self._marked = True  # the newest frame, as far as is known: its labels are made on the host

    def _hold(self, handle: ctypes.c_void_p) -> LibraryMemory:
        return CudaMemory.of(handle, self._gpu)

    def _on_gpu(self) -> CudaMemory:
        assert isinstance(self.memory, CudaMemory)
        return self.memory

    def _expect(self, frame: tuple[int, int], shape: tuple[int, ...]) -> CudaMemory:
        """Check that the next frame fits; the memory, to which its embedding is pushed."""
        if self._expected != (frame, shape):
            self._call("expect", ctypes.byref(embedding_struct(frame, shape)))
            self._expected, self._frame_size = (frame, shape), frame
        return self._on_gpu()

    def queue(self, frame: WorkingFrame) -> tuple[StepResult, Callable[[], StepResult] | None]:
        """Queue a frame that is not annotated; see `HostStream`."""
        spec = self._encoder.spec
        shape = (*spec.grid(frame.height, frame.width), spec.channels)
        memory, started = self._expect((frame.frame_height, frame.frame_width), shape), time.perf_counter()
        if self._whole is None:
            self._whole = WholeFrames(self._encoder, memory)
        arrays = self._whole.queue(frame)
        self._marked = False
        result = StepResult(
            index=memory.frames - 1,
            labels=NO_LABELS,
            confidence=NO_CONFIDENCE,
            object_ids=memory.object_ids,
            timings_ms={"resize": frame.resize_ms, "queue": 1e3 * (time.perf_counter() - started)},
        )
        if self._results is not None:
            return replace(result, labels_tensor=arrays.labels, confidence_tensor=arrays.confidence), None
        queued = _Queued(result, memory.download_labels(arrays))
        self._queued.append(queued)
        self._measure_queued(_MOST_QUEUED)
        return result, partial(self._wait_for, queued)

    def _wait_for(self, queued: _Queued) -> StepResult:
        with self._measuring:
            while (whole := queued.whole) is None:
                self._measure_queued(len(self._queued) - 1)
        return whole

    def _measure_queued(self, most: int = 0) -> None:
        """Wait for queued frames and measure them in their order, which states depend on, until ``most`` are left."""
        with self._measuring:
            while len(self._queued) > most:
                queued, waiting = self._queued[0], time.perf_counter()
                labels, confidence = queued.download.take()
                timings_ms = {**queued.result.timings_ms, "wait": 1e3 * (time.perf_counter() - waiting)}
                given = replace(queued.result, labels=labels, confidence=confidence, timings_ms=timings_ms)
                measure = partial(self._call, "measure", given.index)
                queued.whole = replace(given, objects=measure_with(measure, labels, given.object_ids, confidence))
                self._queued.popleft()

    def take(self, embedding: Embedding, marks: U8Array | None) -> dict[str, float]:
        """Take the next frame; see `HostStream`."""
        memory = self._expect((embedding.frame_height, embedding.frame_width), embedding.shape)
        started = time.perf_counter()
        if embedding.tensor is None:
            memory.push(np.ascontiguousarray(embedding.array))
        else:
            memory.push_tensor(embedding.tensor)
        if self._guided and embedding.frame is not None:
            memory.guide(embedding.frame)
        self._marked = False
        timings_ms = {**embedding.timings_ms, "match": 1e3 * (time.perf_counter() - started)}
        if isinstance(self._networks, MaskNetworksOnGpu):
            started = time.perf_counter()
            self._refine(self._networks, embedding, memory)
            timings_ms["refine"] = 1e3 * (time.perf_counter() - started)
        if marks is not None:
            self.add(marks)
        return timings_ms

    def _refine(self, networks: MaskNetworksOnGpu, embedding: Embedding, memory: CudaMemory) -> None:
        frame = networks.follow_on(memory.queue, embedding)
        given = embedding_struct((embedding.frame_height, embedding.frame_width), embedding.shape)
        given.height, given.width = frame.shape[:2]
        given.bgr = frame.pointer
        self._call("refine", ctypes.byref(given))

    def collect(self, timings_ms: Mapping[str, float]) -> StepResult:
        """What the newest frame gives; see `HostStream`."""
        self._measure_queued()
        if self._results is None or self._marked:
            return super().collect(timings_ms)
        memory, started = self._on_gpu(), time.perf_counter()
        assert self.frame_size is not None
        labels, confidence = memory.labels_there(*self.frame_size)
        return StepResult(
            memory.frames - 1,
            NO_LABELS,
            NO_CONFIDENCE,
            memory.object_ids,
            timings_ms={**timings_ms, "upsample": 1e3 * (time.perf_counter() - started)},
            labels_tensor=labels,
            confidence_tensor=confidence,
        )

    def add(self, marks: U8Array) -> None:
        """Mark objects in the newest frame; see `HostStream`."""
        self._measure_queued()
        super().add(marks)
        self._whole, self._marked = None, True  # what was recorded fits no longer

    def remove(self, object_id: int) -> None:
        """Forget an object; see `HostStream`."""
        super().remove(object_id)
        self._whole = None

    def close(self) -> None:
        """Free the memory, once results that are on their way have been taken."""
        self._memory = self._whole = None
