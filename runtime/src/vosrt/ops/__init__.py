"""Operations on whole arrays: the native core where it is built, else the NumPy twins in `reference`."""

from __future__ import annotations

import numpy as np

from vosrt.native import find_native
from vosrt.ops import reference
from vosrt.types import U8Array


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
