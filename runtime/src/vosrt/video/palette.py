"""The DAVIS / PASCAL VOC colour palette, and brighter relatives of it for drawing."""

from __future__ import annotations

import numpy as np

from vosrt.types import U8Array


def davis_palette() -> U8Array:
    """Return the palette of DAVIS masks, u8 [256, 3] RGB: the bits of the id dealt out over the channels."""
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def fill_colours() -> U8Array:
    """Return colours to tint objects with, u8 [256, 3] BGR: the palette, stretched to full brightness."""
    stretched = davis_palette()[:, ::-1].astype(np.float32) * (255 / 224)
    return np.asarray(np.minimum(stretched + 24, 255), np.uint8)


def line_colours() -> U8Array:
    """Return colours to outline objects with, u8 [256, 3] BGR: the hue of the fill, light enough to stand out."""
    colours = davis_palette()[:, ::-1].astype(np.float32)
    strongest = np.maximum(colours.max(axis=1, keepdims=True), 1)
    return np.asarray(0.75 * colours * (255 / strongest) + 0.25 * 255, np.uint8)
