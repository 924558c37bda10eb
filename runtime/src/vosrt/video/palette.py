"""The DAVIS / PASCAL VOC colour palette, and brighter relatives of it for drawing."""

from __future__ import annotations

import numpy as np
from PIL import ImageColor

from vosrt.errors import OptionError
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
    return lighten(davis_palette()[:, ::-1])


def lighten(colours: U8Array) -> U8Array:
    """Return colours of the same hue that are light enough for lines, u8 [n, 3] BGR."""
    values = colours.astype(np.float32)
    strongest = np.maximum(values.max(axis=1, keepdims=True), 1)
    return np.asarray(0.75 * values * (255 / strongest) + 0.25 * 255, np.uint8)


def parse_colour(text: str) -> tuple[int, int, int]:
    """Return a colour such as ``#ff8800``, ``#f80`` or ``orange`` (any name of CSS) as BGR.

    Raises:
        OptionError: it is none.
    """
    try:
        red, green, blue, *rest = ImageColor.getrgb(text.strip())
    except ValueError:
        rest = [-1]
    if rest:
        raise OptionError(f"{text!r} is no colour; expected a name such as orange, or #rrggbb")
    return blue, green, red
