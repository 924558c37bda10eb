"""The values that cross the public API: frozen dataclasses with the shape of every array.

Symbols: H, W frame size in pixels; h, w feature grid (stride 8); K feature channels;
M label channels (background + objects); N context slots; k neighbours kept per query.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vosrt.engines.device import DeviceTensor
from vosrt.errors import OptionError

U8Array: TypeAlias = NDArray[np.uint8]
F32Array: TypeAlias = NDArray[np.float32]
I32Array: TypeAlias = NDArray[np.int32]

Precision = Literal["auto", "fp32", "bf16"]
Window = Literal["circle", "square"]

MAX_OBJECT_ID = 255
MAX_TOP_K = 64
MAX_CONTEXT = 1024


@dataclass(frozen=True, kw_only=True)
class PropagationOptions:
    """How labels are propagated (Araslanov et al. 2021, appendix C).

    Attributes:
        context: number of most recent frames attended besides the reference (N - 1).
        window: shape of the neighbourhood in the recent frames: ``"circle"`` keeps
            ``sqrt(dx² + dy²) < radius``; ``"square"`` keeps ``|dx|, |dy| <= radius``
            (the paper's P = 25 is ``radius=12``).
        radius: size of that neighbourhood in grid cells (8 pixels each at the working size).
        top_k: neighbours kept per query, jointly over all slots.
        temperature: τ of the softmax over the kept similarities.
        pad_context: frames before the reference are replaced by copies of the reference (the
            released program); False drops the copies.
        global_reference: the reference is attended everywhere; False restricts it to the window.
        yield_background: where objects that were first marked in a later frame are, background gives way to them; False
            keeps the first reference's background as it is (the released program), against which an object that
            was visible but unmarked at first can hardly win.
    """

    context: int = 20
    window: Window = "circle"
    radius: float = 12.0
    top_k: int = 10
    temperature: float = 0.05
    pad_context: bool = True
    global_reference: bool = True
    yield_background: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.context <= MAX_CONTEXT:
            raise OptionError(f"context is {self.context}; expected 0 to {MAX_CONTEXT} frames")
        if self.window not in ("circle", "square"):
            raise OptionError(f"window is {self.window!r}; expected 'circle' or 'square'")
        if not 0 < self.radius <= 4096:
            raise OptionError(f"radius is {self.radius}; expected more than 0 and at most 4096 cells")
        if not 1 <= self.top_k <= MAX_TOP_K:
            raise OptionError(f"top_k is {self.top_k}; expected 1 to {MAX_TOP_K}")
        if not 1e-4 <= self.temperature <= 1e4:
            raise OptionError(f"temperature is {self.temperature}; expected 1e-4 to 1e4")


@dataclass(frozen=True)
class TopK:
    """What a frame's cells attended to, most similar first, one block per reference.

    Attributes:
        similarity: f32 [R, h*w, k], cosine similarities; NaN where fewer than k candidates exist.
        frame: i32 [R, h*w, k], frame index (from 0, in order of ``push``); -1 where missing.
        cell: i32 [R, h*w, k], row-major cell of that frame; -1 where missing.
    """

    similarity: F32Array
    frame: I32Array
    cell: I32Array


@dataclass(frozen=True)
class StepResult:
    """What one frame gives.

    Attributes:
        index: frame index in the stream, from 0.
        labels: u8 [H, W]; 0 is background, otherwise an object id.
        confidence: f32 [H, W]; the winning channel's soft mask, 0 to 1.
        object_ids: ids that are tracked at this frame, ascending.
        object_confidence: per object id, the mean confidence over its pixels (0 if it has none).
        timings_ms: milliseconds per stage (``resize``, ``encoder``, ``match``, ``upsample``); of a frame that a GPU
            takes whole, the host's (``resize``, ``queue``, ``wait``).
        labels_tensor: the labels of a stream that leaves them on its GPU (``labels_on="gpu"``), whole for work that is
            queued on their stream; ``labels``, ``confidence`` and ``object_confidence`` are then empty.
        confidence_tensor: the confidence likewise.
    """

    index: int
    labels: U8Array
    confidence: F32Array
    object_ids: tuple[int, ...]
    object_confidence: dict[int, float] = field(default_factory=dict)
    timings_ms: dict[str, float] = field(default_factory=dict)
    labels_tensor: DeviceTensor | None = None
    confidence_tensor: DeviceTensor | None = None
