"""The native core, libvosrt: the memory on the processor, and operations on whole arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np

from vosrt.core.abi import CONSTANTS
from vosrt.core.library import (
    OBJECT_STATES,
    STRUCTS,
    Library,
    LibraryMemory,
    address,
    choice,
    create_handle,
    find_library,
    measure_with,
    new_array,
    new_struct,
    picture_size,
)
from vosrt.errors import OptionError
from vosrt.types import F32Array, ObjectResult, Precision, PropagationOptions, U8Array


@cache
def libvosrt() -> Library:
    """The library, opened once.

    Raises:
        OptionError: this installation has none, or it cannot be opened.
    """
    if (path := find_library("libvosrt.so")) is None:
        reason = "this vosrt was installed without its native core, libvosrt"
        remedy = "pip install --force-reinstall vosrt, with a C++20 compiler where no wheel fits"
        raise OptionError(f"{reason}; install it with: {remedy}", reason=reason, remedy=remedy)
    return Library(path)


@cache
def _isas() -> dict[Any, int]:
    paths = [value for name, value in CONSTANTS.items() if name.startswith("VOSRT_ISA_") and name != "VOSRT_ISA_CUDA"]
    return {libvosrt().plain("vosrt_isa_name", isa).decode(): isa for isa in paths}


def version() -> str:
    """Of libvosrt."""
    return libvosrt().version


def isa_available(name: str) -> bool:
    """Whether this build and this processor can run an instruction-set path.

    Raises:
        OptionError: there is no such path.
    """
    return bool(libvosrt().plain("vosrt_isa_available", choice("isa", name, _isas())))


def has_int8_dot_products() -> bool:
    """Whether this processor multiplies 8-bit integers and adds them up in one instruction, as VNNI does."""
    return bool(libvosrt().plain("vosrt_has_int8_dot_products"))


def resize_bgr(image: U8Array, height: int, width: int) -> U8Array:
    """Resize an image: bilinear, pixel centres at half-integers, no antialiasing; the same bytes on every processor.

    Args:
        image: u8 [H, W, 3].
        height: rows of the result.
        width: columns of the result.

    Returns:
        u8 [height, width, 3]; the image itself if it has that size.

    Raises:
        OptionError: the image is no such array, or a size is impossible.
    """
    if image.shape[:2] == (height, width):
        return image
    dense = np.ascontiguousarray(image)
    data, size = address("image", dense, (0, 0, 3), np.uint8), picture_size(height, width)
    out = new_array((*size, 3), np.uint8)
    rows, columns = image.shape[:2]
    libvosrt().call("vosrt_resize_bgr", data, rows, columns, 3 * columns, out.ctypes.data, *size, 3 * size[1])
    return out


def measure_objects(labels: U8Array, ids: Sequence[int], confidence: F32Array | None = None) -> dict[int, ObjectResult]:
    """Measure area, box, centroid and mean confidence of the objects of u8 [H, W].

    Args:
        labels: object ids, 0 for background.
        ids: the objects to measure, ascending.
        confidence: f32 [H, W]; None leaves the objects' confidence 0.

    Raises:
        OptionError: an array has another shape or dtype.
    """
    return measure_with(partial(libvosrt().call, "vosrt_measure_objects"), labels, ids, confidence)


class Presence:
    """Tells what became of objects, frame by frame, as ``vosrt_stream`` does: for results that it did not measure.

    Args:
        options: with the thresholds.
    """

    def __init__(self, options: PropagationOptions | None = None) -> None:
        self._options = new_struct("vosrt_memory_options", **vars(options or PropagationOptions()))
        self._kept: dict[int, Any] = {}

    def follow(self, frame: int, objects: Mapping[int, ObjectResult]) -> dict[int, ObjectResult]:
        """The objects of a frame with their ``state`` and ``state_confidence``.

        Args:
            frame: its number, from 0, rising; the newest frame may come again.
            objects: all that are tracked, with their area and confidence; others are forgotten.

        Raises:
            OptionError: the frame is an older one.
        """
        self._kept = {i: self._kept.get(i) or new_struct("vosrt_presence") for i in objects}
        return {object_id: self._state(frame, each) for object_id, each in objects.items()}

    def _state(self, frame: int, each: ObjectResult) -> ObjectResult:
        struct = new_struct("vosrt_object", id=each.id, area_px=each.area_px, confidence=each.confidence)
        given = ctypes.byref(self._options), ctypes.byref(self._kept[each.id])
        libvosrt().call("vosrt_follow_object_with", *given, frame, ctypes.byref(struct))
        return replace(each, state=OBJECT_STATES[struct.state], state_confidence=struct.state_confidence)

    def keep(self) -> dict[str, str]:
        """All that is remembered, for JSON."""
        return {str(object_id): bytes(struct).hex() for object_id, struct in self._kept.items()}

    def restore(self, state: Mapping[str, str]) -> None:
        """Go on from what `keep` gave."""
        kind = STRUCTS["vosrt_presence"]
        self._kept = {int(object_id): kind.from_buffer_copy(bytes.fromhex(each)) for object_id, each in state.items()}


class Memory(LibraryMemory):
    """One video's memory on the processor.

    Args:
        height: grid rows, h.
        width: grid columns, w.
        channels: embedding channels, K.
        context: see `PropagationOptions`.
        align_corners: see `EncoderSpec`.
        precision: of the products in matching; ``"auto"`` is bf16 where the processor has it.
        isa: instruction-set path; ``"auto"`` is what ``VOSRT_ISA`` names, else the fastest.
        threads: that share the work; 0 is one per processor.
        propagation: further fields of `PropagationOptions`.

    Raises:
        OptionError: an impossible value, or not enough memory.
    """

    def __init__(
        self,
        height: int,
        width: int,
        channels: int,
        context: int = 20,
        *,
        align_corners: bool = True,
        precision: Precision = "auto",
        isa: str = "auto",
        threads: int = 0,
        **propagation: Any,
    ) -> None:
        options = PropagationOptions(context=context, **propagation)
        paths = {"isa": choice("isa", isa, _isas()), "threads": threads}
        shape = (height, width, channels)
        super().__init__(
            libvosrt(),
            create_handle(libvosrt(), shape, options, align_corners=align_corners, precision=precision, **paths),
        )
