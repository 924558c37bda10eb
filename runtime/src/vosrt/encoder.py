"""From a frame to its embedding: working size, resizing, the encoder graph."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vosrt.bundle import EncoderSpec
from vosrt.engines.base import Engine
from vosrt.errors import EngineError, InputError
from vosrt.ops import resize_bgr
from vosrt.types import F32Array, U8Array


@dataclass(frozen=True)
class Embedding:
    """What the encoder makes of one frame.

    Attributes:
        array: f32 [h, w, K], unit length per cell.
        frame_height: rows of the frame that was given, in pixels.
        frame_width: its columns.
        timings_ms: milliseconds of ``resize`` and ``encoder``.
    """

    array: F32Array
    frame_height: int
    frame_width: int
    timings_ms: Mapping[str, float] = field(default_factory=dict)


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


class FrameEncoder:
    """Encodes frames with one engine. Keeps no state between calls; safe to use from several threads.

    Args:
        spec: contract of the encoder graph.
        engine: what runs it.
        default_size: short side of the working frame where a call names none, in pixels; None keeps the frame's own.
    """

    def __init__(self, spec: EncoderSpec, engine: Engine, default_size: int | None = None) -> None:
        self.spec = spec
        self._engine = engine
        self._default_size = default_size

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
        check_frame(frame)
        started = time.perf_counter()
        wanted = self._default_size if size is None else size
        height, width = working_size(frame.shape[0], frame.shape[1], wanted, upscale=size is not None)
        self._check_range(frame, height, width)
        resized = np.ascontiguousarray(resize_bgr(frame, height, width))
        resized_at = time.perf_counter()
        outputs = self._engine.run({self.spec.input_name: resized[None]})
        embedding = outputs.get(self.spec.output_name)
        expected = (1, *self.spec.grid(height, width), self.spec.channels)
        if embedding is None or embedding.shape != expected or embedding.dtype != np.float32:
            given = {name: f"{array.dtype} {list(array.shape)}" for name, array in outputs.items()}
            raise EngineError(
                f"the encoder gave {given}; its bundle promises {self.spec.output_name!r}: float32 {list(expected)}; "
                "export the bundle again"
            )
        timings_ms = {
            "resize": 1e3 * (resized_at - started),
            "encoder": 1e3 * (time.perf_counter() - resized_at),
        }
        return Embedding(embedding[0], frame.shape[0], frame.shape[1], timings_ms)

    def _check_range(self, frame: U8Array, height: int, width: int) -> None:
        low, high = self.spec.min_side, self.spec.max_side
        if min(height, width) < low or max(height, width) > high:
            raise InputError(
                f"a frame of {frame.shape[1]} x {frame.shape[0]} pixels would be encoded at {width} x {height}; this "
                f"model takes sides of {low} to {high} pixels; choose another size"
            )


def check_frame(frame: U8Array) -> None:
    """Raise InputError unless this is a frame: u8 [H, W, 3] with at least one pixel."""
    if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        given = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise InputError(f"frame is {given}; expected a uint8 array [height, width, 3] in BGR order")
    if 0 in frame.shape:
        raise InputError(f"frame is {frame.shape[1]} x {frame.shape[0]} pixels; expected at least one pixel")
