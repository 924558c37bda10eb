"""From a frame to its embedding: working size, resizing, the encoder graph."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from vosrt.arrays import DeviceTensor, GpuArray, adopt, is_on_gpu
from vosrt.bundle import EncoderSpec
from vosrt.core.native import resize_bgr
from vosrt.cuda import Gpu, download
from vosrt.engines.base import DeviceEngine, Engine, Sequel, SequelEngine, largest_batch
from vosrt.errors import EngineError, InputError, OptionError, VosrtError
from vosrt.types import DEFAULT_SIZE, MAX_SIDE, F32Array, U8Array, WorkingSize

if TYPE_CHECKING:
    from vosrt.cuda.encoder import EncoderOnGpu

FrameArray: TypeAlias = U8Array | GpuArray


@dataclass(frozen=True)
class WorkingFrame:
    """A frame on its way to the engine, and the size that the engine sees it at.

    Attributes:
        frame: u8 [height, width, 3]; one on a GPU is u8 [frame_height, frame_width, 3] and resized there.
        height: of the working frame, in pixels.
        width: likewise.
        frame_height: of the frame that was given.
        frame_width: likewise.
        resize_ms: milliseconds that the preparation took.
    """

    frame: U8Array | DeviceTensor
    height: int
    width: int
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
        maps: what else the encoder gives, by the names of its outputs, f32 [1, …]; empty for correspondence. They stay
            where ``array`` does.
        frame: the working frame u8 [height, width, 3]; None if it is not known.
    """

    array: F32Array
    frame_height: int
    frame_width: int
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    tensor: DeviceTensor | None = None
    maps: Mapping[str, F32Array | DeviceTensor] = field(default_factory=dict)
    frame: U8Array | DeviceTensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """h, w, K."""
        return self.array.shape if self.tensor is None else self.tensor.shape

    def on_host(self) -> tuple[F32Array, U8Array]:
        """The embedding f32 [h, w, K] and the working frame u8 [height, width, 3] in host memory.

        Raises:
            InputError: the frame is not known.
        """
        if self.frame is None:
            raise InputError("this embedding has no frame; encode the frame again")
        return _to_host(self.array if self.tensor is None else self.tensor), _to_host(self.frame)

    def maps_on_host(self) -> tuple[dict[str, F32Array], U8Array | None]:
        """The maps and the frame in host memory, once they are whole."""
        maps = {name: _to_host(each) for name, each in self.maps.items()}
        return maps, None if self.frame is None else _to_host(self.frame)


def working_size(
    spec: EncoderSpec, height: int, width: int, short_side: int | None, *, enlarge_percent: int | None = None
) -> tuple[int, int]:
    """Rows and columns of the frame that an encoder sees.

    Args:
        spec: contract of the encoder, which may want whole numbers of cells; sides are then the nearest such.
        height: rows of the given frame.
        width: its columns.
        short_side: of the working frame, in pixels; None keeps the frame's own size.
        enlarge_percent: of its own size, to which a smaller frame is enlarged at most; None is no limit.
    """
    shorter, longer = sorted((height, width))
    if short_side is not None and enlarge_percent is not None:
        short_side = min(short_side, (shorter * enlarge_percent + 50) // 100)
    if short_side is not None and short_side != shorter:
        scaled = (2 * longer * short_side + shorter) // (2 * shorter)
        height, width = (short_side, scaled) if height <= width else (scaled, short_side)
    return spec.whole_cells(height), spec.whole_cells(width)


def check_size(size: WorkingSize) -> int | None:
    """Return a working size as pixels, None for ``"native"`` (and for None).

    Raises:
        OptionError: it is neither a number of pixels nor ``"native"``.
    """
    if size is None or size == "native":
        return None
    if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 1:
        raise OptionError(f"size is {size!r}; expected a short side in pixels, or 'native' for the frames' own size")
    return int(size)


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


def stays_on_gpu(engine: Engine) -> TypeGuard[DeviceEngine]:
    """Whether an engine runs on a GPU and can leave its outputs there."""
    return isinstance(engine, DeviceEngine) and engine.device == "cuda"


class FrameEncoder:
    """Encodes frames with one engine. Keeps no state between calls; safe to use from several threads.

    Args:
        default_size: short side of the working frame where a call names none, in pixels; None is `DEFAULT_SIZE`.
        enlarge_percent: where a call names none, smaller frames are enlarged to no more than this percentage of
            their own size.
        device: number of the GPU on which embeddings are to be; they stay there if the engine leaves them there. None
            wants them in host memory.
        has_threads: whether the engine has threads of its own, which a fork leaves behind.

    Attributes:
        takes_sequels: whether `encode_with` can be used.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        engine: Engine,
        default_size: int | None = None,
        device: int | None = None,
        *,
        enlarge_percent: int = 100,
        has_threads: bool = False,
    ) -> None:
        self._process = os.getpid() if has_threads else None
        self.spec = spec
        self._engine = engine
        self._default_size = DEFAULT_SIZE if default_size is None else default_size
        self._enlarge_percent = enlarge_percent
        self._there: EncoderOnGpu | None = None
        if device is not None and stays_on_gpu(engine):
            self._there = Gpu(device).encoder(engine)
        self.takes_frames_on_gpu = self._there is not None
        self.takes_sequels = self._there is not None and isinstance(engine, SequelEngine)

    def check_process(self) -> None:
        """Refuse to work where the engine's threads are not.

        Raises:
            InputError: the engine has threads, and this process was forked off the one that loaded it.
        """
        if self._process is not None and self._process != os.getpid():
            raise InputError(
                "the model has threads, and they stayed in the parent process when this one was forked; "
                "load it in the child process, or with threads=1"
            )

    def encode(self, frame: FrameArray | WorkingFrame, size: WorkingSize = None) -> Embedding:
        """Resize a frame to the working size and run the encoder.

        Args:
            frame: what `prepare` gave; or u8 [H, W, 3], BGR; on the GPU of ``device``, if the engine runs there,
                or in host memory. One on a GPU may be overwritten on the stream that it names when this returns; if it
                names none, at once.
            size: short side of the working frame in pixels, to which smaller frames are enlarged; None is the
                default, which never enlarges; ``"native"`` keeps the frame's own size.

        Raises:
            InputError: the frame is no such array, or its working size is out of the encoder's range.
            EngineError: the engine failed, or the graph gives something else than the bundle promises.
        """
        (encoded,) = self.encode_each([frame], [size])
        if isinstance(encoded, VosrtError):
            raise encoded
        return encoded

    def encode_each(
        self, frames: Sequence[FrameArray | WorkingFrame], sizes: Sequence[WorkingSize]
    ) -> list[Embedding | VosrtError]:
        """Encode frames of several videos; those of the same working size go through the engine together.

        Args:
            frames: as for `encode`.
            sizes: likewise, one per frame.

        Returns:
            Per frame its embedding, whose ``encoder`` time is its share of the run, or the error that
            `encode` raises. A frame that is refused leaves the others alone; an engine's failure is that of
            the frames in this run.
        """
        self.check_process()
        encoded: dict[int, Embedding | VosrtError] = {}
        groups: dict[tuple[int, int, bool], dict[int, WorkingFrame]] = {}
        for position, (frame, size) in enumerate(zip(frames, sizes, strict=True)):
            try:
                prepared = frame if isinstance(frame, WorkingFrame) else self.prepare(frame, size)
            except InputError as error:
                encoded[position] = error
            else:
                kind = (prepared.height, prepared.width, isinstance(prepared.frame, DeviceTensor))
                groups.setdefault(kind, {})[position] = prepared
        for group in groups.values():
            positions = iter(group)
            for count in batch_sizes(len(group), largest_batch(self._engine)):
                chosen = list(islice(positions, count))
                try:
                    encoded.update(zip(chosen, self._run([group[position] for position in chosen]), strict=True))
                except VosrtError as error:
                    encoded.update(dict.fromkeys(chosen, error))
        return [encoded[position] for position in range(len(frames))]

    @property
    def stream(self) -> int:
        """The CUDA stream that `encode_with` queues on, as an integer handle."""
        assert self._there is not None
        return self._there.stream

    def encode_with(self, frame: WorkingFrame, sequel: Sequel) -> None:
        """Run the encoder and, behind it on the GPU, what follows it, see `vosrt.engines.base.SequelEngine`.

        Raises:
            EngineError: the engine failed.
        """
        assert self._there is not None
        self._there.run_with(self.spec.input_name, frame.frame, frame.height, frame.width, sequel)

    def working_size(self, frame_height: int, frame_width: int, size: WorkingSize = None) -> tuple[int, int]:
        """Rows and columns at which the network sees frames of a size, in pixels.

        Args:
            frame_height: rows of a frame.
            frame_width: its columns.
            size: as for `encode`.

        Raises:
            InputError: they are out of the encoder's range.
        """
        short_side = check_size(self._default_size if size is None else size)
        percent = self._enlarge_percent if size is None else None
        height, width = working_size(self.spec, frame_height, frame_width, short_side, enlarge_percent=percent)
        self._check_range(frame_height, frame_width, height, width)
        return height, width

    def prepare(self, given: FrameArray, size: WorkingSize) -> WorkingFrame:
        """Check a frame and, if it is in host memory, resize it.

        Args:
            given: as for `encode`.
            size: likewise.

        Raises:
            InputError: the frame is no such array, or its working size is out of the encoder's range.
        """
        started = time.perf_counter()
        frame = self._on_gpu(given) if _shows_itself_on_gpu(given) else check_frame(given)
        frame_height, frame_width = frame.shape[:2]
        height, width = self.working_size(frame_height, frame_width, size)
        if isinstance(frame, np.ndarray):
            try:
                frame = np.ascontiguousarray(resize_bgr(frame, height, width))
            except MemoryError as error:
                raise InputError(
                    f"a frame of {frame_width} x {frame_height} pixels does not fit into memory; give a smaller one"
                ) from error
        took_ms = 1e3 * (time.perf_counter() - started)
        return WorkingFrame(frame, height, width, frame_height, frame_width, took_ms)

    def _on_gpu(self, given: Any) -> DeviceTensor:
        if self._there is None:
            raise InputError(
                f"the frame is on a GPU, and the {self._engine.info.name} engine takes frames from host memory here; "
                "load the model with device 'cuda' and an engine for NVIDIA GPUs, or give a NumPy array"
            )
        return check_frame_on_gpu(adopt(given), self._there.device)

    def _run(self, batch: list[WorkingFrame]) -> Iterator[Embedding]:
        """The embeddings of frames of one working size, computed in one run."""
        started = time.perf_counter()
        height, width = batch[0].height, batch[0].width
        outputs: Mapping[str, F32Array | DeviceTensor]
        on_gpu = [each.frame for each in batch if isinstance(each.frame, DeviceTensor)]
        if on_gpu and self._there is not None:
            outputs = self._there.run_frames(self.spec.input_name, on_gpu, height, width)
        else:
            on_host = [each.frame for each in batch if isinstance(each.frame, np.ndarray)]
            inputs = {self.spec.input_name: np.stack(on_host) if len(on_host) > 1 else on_host[0][None]}
            outputs = self._engine.run(inputs) if self._there is None else self._there.run(inputs)
        embeddings = outputs.get(self.spec.output_name)
        expected = (len(batch), *self.spec.grid(height, width), self.spec.channels)
        if embeddings is None or embeddings.shape != expected or embeddings.dtype != np.float32:
            given = {name: f"{array.dtype} {list(array.shape)}" for name, array in outputs.items()}
            raise EngineError(
                f"the encoder gave {given}; its bundle promises {self.spec.output_name!r}: float32 {list(expected)}; "
                "export the bundle again"
            )
        share_ms = 1e3 * (time.perf_counter() - started) / len(batch)
        maps = {name: array for name, array in outputs.items() if name != self.spec.output_name}
        return (self._embedding(i, each, embeddings, maps, share_ms) for i, each in enumerate(batch))

    def _embedding(
        self,
        i: int,
        prepared: WorkingFrame,
        embeddings: F32Array | DeviceTensor,
        maps: Mapping[str, F32Array | DeviceTensor],
        encoder_ms: float,
    ) -> Embedding:
        size = (prepared.frame_height, prepared.frame_width)
        timings_ms = {"resize": prepared.resize_ms, "encoder": encoder_ms}
        array, tensor = (
            (np.empty(0, np.float32), embeddings[i]) if isinstance(embeddings, DeviceTensor) else (embeddings[i], None)
        )
        own = {name: _only(array, i) for name, array in maps.items()}
        working: Any = own.pop(self.spec.input_name, prepared.frame)
        if isinstance(working, DeviceTensor):
            working = working[0]
        return Embedding(
            array,
            *size,
            timings_ms,
            tensor,
            maps=own,
            frame=working,
        )

    def _check_range(self, frame_height: int, frame_width: int, height: int, width: int) -> None:
        low, high = self.spec.min_side, self.spec.max_side
        if min(height, width) < low or max(height, width) > high:
            raise InputError(
                f"a frame of {frame_width} x {frame_height} pixels would be encoded at {width} x {height}; this "
                f"model takes sides of {low} to {high} pixels; choose another size"
            )


def _to_host(array: NDArray[Any] | DeviceTensor) -> NDArray[Any]:
    return download(array) if isinstance(array, DeviceTensor) else array


def _only(array: F32Array | DeviceTensor, i: int) -> F32Array | DeviceTensor:
    """The part of one frame, with an axis of its own."""
    if isinstance(array, DeviceTensor):
        return replace(array[i], shape=(1, *array.shape[1:]))
    return array[i : i + 1]


def check_frame(frame: Any) -> U8Array:
    """The frame, if it is one: u8 [H, W, 3] with at least one pixel.

    Raises:
        InputError: it is not.
    """
    if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        given = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise InputError(f"frame is {given}; expected a uint8 array [height, width, 3] in BGR order")
    if not (1 <= frame.shape[0] <= MAX_SIDE and 1 <= frame.shape[1] <= MAX_SIDE):
        raise InputError(
            f"frame is {frame.shape[1]} x {frame.shape[0]} pixels; expected at least one pixel, "
            f"and at most {MAX_SIDE} a side"
        )
    return frame


def _shows_itself_on_gpu(frame: Any) -> bool:
    """Whether a frame is on a GPU, by what its class says, which may be anybody's.

    Raises:
        InputError: it fails to say.
    """
    try:
        return is_on_gpu(frame)
    except VosrtError:
        raise
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"frame is {type(frame).__name__}, which does not say where its pixels are ({what})"
        ) from error


def frame_size(frame: FrameArray) -> tuple[int, int]:
    """Rows and columns of a frame in host memory or on a GPU, in pixels.

    Raises:
        InputError: it is no frame.
    """
    shape = check_frame_on_gpu(adopt(frame)).shape if _shows_itself_on_gpu(frame) else check_frame(frame).shape
    return shape[0], shape[1]


def check_frame_on_gpu(frame: DeviceTensor, device: int | None = None) -> DeviceTensor:
    """The frame, if it is one: u8 [H, W, 3] with at least one pixel.

    Args:
        frame: an array on a GPU.
        device: number of the GPU that it has to be on; None is any.

    Raises:
        InputError: it is no frame, or is elsewhere.
    """
    if len(frame.shape) != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or 0 in frame.shape:
        given = f"{frame.dtype} {list(frame.shape)}"
        raise InputError(f"frame is {given} on a GPU; expected uint8 [height, width, 3] in BGR order")
    if device is not None and frame.device_id != device:
        raise InputError(f"the frame is on cuda:{frame.device_id}, the model on cuda:{device}; copy it there first")
    return frame
