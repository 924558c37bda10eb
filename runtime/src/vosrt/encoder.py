"""From a frame to its embedding: working size, resizing, the encoder graph."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from vosrt.bundle import EncoderSpec
from vosrt.cuda_library import load_cuda_library
from vosrt.cuda_memory import CudaQueue
from vosrt.engines.base import DeviceEngine, Engine, largest_batch
from vosrt.engines.device import DeviceTensor
from vosrt.errors import EngineError, InputError, OptionError, VosrtError
from vosrt.ops import resize_bgr
from vosrt.types import F32Array, U8Array


@dataclass(frozen=True)
class _Prepared:
    """A frame on its way to the engine: u8 [height, width, 3] at the working size, and what it was before."""

    working: U8Array
    frame_height: int
    frame_width: int
    resize_ms: float


@dataclass(frozen=True)
class Embedding:
    """What the encoder makes of one frame.

    Attributes:
        array: f32 [h, w, K], unit length per cell.
        frame_height: rows of the frame that was given, in pixels.
        frame_width: its columns.
        timings_ms: milliseconds of ``resize`` and ``encoder``.
        tensor: the same array where it stayed on a GPU; ``array`` is then empty.
        maps: what else the encoder gives, by the names of its outputs; empty for correspondence.
        frame: the working frame u8 [height, width, 3], where there are maps; otherwise None.
    """

    array: F32Array
    frame_height: int
    frame_width: int
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    tensor: DeviceTensor | None = None
    maps: Mapping[str, F32Array] = field(default_factory=dict)
    frame: U8Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """h, w, K."""
        return self.array.shape if self.tensor is None else self.tensor.shape


def working_size(height: int, width: int, short_side: int | None, *, upscale: bool) -> tuple[int, int]:
    """Rows and columns of the frame that the encoder sees.

    Args:
        height: rows of the given frame.
        width: its columns.
        short_side: of the working frame, in pixels; None keeps the frame's own size.
        upscale: whether a smaller frame is enlarged; if not, it keeps its own size.
    """
    shorter, longer = sorted((height, width))
    if short_side is None or short_side == shorter or (short_side > shorter and not upscale):
        return height, width
    scaled = (2 * longer * short_side + shorter) // (2 * shorter)
    return (short_side, scaled) if height <= width else (scaled, short_side)


def batch_sizes(count: int, largest: int) -> Iterator[int]:
    """Cut frames into runs of powers of two, so that few sizes of a batch are compiled, however many streams there are.

    Args:
        count: frames.
        largest: frames that one run takes.
    """
    while count > 0:
        size = 1 << (min(count, largest).bit_length() - 1)
        yield size
        count -= size


ENGINES_ON_GPU = ("tensorrt-direct", "tensorrt-rtx-direct", "tensorrt", "cuda")  # whose outputs stay there


class FrameEncoder:
    """Encodes frames with one engine. Keeps no state between calls; safe to use from several threads.

    Args:
        spec: contract of the encoder graph.
        engine: what runs it.
        default_size: short side of the working frame where a call names none, in pixels; None keeps the frame's own.
        device: number of the GPU on which embeddings are wanted; they stay there if the engine leaves them there. None
            wants them in host memory.
    """

    def __init__(
        self, spec: EncoderSpec, engine: Engine, default_size: int | None = None, device: int | None = None
    ) -> None:
        self.spec = spec
        self._engine = engine
        self._default_size = default_size
        self._keeper: _Keeper | None = None
        if device is not None and isinstance(engine, DeviceEngine) and engine.info.name in ENGINES_ON_GPU:
            self._keeper = _Keeper(engine, device)

    def encode(self, frame: U8Array, size: int | None = None) -> Embedding:
        """Resize a frame to the working size and run the encoder.

        Args:
            frame: u8 [H, W, 3], BGR.
            size: short side of the working frame in pixels; frames are enlarged only where it says so. None is
                the default, which never enlarges.

        Raises:
            InputError: the frame is no such array, or its working size is out of the encoder's range.
            EngineError: the engine failed, or the graph gives something else than the bundle promises.
        """
        (encoded,) = self.encode_each([frame], [size])
        if isinstance(encoded, VosrtError):
            raise encoded
        return encoded

    def encode_each(self, frames: Sequence[U8Array], sizes: Sequence[int | None]) -> list[Embedding | VosrtError]:
        """Encode frames of several videos; those of the same working size go through the engine together.

        Args:
            frames: as for :meth:`encode`.
            sizes: likewise, one per frame.

        Returns:
            Per frame its embedding, whose ``encoder`` time is its share of the run, or the error that
            :meth:`encode` raises. A frame that is refused leaves the others alone; an engine's failure is that of
            the frames in this run.
        """
        encoded: dict[int, Embedding | VosrtError] = {}
        groups: dict[tuple[int, ...], dict[int, _Prepared]] = {}
        for position, (frame, size) in enumerate(zip(frames, sizes, strict=True)):
            try:
                prepared = self._prepare(frame, size)
            except InputError as error:
                encoded[position] = error
            else:
                groups.setdefault(prepared.working.shape, {})[position] = prepared
        for group in groups.values():
            positions = iter(group)
            for count in batch_sizes(len(group), largest_batch(self._engine)):
                chosen = list(islice(positions, count))
                try:
                    encoded.update(zip(chosen, self._run([group[position] for position in chosen]), strict=True))
                except VosrtError as error:
                    encoded.update(dict.fromkeys(chosen, error))
        return [encoded[position] for position in range(len(frames))]

    def _prepare(self, frame: U8Array, size: int | None) -> _Prepared:
        check_frame(frame)
        started = time.perf_counter()
        wanted = self._default_size if size is None else size
        height, width = working_size(frame.shape[0], frame.shape[1], wanted, upscale=size is not None)
        self._check_range(frame, height, width)
        resized = np.ascontiguousarray(resize_bgr(frame, height, width))
        return _Prepared(resized, frame.shape[0], frame.shape[1], 1e3 * (time.perf_counter() - started))

    def _run(self, batch: list[_Prepared]) -> Iterator[Embedding]:
        """The embeddings of working frames of one size, computed in one run."""
        started = time.perf_counter()
        frames = np.stack([each.working for each in batch]) if len(batch) > 1 else batch[0].working[None]
        inputs = {self.spec.input_name: frames}
        outputs: Mapping[str, F32Array | DeviceTensor]
        outputs = self._engine.run(inputs) if self._keeper is None else self._keeper.run(inputs)
        embeddings = outputs.get(self.spec.output_name)
        expected = (len(batch), *self.spec.grid(*frames.shape[1:3]), self.spec.channels)
        if embeddings is None or embeddings.shape != expected or embeddings.dtype != np.float32:
            given = {name: f"{array.dtype} {list(array.shape)}" for name, array in outputs.items()}
            raise EngineError(
                f"the encoder gave {given}; its bundle promises {self.spec.output_name!r}: float32 {list(expected)}; "
                "export the bundle again"
            )
        share_ms = 1e3 * (time.perf_counter() - started) / len(batch)
        others = {name: array for name, array in outputs.items() if name != self.spec.output_name}
        maps = {name: array for name, array in others.items() if not isinstance(array, DeviceTensor)}
        return (self._embedding(i, each, embeddings, maps, share_ms) for i, each in enumerate(batch))

    def _embedding(
        self,
        i: int,
        prepared: _Prepared,
        embeddings: F32Array | DeviceTensor,
        maps: Mapping[str, F32Array],
        encoder_ms: float,
    ) -> Embedding:
        size = (prepared.frame_height, prepared.frame_width)
        timings_ms = {"resize": prepared.resize_ms, "encoder": encoder_ms}
        if isinstance(embeddings, DeviceTensor):
            return Embedding(np.empty(0, np.float32), *size, timings_ms, embeddings[i])
        own = {name: array[i : i + 1] for name, array in maps.items()}
        return Embedding(embeddings[i], *size, timings_ms, maps=own, frame=prepared.working if maps else None)

    def _check_range(self, frame: U8Array, height: int, width: int) -> None:
        low, high = self.spec.min_side, self.spec.max_side
        if min(height, width) < low or max(height, width) > high:
            raise InputError(
                f"a frame of {frame.shape[1]} x {frame.shape[0]} pixels would be encoded at {width} x {height}; this "
                f"model takes sides of {low} to {high} pixels; choose another size"
            )


class _Keeper:
    """Runs an engine and keeps its outputs on the GPU, each in memory of its own until nobody holds it.

    An engine that queues its work overwrites its outputs with the next frame's, so they are copied behind it, on its
    stream; that memory is used again behind whatever reads it, which is queued on the same stream.

    Args:
        engine: what leaves its outputs there.
        device: number of the GPU.
    """

    def __init__(self, engine: DeviceEngine, device: int) -> None:
        self._engine, self._device = engine, device
        self._lock = threading.Lock()  # nothing may come between a run and the copy of its outputs
        self._queue: CudaQueue | None = None
        self._free: dict[tuple[int, ...], list[DeviceTensor]] = {}

    def run(self, inputs: Mapping[str, U8Array]) -> dict[str, DeviceTensor]:
        """Run the engine; its outputs are whole for work that is queued on their stream."""
        with self._lock:
            return {name: self._keep(tensor) for name, tensor in self._engine.run_on_device(inputs).items()}

    def _keep(self, tensor: DeviceTensor) -> DeviceTensor:
        if (tensor.device, tensor.device_id) != ("cuda", self._device):
            raise OptionError(
                f"the {self._engine.info.name} engine runs on {tensor.device}:{tensor.device_id}, the core on "
                f"cuda:{self._device}; use device 'cuda' and let CUDA_VISIBLE_DEVICES say which GPU that is"
            )
        if tensor.stream is None:  # whole, and memory of its own
            return tensor
        if self._queue is None:
            self._queue = CudaQueue(load_cuda_library(), self._device, tensor.stream)
        free = self._free.setdefault(tensor.shape, [])
        kept = free.pop() if free else self._queue.allocate(tensor.shape, tensor.dtype, "an embedding")
        self._queue.copy(tensor, kept)
        lease = _Lease()
        weakref.finalize(lease, free.append, kept).atexit = False
        return replace(kept, owner=lease, stream=tensor.stream)


class _Lease:
    """Gives memory back when nobody holds it."""


def check_frame(frame: U8Array) -> None:
    """Raise InputError unless this is a frame: u8 [H, W, 3] with at least one pixel."""
    if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        given = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise InputError(f"frame is {given}; expected a uint8 array [height, width, 3] in BGR order")
    if 0 in frame.shape:
        raise InputError(f"frame is {frame.shape[1]} x {frame.shape[0]} pixels; expected at least one pixel")
