"""Removal of specks and holes from masks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from vosrt.errors import OptionError
from vosrt.types import U8Array
from vosrt.video.base import FrameSink, SegmentedFrame


@dataclass(frozen=True)
class Cleaning:
    """Sizes below which parts and holes of a mask are removed.

    Attributes:
        min_area_px: parts of an object with fewer pixels become background; 0 keeps all.
        fill_holes_px: holes of an object with at most so many pixels become part of it; 0 fills none. A hole is
            background that touches one object and nothing else, not even the frame's border.
    """

    min_area_px: int = 0
    fill_holes_px: int = 0

    def __post_init__(self) -> None:
        for option, value in (("--min-area", self.min_area_px), ("--fill-holes", self.fill_holes_px)):
            if value < 0:
                raise OptionError(f"{option} is {value}; expected a number of pixels, 0 or more")

    def __bool__(self) -> bool:
        """Return whether anything is cleaned."""
        return bool(self.min_area_px or self.fill_holes_px)


def clean(labels: U8Array, cleaning: Cleaning) -> U8Array:
    """Return labels without specks, then without holes.

    Args:
        labels: u8 [H, W], 0 for background; stays as it is.
    """
    x, y, width, height = cv2.boundingRect(labels)
    if not (cleaning and width):
        return labels
    cleaned = labels.copy()
    part = cleaned[y : y + height, x : x + width]  # holes and specks lie within the objects' box
    if cleaning.min_area_px:
        for object_id in _ids(part):
            _, parts, stats, _ = cv2.connectedComponentsWithStats(cv2.inRange(part, object_id, object_id))
            specks = stats[:, cv2.CC_STAT_AREA] < cleaning.min_area_px
            specks[0] = False  # pixels outside this object
            if specks.any():
                part[specks[parts]] = 0
    if cleaning.fill_holes_px:
        _fill(part, cleaning.fill_holes_px)
    return cleaned


def _fill(part: U8Array, largest_px: int) -> None:
    """Fill holes in place. A part of the background that touches the border of the box is none."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(cv2.inRange(part, 0, 0), connectivity=4)
    height, width = part.shape
    for hole in range(1, count):
        x, y, w, h, area = (int(value) for value in stats[hole])
        if area > largest_px or x == 0 or y == 0 or x + w == width or y + h == height:
            continue
        around = np.s_[y - 1 : y + h + 1, x - 1 : x + w + 1]
        inside = (parts[around] == hole).view(np.uint8)
        ring = cv2.dilate(inside, np.ones((3, 3), np.uint8)) > inside
        touching = _ids(part[around][ring])
        if len(touching) == 1 and part[around][ring].all():
            part[around][inside > 0] = touching[0]


def _ids(labels: U8Array) -> list[int]:
    return [int(i) for i in np.flatnonzero(np.bincount(labels.reshape(-1), minlength=256)[1:]) + 1]


class Cleaned:
    """Cleans masks on their way to another sink.

    Args:
        sink: receives cleaned masks.
        cleaning: sizes of the parts and holes that are removed.
    """

    def __init__(self, sink: FrameSink, cleaning: Cleaning) -> None:
        self._sink, self._cleaning = sink, cleaning

    def write(self, item: SegmentedFrame) -> None:
        """Clean the masks of one frame and pass them on."""
        labels = clean(item.labels, self._cleaning)
        if labels is not item.labels:
            # The stream measured its own labels; what cleaning changed is measured again by the first sink that asks.
            means = item.object_confidence if item.confidence is None else {}
            item = replace(item, labels=labels, object_confidence=means, measured=None)
        self._sink.write(item)

    def close(self) -> None:
        """Close the sink."""
        self._sink.close()
