"""Webcams through OpenCV."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence

import cv2
import numpy as np

from vosrt.errors import BrokenVideoError, SourceError
from vosrt.types import U8Array
from vosrt.video.base import Frame, FrameRange, SourceInfo, SourceOptions, is_reading

_DEFAULT_FPS = 30.0
_KEPT_BY_DRIVER = 4  # pictures, in V4L2
_PATIENCE = 30  # reads that may fail in a row before the camera counts as gone


class WebcamSource:
    """Live frames of a camera, stamped with the time of their arrival.

    Args:
        camera: index of the camera, from 0.
        frames: range of frames to read; without an end it runs until interrupted.
        options: how it is read; of them, ``ready`` counts.

    Raises:
        SourceError: the camera does not exist or gives no picture.
    """

    def __init__(
        self,
        camera: int,
        frames: FrameRange = FrameRange(),  # noqa: B008 (frozen)
        options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
    ) -> None:
        self._camera = camera
        self._range = frames
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # reported below, in one line
        try:
            self._capture = cv2.VideoCapture(camera)
        except (cv2.error, OverflowError):
            raise SourceError(f"camera {camera}: there is no such number; expected a small one such as 0") from None
        finally:
            cv2.utils.logging.setLogLevel(level)
        if not self._capture.isOpened():
            raise SourceError(f"camera {camera}: cannot be opened; is it connected, and free?")
        if options.ready is not None:
            self._prepare(options.ready)
        self._began = time.monotonic()
        self._decoder = self._read()
        try:
            self.first = next(self._decoder)
        except (BrokenVideoError, StopIteration):
            self.close()
            raise SourceError(f"camera {camera}: gives no picture; is another program using it?") from None
        height, width = self.first.image.shape[:2]
        self.info = SourceInfo(
            name=f"camera {camera}",
            width=width,
            height=height,
            fps=self._capture.get(cv2.CAP_PROP_FPS) or _DEFAULT_FPS,
            frame_count=None if frames.end is None else frames.end - frames.start,
            live=True,
        )

    def __iter__(self) -> Iterator[Frame]:
        """Yield pictures as they arrive; see `FrameSource`."""
        yield self.first
        yield from self._decoder

    @property
    def warnings(self) -> Sequence[str]:
        """None: a camera that fails ends the run."""
        return ()

    def _prepare(self, ready: Callable[[U8Array], None]) -> None:
        """Let ``ready`` see a picture, then discard those that the driver has kept meanwhile."""
        ok, image = self._capture.read()
        if ok:
            ready(np.asarray(image, np.uint8))
            for _ in range(_KEPT_BY_DRIVER):
                self._capture.grab()

    def _read(self) -> Generator[Frame, None, None]:
        index, failures = 0, 0
        while self._range.end is None or index < self._range.end:
            ok, image = self._capture.read()
            if not ok:
                failures += 1
                if failures > _PATIENCE:
                    raise BrokenVideoError(f"camera {self._camera}: stopped giving pictures at frame {index}", index)
                continue
            failures = 0
            if index >= self._range.start:
                yield Frame(np.asarray(image, np.uint8), index, time.monotonic() - self._began, f"{index:05d}")
            index += 1

    def close(self) -> None:
        """Release the camera; see `FrameSource`."""
        if not is_reading(self._decoder):
            self._capture.release()
