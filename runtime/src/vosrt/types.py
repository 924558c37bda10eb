"""The values that cross the public API: frozen dataclasses with the shape of every array.

Symbols: H, W frame size in pixels; h, w feature grid (stride 8); K feature channels;
M label channels (background + objects); N context slots; k neighbours kept per query.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vosrt.arrays import DeviceTensor
from vosrt.errors import OptionError

U8Array: TypeAlias = NDArray[np.uint8]
F32Array: TypeAlias = NDArray[np.float32]
I32Array: TypeAlias = NDArray[np.int32]

Precision = Literal["auto", "fp32", "bf16"]  # of matching
ModelPrecision = Literal["auto", "fp32", "bf16", "fp16", "int8", "fp8"]  # of the network

WorkingSize: TypeAlias = int | Literal["native"] | None  # short side of the frames that an encoder sees, in pixels
DEFAULT_SIZE = 480  # of frames whose short side is longer, where neither the caller nor the bundle names a size

MAX_OBJECT_ID = 255
MAX_SIDE = 65536  # of a frame, in pixels, as in runtime/native/src/error.hpp

# What `StepResult.timings_ms` may hold, in the order of a frame. "upsample" is labels_ms of vosrt.h; "queue" and "wait"
# are the host's part of a frame that a GPU takes whole.
STEP_STAGES = ("resize", "encoder", "match", "refine", "upsample", "queue", "wait")


class Range(NamedTuple):
    """The values that an option may have.

    Attributes:
        lowest: the smallest one.
        highest: the largest one.
        above: whether ``lowest`` itself is left out.
        text: the same in words.
    """

    lowest: float
    highest: float
    above: bool
    text: str

    def holds(self, value: float) -> bool:
        """Whether the value lies in the range; NaN never does."""
        return self.lowest <= value <= self.highest and not (self.above and value == self.lowest)


def _read_ranges() -> dict[str, Range]:
    ranges = {}
    for line in Path(__file__).with_name("propagation_ranges.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            name, low, high, unit = (part.strip() for part in line.split("|"))
            above, low = low.startswith(">"), low.removeprefix(">")
            text = f"more than {low} and at most {high}" if above else f"{low} to {high}"
            ranges[name] = Range(float(low), float(high), above, f"{text} {unit}".strip())
    return ranges


RANGES = _read_ranges()
MAX_CONTEXT = int(RANGES["context"].highest)
MAX_THREADS = 1024


def check_threads(threads: Any) -> int:
    """Return a number of threads; 0 is one per processor.

    Raises:
        OptionError: it is no whole number, or more than any processor has.
    """
    if isinstance(threads, bool) or not isinstance(threads, int | np.integer) or not 0 <= threads <= MAX_THREADS:
        raise OptionError(f"threads is {threads!r}; expected 0 to {MAX_THREADS} (0: one per processor)")
    return int(threads)


@dataclass(frozen=True, kw_only=True)
class PropagationOptions:
    """How labels are propagated (Araslanov et al. 2021, appendix C), with additions of this project.

    The additions make masks drift less: they are off by default, which is the published method.

    Attributes:
        context: number of most recent frames attended besides the reference (N - 1).
        radius: of the neighbourhood in the recent frames, ``sqrt(dx² + dy²) < radius``, in grid cells (8 pixels each at
            the working size). The reference is attended everywhere.
        top_k: neighbours kept per query, jointly over all slots.
        temperature: τ of the softmax over the kept similarities.
        pad_context: frames before the reference are replaced by copies of the reference (the
            released program); False drops the copies.
        yield_background: where objects that were first marked in a later frame are, background gives way to them; False
            keeps the first reference's background as it is (the released program), against which an object that
            was visible but unmarked at first can hardly win.
        centring: embeddings become normalise(e - centring * m) before they are matched and remembered, where m is the
            mean embedding of the stream's first frame: cells differ in what is left of them when the part that all of
            them share is removed ("all-but-the-top", Mu and Viswanath 2018, with the mean alone and only a share of
            it). 0 leaves them as they are.
        sharpness: exponent of the soft masks that are remembered of a propagated frame: p_m becomes
            p_m^sharpness * e^(object_bias [m is an object]), divided by the sum over m (the sharpening of MixMatch,
            Berthelot et al. 2019, eq. 7, and a prior against erosion). Labels of the frame itself are shown as they
            were read, and annotated frames are remembered as annotated. 1 with an object_bias of 0 changes nothing.
        object_bias: see ``sharpness``; more than 0 favours objects over background.
        guided: labels follow the edges of the picture: what is shown of soft masks is filtered, with the frame at half
            its working size as the guide (He et al. 2013, with their colour guide and ε = 1e-4), in windows of
            ``2 * guided + 1`` of its pixels to a side. Where masks are refined, they are shown as they are, as with 0.
        calibration: frames after which every object's ``object_bias`` is set again, by what its annotation shows of the
            newest masks (`vosrt.core.reference.calibrate`), so that objects do not erode; 0 never does.
        motion: strength of common fate: before masks are shown or remembered, an object takes the cells that moved as
            it did over the last four frames and not as the background did, and loses the others
            (`vosrt.core.reference.move_together`), so that surfaces which come into view are kept. 0 leaves masks as
            they are read.
        parts: of a cell, to a side: soft masks are remembered for ``parts * parts`` equal parts of every cell, and each
            part reads the same part of the cell's neighbours. Features stay one per cell, and so does what matching
            costs. More than 1 needs an encoder whose corners are not aligned.
        lost_share: share of an object's usual area, the median of its newest areas, with less than which it is hardly
            seen. This option and the following ones say what becomes of objects (`ObjectResult.state`); no mask depends
            on them.
        clear_share: share of the usual area with which it is clearly seen; what lies between is ``"unsure"``.
        lost_after: frames in a row in which it is hardly seen, after which it is ``"lost"``; without a pixel it is at
            once.
        back_after: frames in a row with something of a lost object, after which it is ``"back"``; one that is clearly
            seen is at once.
        back_for: frames for which it stays ``"back"``.
        back_confidence: mean confidence below which what is seen of a lost object does not count.
        iou_factor: factor of the odds of a mask's mean confidence, raised to ``iou_power``, that gives the odds of the
            IoU to expect, `ObjectResult.state_confidence`.
        iou_power: see ``iou_factor``.
    """

    context: int = 20
    radius: float = 12.0
    top_k: int = 10
    temperature: float = 0.05
    pad_context: bool = True
    yield_background: bool = True
    centring: float = 0.0
    sharpness: float = 1.0
    object_bias: float = 0.0
    guided: int = 0
    calibration: int = 0
    motion: float = 0.0
    parts: int = 1
    lost_share: float = 0.15
    clear_share: float = 0.25
    lost_after: int = 3
    back_after: int = 3
    back_for: int = 5
    back_confidence: float = 0.6
    iou_factor: float = 0.31
    iou_power: float = 1.38

    def __post_init__(self) -> None:
        for name, allowed in RANGES.items():
            value = getattr(self, name)
            is_whole = isinstance(getattr(type(self), name), int)  # the default
            numbers = int | np.integer if is_whole else int | float | np.integer | np.floating
            if isinstance(value, bool) or not isinstance(value, numbers) or not allowed.holds(value):
                shown = f"{value:g}" if isinstance(value, float) else repr(value)
                raise OptionError(f"{name} is {shown}; expected {allowed.text}")
        for name in ("pad_context", "yield_background"):
            if not isinstance(value := getattr(self, name), bool | np.bool_):
                raise OptionError(f"{name} is {value!r}; expected True or False")
        for name, value in vars(self).items():
            if isinstance(value, np.generic):  # the native core takes Python's numbers
                object.__setattr__(self, name, value.item())

    @property
    def alters_masks(self) -> bool:
        """Whether propagated masks are remembered otherwise than they were read."""
        return self.sharpness != 1 or self.object_bias != 0 or self.calibration != 0


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


ObjectState = Literal["present", "lost", "back", "unsure"]


@dataclass(frozen=True)
class ObjectResult:
    """Where one tracked object is in a frame.

    Attributes:
        area_px: number of its pixels; 0 if the frame shows none.
        box: x, y, width and height of the smallest box around its pixels; zeros without pixels.
        centroid: x and y of the mean of its pixels, whose centres have whole coordinates; None without pixels.
        confidence: mean confidence over its pixels, 0 to 1; 0 without pixels.
        state: ``"present"``; ``"lost"``: it left or is covered; ``"back"``: it is seen again, since few frames;
            ``"unsure"``: it has far fewer pixels than usual; `PropagationOptions` has the thresholds. A lost
            object may have a few pixels, which are most likely wrong. `vosrt.core.native.measure_objects` alone tells
            present and lost, by pixels.
        state_confidence: 0 to 1. The IoU to expect of the mask with the object; of a lost object, how clearly it is
            not seen.
    """

    id: int
    area_px: int = 0
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    centroid: tuple[float, float] | None = None
    confidence: float = 0.0
    state: ObjectState = "lost"
    state_confidence: float = 0.0

    @property
    def present(self) -> bool:
        """Whether the object has a pixel in the frame."""
        return self.area_px > 0


@dataclass(frozen=True)
class StepResult:
    """What one frame gives.

    Attributes:
        index: frame index in the stream, from 0.
        labels: u8 [H, W]; 0 is background, otherwise an object id.
        confidence: f32 [H, W]; the winning channel's soft mask, 0 to 1.
        object_ids: ids that are tracked at this frame, ascending.
        timings_ms: milliseconds per stage that the frame went through, of `STEP_STAGES`.
        labels_tensor: the labels of a stream that leaves them on its GPU (``labels_on="gpu"``), whole for work that is
            queued on their stream; ``labels``, ``confidence`` and ``objects`` are then empty.
        confidence_tensor: the confidence likewise.
        objects: by id, area, box, centroid and confidence of every tracked object; empty where the labels are on a GPU.
    """

    index: int
    labels: U8Array
    confidence: F32Array
    object_ids: tuple[int, ...]
    timings_ms: dict[str, float] = field(default_factory=dict)
    labels_tensor: DeviceTensor | None = None
    confidence_tensor: DeviceTensor | None = None
    objects: Mapping[int, ObjectResult] = field(default_factory=dict)

    @property
    def object_confidence(self) -> dict[int, float]:
        """The confidence of ``objects``: by id, the mean over the object's pixels, 0 if it has none."""
        return {each.id: each.confidence for each in self.objects.values()}

    def to_supervision(self) -> Any:
        """Return the objects of the frame as `supervision.Detections`; see `vosrt.interop.to_supervision`."""
        from vosrt.interop import to_supervision

        return to_supervision(self.labels, self.object_ids, self.objects)

    def to_fiftyone(self) -> Any:
        """Return the objects of the frame as `fiftyone.Detections`; see `vosrt.interop.to_fiftyone`."""
        from vosrt.interop import to_fiftyone

        return to_fiftyone(self.labels, self.object_ids, self.objects)
