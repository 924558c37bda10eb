"""Results that wait for their turn in a temporary file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import cv2
import numpy as np

from vosrt.errors import WorkError
from vosrt.locking import Closing
from vosrt.types import U8Array
from vosrt.video.base import Frame, SegmentedFrame


@dataclass(frozen=True)
class _Entry:
    """Where the result of a frame is in the file, and what is kept in mind of it."""

    offset: int
    labels_bytes: int
    confidence_bytes: int
    object_ids: tuple[int, ...]
    object_confidence: Mapping[int, float]


class Spool(Closing):
    """Results of the way back, in a temporary file that vanishes with the process.

    Args:
        folder: of the file; None is the system's.

    Raises:
        WorkError: it cannot be created.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        with self._failing():
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed in close)
        self._kept: dict[int, _Entry] = {}

    def __contains__(self, index: int) -> bool:
        """Whether the way back met this frame."""
        return index in self._kept

    def put(self, index: int, item: SegmentedFrame) -> None:
        """Keep what the way back found in a frame; confidence is rounded to 1/255."""
        confidence = np.zeros(item.labels.shape, np.uint8) if item.confidence is None else item.confidence * 255
        labels, shades = _png(item.labels), _png(np.rint(confidence).astype(np.uint8))
        with self._failing():
            offset = self._file.seek(0, 2)
            self._file.write(labels + shades)
        self._kept[index] = _Entry(offset, len(labels), len(shades), item.object_ids, item.object_confidence)

    def result(self, frame: Frame) -> SegmentedFrame:
        """Return what the way back found in a frame that it met."""
        kept = self._kept[frame.index]
        with self._failing():
            self._file.seek(kept.offset)
            labels, shades = self._file.read(kept.labels_bytes), self._file.read(kept.confidence_bytes)
        confidence = _picture(shades).astype(np.float32) / np.float32(255)
        return SegmentedFrame(frame, _picture(labels), kept.object_ids, kept.object_confidence, confidence=confidence)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Turn errors of the system into one of the work."""
        try:
            yield
        except OSError as error:
            raise WorkError(
                f"{self._folder or tempfile.gettempdir()}: the temporary file of the way back cannot be used "
                f"({error.strerror}); free space, or choose another folder"
            ) from error


def _png(values: U8Array) -> bytes:
    return cv2.imencode(".png", values, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def _picture(data: bytes) -> U8Array:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE), np.uint8)
