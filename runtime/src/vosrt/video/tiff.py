"""Stacks of TIFF pages, as microscopes and thermal cameras write them, as videos."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vosrt.errors import BrokenVideoError, MissingExtraError, SourceError, VosrtError
from vosrt.text import counted
from vosrt.video.base import Frame, FrameRange, SourceInfo, SourceOptions, check_pixels
from vosrt.video.images import FOLDER_FPS, deep_image
from vosrt.video.levels import Levels

EXTRA = "tiff"

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # or it prints what the reader's error says better


def tifffile_version() -> str:
    """Return the version of the package that reads TIFF stacks.

    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec("tifffile") is None:
        raise MissingExtraError("tifffile, which reads TIFF stacks,", EXTRA)
    return importlib.metadata.version("tifffile")


class _Said(logging.Handler):
    """Keeps what tifffile logs of pages that are missing, which it leaves out and else would print."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line; see `logging.Handler`."""
        if "invalid page offset" in record.getMessage() or "invalid offset to page" in record.getMessage():
            self.lines.append(record.getMessage())


class TiffSource:
    """Pages of a TIFF file as frames: grey or RGB, integers or floats of any depth.

    Args:
        path: the file; ImageJ's and OME's stacks too. Every plane is a frame; of a series in time that has several
            channels or depths, those of the first.

    Raises:
        MissingExtraError: tifffile is not installed.
        SourceError: it cannot be read, or its pages differ in size.
    """

    def __init__(
        self,
        path: Path,
        frames: FrameRange = FrameRange(),  # noqa: B008 (frozen)
        options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
    ) -> None:
        tifffile_version()
        import tifffile

        self._path, self._range = path, frames
        self._said = _Said()
        logging.getLogger("tifffile").addHandler(self._said)
        self._levels = Levels.of(options.levels)
        self._why = ""
        try:
            self._file = tifffile.TiffFile(path)
            try:
                self._open(options.max_megapixels)
            except BaseException:
                self._file.close()
                raise
        except BaseException as error:
            self._forget()
            if isinstance(error, VosrtError) or not isinstance(error, Exception):
                raise
            words = " ".join(str(error).split()) or type(error).__name__  # of tifffile and of many codecs
            raise SourceError(f"{path}: cannot be opened as TIFF ({words}); expected a whole stack") from error

    def _forget(self) -> None:
        logging.getLogger("tifffile").removeHandler(self._said)

    def _open(self, max_megapixels: float) -> None:
        self._series = self._file.series[0]
        # Pages that were appended one by one are a series each; thumbnails are series of another shape.
        same = self._series.shape, self._series.dtype
        self._alike = [each for each in self._file.series if (each.shape, each.dtype) == same]
        axes, shape = self._series.axes, self._series.shape
        kind = next((kind for kind in ("SYX", "YXS", "YX") if axes.endswith(kind)), None)
        if kind is None or self._series.dtype.kind not in "buif":
            raise SourceError(f"{self._path}: its pages are {self._series.dtype} {axes}; expected grey or RGB planes")
        self._plane = shape[-len(kind) :]
        self._planar = kind == "SYX"
        height, width = self._plane[kind.index("Y")], self._plane[kind.index("X")]
        check_pixels(str(self._path), width, height, max_megapixels)
        axes, shape = axes[: -len(kind)], shape[: -len(kind)]
        self._in_series, self._step = math.prod(shape), 1
        several = [f"{name} {size}" for name, size in zip(axes, shape, strict=True) if size > 1]
        self._notes = []
        if several[1:]:
            read = "each is a frame"
            if "T" in axes and (times := shape[axes.index("T")]) > 1:
                # Neighbouring planes of other channels and depths do not look alike.
                self._in_series, self._step = times, math.prod(shape[axes.index("T") + 1 :])
                others = " and ".join(name for name in axes if name != "T" and shape[axes.index(name)] > 1)
                read = f"the first of {others} are the frames; save others as a stack of their own to follow in them"
            self._notes = [f"{self._path}: holds {' × '.join(several)} planes; {read}"]
        count = self._in_series * len(self._alike)
        planes = range(count)[self._range.start : self._range.end]
        if not planes:
            raise SourceError(
                f"{self._path}: has {counted(count, 'frame')}; frame {self._range.start} (--start) is past the end"
            )
        if len(self._alike) < len(self._file.series):
            self._notes.append(f"{self._path}: pages of another size than {width}×{height} are left out")
        # Stacks that ImageJ wrote have the entry of one page and the data of all.
        whole = len(self._alike) == 1 and self._series.dataoffset is not None
        self._mapped = self._map(math.prod(shape)) if whole else None
        self._images = self._levels.ahead(map(self._read, planes), deep_image)
        try:
            self.first = self._frame(planes[0])
        except BrokenVideoError as error:
            raise SourceError(str(error)) from error
        self._rest = planes[1:]
        self.info = SourceInfo(name=str(self._path), width=width, height=height, fps=self._fps, frame_count=len(planes))

    def __iter__(self) -> Iterator[Frame]:
        """Yield the pages in order; see `FrameSource`."""
        yield self.first
        for index in self._rest:
            yield self._frame(index)
        if self._said.lines and self._range.end is None:
            at = self.info.frame_count or 0
            raise BrokenVideoError(f"{self._path}: the stack ends at page {at} ({self._said.lines[0]})", at)

    @property
    def warnings(self) -> Sequence[str]:
        """Return how planes were counted and values are shown; see `FrameSource`."""
        return self._notes + self._levels.note(str(self._path))

    def close(self) -> None:
        """Close the file; see `FrameSource`."""
        self._file.close()
        self._forget()

    @property
    def _fps(self) -> float:
        """Frames per second that ImageJ noted, or else those of a folder of images, which has none either."""
        noted = self._file.imagej_metadata or {}
        with suppress(TypeError, ValueError, ZeroDivisionError):
            fps = float(noted["fps"]) if "fps" in noted else 1 / float(noted.get("finterval", 0))
            if 0 < fps < math.inf:
                return fps
        return FOLDER_FPS

    def _frame(self, index: int) -> Frame:
        image = next(self._images)
        if image is None:
            raise BrokenVideoError(f"{self._path}: page {index} cannot be read ({self._why})", index)
        return Frame(self._levels.to_bgr(image), index, index / self._fps, f"{index:05d}")

    def _map(self, count: int) -> NDArray[Any] | None:
        """Return all planes as they lie in the file; None where it ends too early."""
        try:
            dtype = self._series.dtype.newbyteorder(self._file.byteorder)
            return np.memmap(self._path, dtype, "r", self._series.dataoffset or 0, (count, *self._plane))
        except ValueError:
            return None

    def _page(self, index: int) -> NDArray[Any]:
        page = self._alike[index // self._in_series].pages[index % self._in_series * self._step]
        if page is None:
            raise ValueError("it is missing")
        return page.asarray()

    def _read(self, index: int) -> NDArray[Any] | None:
        """Read one plane as [H, W] or BGR [H, W, 3]; None where that fails, of which ``_why`` tells."""
        try:
            plane = self._page(index) if self._mapped is None else self._mapped[index * self._step]
        except Exception as error:  # tifffile's, those of many codecs, and IndexError
            self._why = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, IndexError) or self._why.startswith("failed to read"):
                self._why = "the file ends before it: was it cut off?"
            return None
        if plane.shape != self._plane:
            self._why = f"it is {plane.shape}; expected {self._plane}"
            return None
        if plane.dtype == bool:
            plane = plane * np.uint8(255)
        if plane.ndim == 2:
            return np.asarray(plane)
        return np.asarray(np.moveaxis(plane, 0, -1) if self._planar else plane)[..., 2::-1]
