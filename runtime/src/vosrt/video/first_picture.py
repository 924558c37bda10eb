"""The marks on the first frame that has any, as a picture to look at before hours of work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from vosrt._results import Target
from vosrt.types import U8Array
from vosrt.video.base import Frame, SegmentedFrame
from vosrt.video.overlay import OverlayStyle, draw_overlay
from vosrt.video.sinks import Sink

_QUALITY = 92  # of the JPEG, 0 to 100


class FirstPicture(Sink):
    """Writes the first marked frame with its marks, before anything is followed.

    Args:
        name: of the file, such as ``first.jpg``.
        marks: per frame index, u8 [H, W] object ids.
        style: of the drawing; several objects have numbers.
        on_written: called once the file has its name; None is silent.
    """

    def __init__(
        self,
        target: Target,
        name: str,
        marks: Mapping[int, U8Array],
        style: OverlayStyle | None = None,
        on_written: Callable[[], None] | None = None,
    ) -> None:
        self._target, self._name, self._on_written = target, name, on_written
        self._index = min(marks)
        self._labels = marks[self._index]
        self._style = replace(style or OverlayStyle(), ids=len(np.setdiff1d(self._labels, [0])) > 1)
        self.written = False

    def write(self, item: SegmentedFrame) -> None:
        """Look whether this is the frame."""
        self.show(item.frame)

    def show(self, frame: Frame) -> bool:
        """Write the picture if it is one of this frame; return whether it was."""
        if self.written or frame.index != self._index:
            return False
        drawn = draw_overlay(frame.image, self._labels, self._style)
        data = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
        self._target.write(self._name, data.tobytes())
        self.written = True
        if self._on_written is not None:
            self._on_written()
        return True

    def keep(self) -> dict[str, Any]:
        """See `Sink`."""
        return {"written": self.written}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Sink`."""
        self.written = bool(state["written"])

    def close(self) -> None:
        """Do nothing: the picture is complete once written."""
