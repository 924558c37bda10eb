"""One clip of a batch, in a process that keeps its model for the next one."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import threading
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from vosrt._reading import read_json
from vosrt.cli.app import guarded
from vosrt.cli.preview import FIRST
from vosrt.cli.results import SUMMARY
from vosrt.cli.segment import Request, segment
from vosrt.cli.stores import fetched
from vosrt.errors import VosrtError
from vosrt.video.source import open_source

if TYPE_CHECKING:
    from vosrt.model import Model

_PICTURE_HEIGHT, _PICTURE_QUALITY = 120, 80
_AT = (0.0, 0.5, 1.0)  # of the frames, those that the picture of a clip shows
_STDERR_LINES = 3


@dataclass(frozen=True)
class Outcome:
    """What became of a clip.

    Attributes:
        code: exit code of ``vos-run``.
        error: one line; "" where the code is 0.
        summary: content of ``summary.json``, empty where none was written.
        picture: JPEG of some results side by side; empty without results.
    """

    code: int
    error: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    picture: bytes = b""


class ClipWorker:
    """Runs clips one after the other with one model."""

    def __init__(self) -> None:
        self._kept: tuple[tuple[Any, ...], Model] | None = None

    def run(self, request: Request) -> Outcome:
        """Run ``vos-run`` for one clip; nothing is printed.

        Args:
            request: whose ``json`` is set, so that errors can be read.
        """
        said, noted = io.StringIO(), io.StringIO()
        with redirect_stdout(said), redirect_stderr(noted):
            code = guarded(partial(self._segment, request), ["--json"], "vos-run")
        if code:
            return Outcome(code, _error_in(said.getvalue()) or _last(noted.getvalue()) or f"exit code {code}")
        summary = read_json(request.out / SUMMARY)
        return Outcome(code, "", summary, _picture(request.out, summary))

    def _segment(self, request: Request) -> int:
        with fetched(request) as local:
            return segment(local, self._load)

    def _load(self, request: Request) -> Model:
        key = (
            request.bundle,
            request.engine,
            request.precision,
            request.threads,
            request.device,
            request.isolated,
            request.segmenter,
        )
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # two models at once would need the memory of two
            self._kept = key, request.load()
        return self._kept[1]


_worker: ClipWorker | None = None


def begin(cores: frozenset[int]) -> None:
    """Prepare a process of a pool: it stays on its cores and ends with its parent."""
    global _worker
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    for number in (signal.SIGINT, signal.SIGTERM):  # between two clips; inside one, `handled` finishes its files
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = ClipWorker()


def run_clip(request: Request) -> Outcome:
    """Run one clip in a process that `begin` prepared."""
    assert _worker is not None
    return _worker.run(request)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _error_in(text: str) -> str:
    """The error in the JSON that a command printed."""
    with suppress(ValueError, IndexError):
        document = json.loads(text.splitlines()[-1])
        return str(document.get("error") or "")
    return ""


def _last(text: str) -> str:
    return " ".join(text.split("\n")[-_STDERR_LINES:]).strip().removeprefix("error: ")


def _picture(out: Path, summary: dict[str, Any]) -> bytes:
    """Some frames of the overlay in a row, or the first picture where no overlay was written."""
    overlays = [name for name in summary["files"] if name.startswith("overlay.")]
    with suppress(VosrtError, OSError, cv2.error):  # a picture for the report is no reason to fail
        if not overlays:
            return (out / FIRST).read_bytes()
        frames = sorted({round(part * max(0, summary["frames"] - 1)) for part in _AT})
        row = np.hstack([_frame(out / overlays[0], index) for index in frames])
        return cv2.imencode(".jpg", row, [cv2.IMWRITE_JPEG_QUALITY, _PICTURE_QUALITY])[1].tobytes()
    return b""


def _frame(video: Path, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    source = open_source(str(video), start=index, end=index + 1)
    try:
        image = source.first.image
    finally:
        source.close()
    width = max(1, round(image.shape[1] * _PICTURE_HEIGHT / image.shape[0]))
    return np.asarray(cv2.resize(image, (width, _PICTURE_HEIGHT), interpolation=cv2.INTER_AREA), np.uint8)
