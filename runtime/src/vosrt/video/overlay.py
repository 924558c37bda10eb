"""Drawing of objects over a frame."""

from __future__ import annotations

import cv2
import numpy as np

from vosrt.types import U8Array
from vosrt.video.palette import fill_colours, line_colours

_FILL = fill_colours()
_LINE = line_colours()
_FILL_OPACITY = 0.45
_HALO = (24, 24, 24)
_HALO_FROM = 240  # pixels of the short side; in smaller frames it would hide more than it shows


def draw_overlay(image: U8Array, labels: U8Array, *, opacity: float = _FILL_OPACITY) -> U8Array:
    """Tint every object and outline it with a light line, in larger frames between dark ones, to stand out anywhere.

    Args:
        image: u8 [H, W, 3], BGR; stays as it is.
        labels: u8 [H, W]; 0 is background, otherwise an object id.
        opacity: of the tint, 0 to 1.

    Returns:
        u8 [H, W, 3], BGR.
    """
    drawn = image.copy()
    x, y, width, height = cv2.boundingRect((labels != 0).view(np.uint8))
    if width == 0:
        return drawn
    box = np.s_[y : y + height, x : x + width]
    inside = np.ascontiguousarray(labels[box])
    tint = _FILL[inside]
    blended = cv2.addWeighted(image[box], 1 - opacity, tint, opacity, 0)
    cv2.copyTo(blended, inside, drawn[box])

    short_side = min(image.shape[:2])
    thickness = max(1, round(short_side / 300))
    outlines = []
    for object_id in np.flatnonzero(np.bincount(inside.reshape(-1), minlength=256)[1:]) + 1:
        mask = (inside == object_id).view(np.uint8)
        contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
        outlines.append((contours, _LINE[object_id].tolist()))
    for contours, _ in outlines if short_side >= _HALO_FROM else ():
        cv2.polylines(drawn, contours, True, _HALO, thickness + 2, cv2.LINE_AA)
    for contours, colour in outlines:
        cv2.polylines(drawn, contours, True, colour, thickness, cv2.LINE_AA)
    return drawn
