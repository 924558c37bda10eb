"""The newest picture of a live source, and the pictures that were kept of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vosrt.errors import VosrtError
from vosrt.page.frames import FrameStore, as_jpeg
from vosrt.types import U8Array
from vosrt.video.base import FrameSource
from vosrt.video.fitted import fitted

_SHOWN = 32  # pictures that pages were shown last, of which one may be frozen
_MOST = 20_000  # frames that are kept, at most
_FROZEN_EVERY_S = 0.1  # while a picture is frozen
_FROZEN_S = 60.0  # longer marking leaves a hole
_MEASURED = 300  # frames whose latency is told
_RETRY_S = 1.0
_CLOSING_S = 2.0  # a thread that waits for a camera which is gone is not waited for longer


class LiveFrames(FrameStore):
    """A live source: its newest picture can be looked at, frozen or followed; what was kept can be read again.

    A thread takes every picture and forgets it when the next one comes, so that every reader gets the
    newest. Pictures are kept where they are frozen or followed, and ten a second after one was frozen: following
    starts there, and catches up through those. Where more are kept than fit, the oldest go.

    A source that ends or fails is opened again, as often as it takes. Where its pictures have another size then, they
    are fitted into the first one, so that the objects are followed on.

    Args:
        folder: empty; takes a file per frame that is kept.
        limit_bytes: of all files.
        reopen: opens the source again; raises a `VosrtError` where that fails.

    Attributes:
        reconnects: how often the source was opened again.
        keep_every_s: while above 0, a picture is kept whenever so many seconds have passed.
        number: of the newest picture, from 1.
    """

    def __init__(
        self, opened: FrameSource, folder: Path, *, limit_bytes: int, reopen: Callable[[], FrameSource]
    ) -> None:
        self.reconnects, self.number, self.keep_every_s = 0, 0, 0.0
        self._reopen = reopen
        self._newest, self._newest_s, self._began_s = opened.first.image, 0.0, time.monotonic()
        self._frozen_s = self._kept_s = 0.0
        self._shown: deque[tuple[int, float, bytes]] = deque(maxlen=_SHOWN)
        super().__init__(opened, folder, limit_bytes=limit_bytes)

    @property
    def fps(self) -> float:
        """Frames a second, when the kept ones are played: how fast they were kept."""
        kept = self.kept[self.oldest :]
        return (len(kept) - 1) / max(kept[-1][1] - kept[0][1], 1e-3) if len(kept) > 1 else self.info.fps

    def look(self, after: int, seconds: float) -> tuple[int, bytes] | None:
        """Wait for a picture that is newer than another.

        Args:
            after: number of the other.
            seconds: to wait, at most.

        Returns:
            Number and JPEG of the newest picture; None if none came.
        """
        with self._grown:
            if not self._grown.wait_for(lambda: self.number > after, seconds):
                return None
            if not self._shown or self._shown[-1][0] != self.number:
                self._shown.append((self.number, self._newest_s, as_jpeg(self._newest)))
            return self._shown[-1][0], self._shown[-1][2]

    def freeze(self, number: int) -> int:
        """Keep a picture that was shown, and from now on what comes after it.

        Args:
            number: of the picture; of one that is gone, the next one is taken.

        Returns:
            Its position.
        """
        with self._grown:
            shown = next((each for each in self._shown if each[0] >= number), None)
            if shown is not None and (not self.kept or shown[0] > self.kept[-1][0]):
                self._store(shown[2], shown[0], shown[1])
            elif not self.kept:
                self._store(as_jpeg(self._newest), self.number, self._newest_s)
            self.hold()
            return len(self.kept) - 1

    def hold(self) -> None:
        """Keep ten pictures a second for a while, so that following can go on from the last one that was kept."""
        self.keep_every_s, self._frozen_s = _FROZEN_EVERY_S, time.monotonic()

    def reach(self, position: int, seconds: float) -> bool:
        """Wait until a frame is kept; the newest picture becomes the next one.

        Args:
            seconds: to wait, at most.

        Returns:
            Whether it is kept.
        """
        with self._grown:
            if position >= len(self.kept):
                self.keep_every_s = 0.0
                last = self.kept[-1][0] if self.kept else 0
                if not self._grown.wait_for(lambda: self.number > last, seconds):
                    return False
                self._store(as_jpeg(self._newest), self.number, self._newest_s)
        return True

    def age_ms(self, position: int) -> float:
        """Milliseconds since a frame was decoded."""
        return (time.monotonic() - self._began_s - self.kept[position][1]) * 1e3

    def close(self) -> None:
        """Stop reading and remove the files."""
        self._closed.set()
        self._thread.join(_CLOSING_S)
        self._remove()

    def _store(self, jpeg: bytes, number: int, taken_s: float) -> None:
        self._kept_s = taken_s
        self._keep(jpeg, number, taken_s - self._began_s, f"{number:07d}")
        while self._bytes > self._limit or len(self.kept) - self.oldest > _MOST:
            path = self._path(self.oldest)
            self._bytes -= path.stat().st_size
            path.unlink()
            self.oldest += 1

    def _take(self, image: U8Array) -> None:
        now = time.monotonic()
        image = fitted(image, self.info.height, self.info.width)
        with self._grown:
            if now - self._frozen_s > _FROZEN_S and self.keep_every_s == _FROZEN_EVERY_S:
                self.keep_every_s = 0.0
            self._newest, self._newest_s, self.number = image, now, self.number + 1
            if self.keep_every_s and now - self._kept_s >= self.keep_every_s:
                self._store(as_jpeg(image), self.number, now)
            self._grown.notify_all()

    def _decode(self, source: FrameSource) -> None:
        again: FrameSource | None = source
        while again is not None:
            try:
                for frame in again:
                    self._take(frame.image)
                    if self._closed.is_set():
                        break
                self.note = "the source ended; trying again …"
            except (VosrtError, OSError) as error:
                self.note = f"{error}; trying again …"
            finally:
                again.close()
            again = self._again()
        with self._grown:
            self.done = True
            self._grown.notify_all()

    def _again(self) -> FrameSource | None:
        """Open the source again, when that is possible; None where the page closed it."""
        while not self._closed.wait(_RETRY_S):
            try:
                source = self._reopen()
            except (VosrtError, OSError) as error:
                self.note = f"{error}; trying again …"
                continue
            height, width = source.first.image.shape[:2]
            changed = (height, width) != (self.info.height, self.info.width)
            shown = f"pictures are {width}×{height} now, and shown as {self.info.width}×{self.info.height}"
            self.note = shown if changed else ""
            self.reconnects += 1
            return source
        return None


class Pace:
    """How far following is behind, over the newest frames."""

    def __init__(self) -> None:
        self._ages_ms: deque[float] = deque(maxlen=_MEASURED)
        self._ended_s: deque[float] = deque(maxlen=_MEASURED)
        self.frames = 0

    def add(self, age_ms: float) -> None:
        """Take a result that came so long after its picture was decoded."""
        self._ages_ms.append(age_ms)
        self._ended_s.append(time.monotonic())
        self.frames += 1

    def figures(self) -> dict[str, float]:
        """Frames so far, and frames a second and milliseconds from picture to result, median and 95th percentile."""
        if len(self._ages_ms) < 2:
            return {"frames": self.frames}
        p50, p95 = np.percentile(self._ages_ms, (50, 95))
        fps = (len(self._ended_s) - 1) / max(self._ended_s[-1] - self._ended_s[0], 1e-6)
        numbers = {"fps": fps, "p50_ms": float(p50), "p95_ms": float(p95)}
        return {"frames": self.frames, **{name: round(value, 1) for name, value in numbers.items()}}
