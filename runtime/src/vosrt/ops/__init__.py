"""Operations on whole arrays: the native core where it is built, else the NumPy twins in `reference`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vosrt.native import find_native
from vosrt.ops import reference
from vosrt.types import F32Array, U8Array


def resize_bgr(image: U8Array, height: int, width: int) -> U8Array:
    """Resize an image: bilinear, pixel centres at half-integers, no antialiasing; the same bytes on every core.

    Args:
        image: u8 [H, W, 3].
        height: rows of the result.
        width: columns of the result.

    Returns:
        u8 [height, width, 3]; the image itself if it has that size.
    """
    if image.shape[:2] == (height, width):
        return image
    native, _ = find_native()
    if native is None:
        return reference.resize_bgr(image, height, width)
    resized: U8Array = native.resize_bgr(np.ascontiguousarray(image), height, width)
    return resized


def read_values(
    neighbours: reference.Neighbours, values: Sequence[F32Array], temperature: float, *, threads: int = 0
) -> F32Array:
    """Weighted sums of the neighbours' values, for objects that share their neighbours.

    Args:
        neighbours: what n cells attend to; a slot is -1 where one is missing.
        values: f32 [N, h*w, V] per object, of at least one.
        temperature: τ.
        threads: of the native core; 0 is one per processor.

    Returns:
        f32 [objects, n, V]; a cell without neighbours gets zeros.

    Raises:
        OptionError: an array has not the shape or dtype, or a slot or a cell is out of range (native core only).
    """
    native, _ = find_native()
    if native is None:
        return reference.read_values(neighbours, values, temperature)
    dense = (np.ascontiguousarray(each) for each in neighbours)
    read: F32Array = native.read_values(
        *dense, [np.ascontiguousarray(each) for each in values], temperature, threads=threads
    )
    return read
