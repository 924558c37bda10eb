"""Drawing of objects over a frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np

from vosrt.errors import OptionError
from vosrt.types import MAX_OBJECT_ID, U8Array
from vosrt.video.palette import fill_colours, lighten, line_colours, parse_colour

_HALO = (24, 24, 24)
_HALO_FROM = 240  # pixels of the short side; in smaller frames it would hide more than it shows
_WHITE = (255, 255, 255)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FONT_SHARE = 0.035  # height of a digit, of the short side
_SMALLEST_DIGIT = 9  # pixels


@dataclass(frozen=True)
class OverlayStyle:
    """Look of drawn objects.

    Attributes:
        opacity: of the tint, 0 to 1.
        colours: per object id its colour, BGR; the others have that of the palette. An id keeps its colour in every
            frame and every run.
        ids: whether each object's number is written on it.
        size: short side in pixels to which larger frames are shrunk for the video; None keeps all. A 4K video would
            take longer to encode than the network takes at its usual working size.
    """

    opacity: float = 0.45
    colours: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    ids: bool = False
    size: int | None = 1080

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise OptionError(f"opacity is {self.opacity}; expected 0 (outlines only) to 1")
        for object_id in self.colours:
            if not 1 <= object_id <= MAX_OBJECT_ID:
                raise OptionError(f"a colour is given to object {object_id}; expected 1 to {MAX_OBJECT_ID}")

    @cached_property
    def fills(self) -> U8Array:
        """Colours of the tints, u8 [256, 3] BGR."""
        fills = fill_colours()
        for object_id, colour in self.colours.items():
            fills[object_id] = colour
        return fills

    @cached_property
    def lines(self) -> U8Array:
        """Colours of the outlines, u8 [256, 3] BGR."""
        lines = line_colours()
        for object_id, colour in self.colours.items():
            lines[object_id] = lighten(np.asarray([colour], np.uint8))[0]
        return lines


def parse_colours(given: tuple[str, ...]) -> dict[int, tuple[int, int, int]]:
    """Read colours such as ``2=#ff8800`` or ``red``, which is that of object 1.

    Returns:
        Per object id its colour, BGR.

    Raises:
        OptionError: one is no colour, or for no object.
    """
    colours = {}
    for text in given:
        number, equals, name = text.rpartition("=")
        if equals and not (number.isascii() and number.isdecimal() and 1 <= int(number) <= MAX_OBJECT_ID):
            raise OptionError(f"--colour is {text!r}; expected an object from 1 to {MAX_OBJECT_ID} before the =")
        colours[int(number or 1)] = parse_colour(name)
    return colours


def draw_overlay(image: U8Array, labels: U8Array, style: OverlayStyle | None = None) -> U8Array:
    """Tint every object and outline it with a light line, in larger frames between dark ones, to stand out anywhere.

    Args:
        image: u8 [H, W, 3], BGR; stays as it is.
        labels: u8 [H, W]; 0 is background, otherwise an object id.
        style: None is the usual one.

    Returns:
        u8 [H, W, 3], BGR.
    """
    style = style or OverlayStyle()
    drawn = image.copy()
    x, y, width, height = cv2.boundingRect(labels)
    if width == 0:
        return drawn
    box = np.s_[y : y + height, x : x + width]
    inside = np.ascontiguousarray(labels[box])
    tint = cv2.applyColorMap(inside, style.fills[:, None])
    blended = cv2.addWeighted(image[box], 1 - style.opacity, tint, style.opacity, 0)
    cv2.copyTo(blended, inside, drawn[box])

    short_side = min(image.shape[:2])
    thickness = max(1, round(short_side / 300))
    outlines, places = [], dict[int, tuple[int, int]]()
    for object_id in np.flatnonzero(cv2.calcHist([inside], [0], None, [256], [0, 256])[1:]) + 1:
        mask = np.asarray(cv2.inRange(inside, int(object_id), int(object_id)), np.uint8)
        contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
        outlines.append((contours, style.lines[object_id].tolist()))
        if style.ids:
            places[int(object_id)] = _widest_place(mask, (x, y))
    for contours, _ in outlines if short_side >= _HALO_FROM else ():
        cv2.polylines(drawn, contours, True, _HALO, thickness + 2, cv2.LINE_AA)
    for contours, colour in outlines:
        cv2.polylines(drawn, contours, True, colour, thickness, cv2.LINE_AA)
    for number, place in places.items():
        _write(drawn, str(number), place)
    return drawn


def shrink(image: U8Array, labels: U8Array, short_side: int | None) -> tuple[U8Array, U8Array]:
    """Return a frame and its labels, shrunk if its short side is longer.

    Args:
        image: u8 [H, W, 3], BGR.
        labels: u8 [H, W].
        short_side: in pixels; None keeps every size.
    """
    height, width = labels.shape
    if short_side is None or min(height, width) <= short_side:
        return image, labels
    size = (width * short_side // min(height, width), height * short_side // min(height, width))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8), np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), np.uint8)


def _widest_place(mask: U8Array, corner: tuple[int, int]) -> tuple[int, int]:
    """Return the widest place of an object: the centre of the largest circle in it.

    Args:
        mask: u8 [h, w], not 0 on the object.
        corner: x and y of the mask's first pixel in the frame.

    Returns:
        x and y in the frame.
    """
    step = max(1, min(mask.shape) // 256)  # a digit need not be placed to the pixel
    small = np.ascontiguousarray(mask[step // 2 :: step, step // 2 :: step])
    if not small.any():
        step, small = 1, mask
    distance = cv2.distanceTransform(cv2.copyMakeBorder(small, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 3)
    x, y = cv2.minMaxLoc(distance)[3]
    return corner[0] + (x - 1) * step + step // 2, corner[1] + (y - 1) * step + step // 2


def _write(drawn: U8Array, text: str, centre: tuple[int, int]) -> None:
    """Write a number around a place, white on dark, all of it within the picture."""
    height, width = drawn.shape[:2]
    size = max(_SMALLEST_DIGIT, round(_FONT_SHARE * min(height, width)))
    thickness = max(1, round(size / 8))
    scale = cv2.getFontScaleFromHeight(_FONT, size, thickness)
    (text_width, text_height), _ = cv2.getTextSize(text, _FONT, scale, thickness)
    x = min(max(centre[0] - text_width // 2, 1), max(1, width - text_width - 1))
    y = min(max(centre[1] + text_height // 2, text_height + 1), height - 2)
    cv2.putText(drawn, text, (x, y), _FONT, scale, _HALO, thickness + 2, cv2.LINE_AA)
    cv2.putText(drawn, text, (x, y), _FONT, scale, _WHITE, thickness, cv2.LINE_AA)
