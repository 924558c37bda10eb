"""Clicks and boxes on one frame, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vosrt.errors import MaskError, OptionError
from vosrt.types import U8Array

BoolArray = NDArray[np.bool_]
Box = tuple[float, float, float, float]  # x, y, width, height in pixels


class Point(NamedTuple):
    """A click.

    Attributes:
        x: column in pixels of the frame.
        y: row likewise.
        positive: the object is there; False says that it is not.
    """

    x: float
    y: float
    positive: bool = True


class Segmenter(Protocol):
    """What turns clicks on one frame into a mask: `ClickedFrame`, or a network of the user's."""

    def segment(
        self,
        points: Sequence[Sequence[float]] = (),
        box: Box | None = None,
        mask: BoolArray | None = None,
    ) -> BoolArray:
        """Return the mask bool [H, W]; see `ClickedFrame.segment`."""


class Finder(Protocol):
    """Finds the object at clicks or in a box."""

    def __call__(self, image: U8Array, points: Sequence[Point], box: Box | None) -> BoolArray:
        """Return its mask bool [H, W] in a frame u8 [H, W, 3] BGR; see `vosrt.Model.segment`."""


def check_prompts(
    points: Sequence[Sequence[float]],
    box: Box | None,
    mask: BoolArray | None,
    height: int,
    width: int,
) -> tuple[Point, ...]:
    """Check what a user clicked on a frame.

    Args:
        points: (x, y) or (x, y, positive) each, in pixels.
        box: x, y, width, height in pixels.
        mask: bool [H, W].
        height: of the frame, in pixels.
        width: likewise.

    Returns:
        The clicks.

    Raises:
        OptionError: there is neither a positive click nor a box nor a mask, or something has the wrong form.
        MaskError: a click or the box lies outside the frame, or the mask has another size.
    """
    clicks = []
    for given in points:
        try:
            x, y, *sign = given
            (positive,) = sign or [True]
            x, y = float(x), float(y)
        except (TypeError, ValueError) as error:
            raise OptionError(f"a point is {given!r}; expected (x, y) or (x, y, positive)") from error
        if not (0 <= x < width and 0 <= y < height):
            raise MaskError(
                f"the point ({x:g}, {y:g}) is outside the frame; expected x below {width}, y below {height}"
            )
        clicks.append(Point(x, y, bool(positive)))
    if box is not None:
        try:
            x, y, w, h = (float(each) for each in box)
        except (TypeError, ValueError) as error:
            raise OptionError(f"the box is {box!r}; expected x, y, width, height in pixels") from error
        if not (w > 0 and h > 0 and x >= 0 and y >= 0 and x + w <= width and y + h <= height):
            raise MaskError(f"the box {x:g}, {y:g}, {w:g}, {h:g} is empty or outside the {width} × {height} frame")
    if mask is not None and mask.shape != (height, width):
        raise MaskError(f"the mask has shape {list(mask.shape)}; expected [{height}, {width}], as the frame")
    if box is None and mask is None and not any(click.positive for click in clicks):
        raise OptionError("nothing is marked; give a positive point, a box or a mask")
    return tuple(clicks)
