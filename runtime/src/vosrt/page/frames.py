"""Frames of a clip in random order: decoded once, kept as JPEG files in a temporary folder."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from vosrt.errors import InputError, VosrtError
from vosrt.types import U8Array
from vosrt.video.base import Frame, FrameSource

_QUALITY = 95  # of the JPEG files, 0 to 100


class FrameStore:
    """What the page shows and the model sees: the same pictures.

    A thread decodes the clip from its first frame to its last; frames can be read as soon as they are kept.

    Args:
        opened: the source; it is closed at the end.
        folder: empty; takes a file per frame.
        limit_bytes: of all files; the clip ends for the page where they are full.
    """

    def __init__(self, opened: FrameSource, folder: Path, *, limit_bytes: int) -> None:
        self.info, self.folder, self._limit = opened.info, folder, limit_bytes
        self.kept: list[tuple[int, float, str]] = []  # number in the source, time in seconds and name of each frame
        self.oldest = 0  # position of the first frame that is still there
        self.done, self.note = False, ""
        self._bytes = 0
        self._closed = threading.Event()
        self._grown = threading.Condition()
        self._thread = threading.Thread(target=self._decode, args=(opened,), name="vosrt-frames", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Number of frames that can be read."""
        return len(self.kept)

    @property
    def fps(self) -> float:
        """Frames a second, when the kept ones are played."""
        return self.info.fps

    def jpeg(self, position: int) -> bytes:
        """A frame as JPEG.

        Raises:
            InputError: there is no such frame, or not yet.
        """
        if not self.oldest <= position < len(self.kept):
            raise InputError(f"frame {position} is not there; expected {self.oldest} to {len(self.kept) - 1}")
        return self._path(position).read_bytes()

    def image(self, position: int) -> U8Array:
        """A frame, u8 [H, W, 3] BGR.

        Raises:
            InputError: as for `jpeg`.
        """
        data = np.frombuffer(self.jpeg(position), np.uint8)
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)

    def frame(self, position: int) -> Frame:
        """A frame with its number, time and name, for sinks."""
        index, time_s, name = self.kept[position]
        return Frame(self.image(position), index, time_s, name)

    def wait(self, position: int, seconds: float) -> bool:
        """Wait until a frame is kept or the clip has ended; return whether it is kept."""
        with self._grown:
            self._grown.wait_for(lambda: self.done or len(self.kept) > position, seconds)
        return len(self.kept) > position

    def close(self) -> None:
        """Stop decoding and remove the files."""
        self._closed.set()
        self._thread.join()
        self._remove()

    def _remove(self) -> None:
        for path in self.folder.glob("*.jpg"):
            with suppress(OSError):
                path.unlink()

    def _keep(self, jpeg: bytes, index: int, time_s: float, name: str) -> None:
        self._path(len(self.kept)).write_bytes(jpeg)
        self._bytes += len(jpeg)
        with self._grown:
            self.kept.append((index, time_s, name))
            self._grown.notify_all()

    def _path(self, position: int) -> Path:
        return self.folder / f"{position:07d}.jpg"

    def _decode(self, source: FrameSource) -> None:
        try:
            for frame in source:
                if self._closed.is_set():
                    return
                data = as_jpeg(frame.image)
                if self._bytes + len(data) > self._limit:
                    self.note = (
                        f"only the first {len(self.kept)} frames are open: they take {self._limit >> 20} MB; "
                        "--cache-mb raises that"
                    )
                    return
                self._keep(data, frame.index, frame.time_s, frame.name)
            self.note = "; ".join(source.warnings)
        except (VosrtError, OSError) as error:
            self.note = str(error)
        finally:
            source.close()
            with self._grown:
                self.done = True
                self._grown.notify_all()


def as_jpeg(image: U8Array) -> bytes:
    """Encode u8 [H, W, 3] BGR as the page keeps it."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
