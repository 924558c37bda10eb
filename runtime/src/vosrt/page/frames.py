"""Frames of a clip in random order: decoded once, kept as JPEG files in a temporary folder."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from vosrt.errors import InputError, SourceError, VosrtError
from vosrt.types import U8Array
from vosrt.video.base import Frame, FrameSource, SourceOptions
from vosrt.video.source import open_source

_QUALITY = 95  # of the JPEG files, 0 to 100


class FrameStore:
    """What the page shows and the model sees: the same pictures.

    A thread decodes the clip from its first frame to its last; frames can be read as soon as they are kept.

    Args:
        source: a video file or a folder of frames.
        folder: empty; takes a file per frame.
        limit_bytes: of all files; the clip ends for the page where they are full.
        options: how the source is read.

    Raises:
        SourceError: it cannot be opened, or is live.
    """

    def __init__(
        self,
        source: str,
        folder: Path,
        *,
        limit_bytes: int,
        options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
    ) -> None:
        opened = open_source(source, options=options)
        if opened.info.live:
            opened.close()
            raise SourceError(f"{source}: is live; the page takes files and folders of frames")
        self.info, self._source, self.folder, self._limit = opened.info, opened, folder, limit_bytes
        self.kept: list[tuple[int, float, str]] = []  # number in the source, time in seconds and name of each frame
        self.done, self.note = False, ""
        self._bytes = 0
        self._closed = threading.Event()
        self._grown = threading.Condition()
        self._thread = threading.Thread(target=self._decode, args=(opened,), name="vosrt-frames", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Number of frames that can be read."""
        return len(self.kept)

    def jpeg(self, position: int) -> bytes:
        """A frame as JPEG.

        Raises:
            InputError: there is no such frame, or not yet.
        """
        if not 0 <= position < len(self.kept):
            raise InputError(f"frame {position} is not there; expected 0 to {len(self.kept) - 1}")
        return self._path(position).read_bytes()

    def image(self, position: int) -> U8Array:
        """A frame, u8 [H, W, 3] BGR.

        Raises:
            InputError: as for :meth:`jpeg`.
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
        for path in self.folder.glob("*.jpg"):
            with suppress(OSError):
                path.unlink()

    def _path(self, position: int) -> Path:
        return self.folder / f"{position:07d}.jpg"

    def _decode(self, source: FrameSource) -> None:
        try:
            for frame in source:
                if self._closed.is_set():
                    return
                data = cv2.imencode(".jpg", frame.image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
                if self._bytes + len(data) > self._limit:
                    self.note = (
                        f"only the first {len(self.kept)} frames are open: they take {self._limit >> 20} MB; "
                        "--cache-mb raises that"
                    )
                    return
                self._path(len(self.kept)).write_bytes(data)
                self._bytes += len(data)
                with self._grown:
                    self.kept.append((frame.index, frame.time_s, frame.name))
                    self._grown.notify_all()
            self.note = "; ".join(source.warnings)
        except (VosrtError, OSError) as error:
            self.note = str(error)
        finally:
            source.close()
            with self._grown:
                self.done = True
                self._grown.notify_all()
