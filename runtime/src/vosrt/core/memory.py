"""What a tracked video remembers: slots of past frames, references, and the labels they carry.

Frames are counted from 0 in the order of ``push``. A *reference* is a frame that was annotated. It keeps its key and
soft masks as long as one of its objects is tracked; the first one is always kept, as background is read from it.
"""

from __future__ import annotations

from typing import Any, Protocol

from vosrt.core import native
from vosrt.cuda import open_device
from vosrt.text import counted
from vosrt.types import F32Array, Precision, PropagationOptions, TopK, U8Array


class Memory(Protocol):
    """One video's memory. Not safe for use by several threads at the same time."""

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Tracked objects, ascending."""

    @property
    def info(self) -> dict[str, Any]:
        """What the memory is and holds.

        ``isa``, ``threads``, ``objects``, ``references``, ``frames`` pushed, ``bytes``, ``head`` (channels that
        similarities are bounded by; 0 if every product is computed), ``survivors`` (share of the keys bounded for the
        newest frame whose products were computed all the same), ``shape`` (h, w, K), ``align_corners``, ``parts``.
        """

    def push(self, embedding: F32Array) -> None:
        """Take the next frame, f32 [h, w, K] of unit length per cell, and propagate the soft masks to it.

        The newest frame of before is remembered from then on as ``sharpness`` and ``object_bias`` say.

        Raises:
            OptionError: the array does not have the shape or dtype of this memory.
        """

    def annotate(self, mask: U8Array) -> None:
        """Mark objects in the newest frame: u8 [H, W], 0 keeps the prediction, else an object id.

        Raises:
            MaskError: the mask is empty, or an object cannot be represented on the grid; nothing has changed.
            OptionError: no frame has been pushed.
        """

    def remove(self, object_id: int) -> None:
        """Forget one object; its area becomes background.

        Raises:
            OptionError: no such object.
        """

    def guide(self, frame: U8Array) -> None:
        """Have the labels of the newest frame follow the edges of its picture, if the options ask for guided output.

        Args:
            frame: the frame as the network saw it, u8 [H, W, 3].

        Raises:
            OptionError: no frame has been pushed, or the array has another shape or dtype.
        """

    def labels(self, height: int, width: int) -> tuple[U8Array, F32Array]:
        """Object ids u8 [height, width] and confidence f32 [height, width] of the newest frame."""

    def soft_masks(self) -> F32Array:
        """Soft masks of the newest frame, f32 [h * parts, w * parts, 1 + objects]: background, then ids ascending."""

    def set_soft_masks(self, masks: F32Array) -> None:
        """Replace the newest frame's soft masks, f32 [h * parts, w * parts, 1 + objects]; references keep theirs.

        Raises:
            OptionError: the array does not have this shape or dtype, or holds a negative or not finite value.
        """

    def top_k(self) -> TopK:
        """What the newest frame attended to when it was pushed, one block per reference of that moment."""


def create_memory(
    height: int,
    width: int,
    channels: int,
    options: PropagationOptions,
    *,
    align_corners: bool = True,
    precision: Precision = "auto",
    threads: int = 0,
    device: str = "cpu",
) -> tuple[Memory, str]:
    """Create a memory on the processor or on a GPU; ``VOSRT_ISA`` forces an instruction-set path of the processor.

    Args:
        height: grid rows, h.
        width: grid columns, w.
        channels: embedding channels, K.
        options: how labels are propagated.
        align_corners: see `EncoderSpec`.
        precision: of the products in matching; ``"auto"`` is bf16 where the processor has it.
        threads: worker threads of the native core; 0 is one per processor.
        device: ``"cpu"``, or ``"cuda"`` or ``"cuda:N"`` for an NVIDIA GPU.

    Returns:
        The memory, and one sentence on why this one.

    Raises:
        OptionError: this installation has no native core, ``VOSRT_ISA`` forces what the processor lacks, the precision
            cannot be had, or the GPU cannot be used.
    """
    if (gpu := open_device(device)) is not None:
        on_gpu = gpu.memory((height, width, channels), options, align_corners=align_corners, precision=precision)
        return on_gpu, on_gpu.describe()
    shape = (height, width, channels)
    memory = native.Memory(*shape, **vars(options), align_corners=align_corners, precision=precision, threads=threads)
    info = memory.info
    return memory, f"native core {native.version()}, {info['isa']} on {counted(info['threads'], 'thread')}"
