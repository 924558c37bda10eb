"""Arrays in NumPy's files, as programs for microscopy save them, as videos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vosrt._reading import WEIGHTS_BYTES, check_regular
from vosrt.errors import MaskError, SourceError
from vosrt.text import counted
from vosrt.video.base import Frame, FrameRange, SourceInfo, SourceOptions, check_pixels
from vosrt.video.images import FOLDER_FPS, deep_image
from vosrt.video.levels import Levels
from vosrt.video.mask_arrays import open_numpy

_PACKED_BYTES = 4 << 30  # of an .npz file in memory; an .npy file stays on the disk


class NumpySource:
    """Frames of an array [T, H, W], or RGB [T, H, W, 3]; axes of length 1 may be more or fewer.

    Args:
        path: an ``.npy`` file, or an ``.npz`` file of one array: bool, integers or floats.

    Raises:
        SourceError: it cannot be read, or is of another shape.
    """

    def __init__(
        self,
        path: Path,
        frames: FrameRange = FrameRange(),  # noqa: B008 (frozen)
        options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
    ) -> None:
        self._path, self._megapixels = path, options.max_megapixels
        try:
            check_regular(path, WEIGHTS_BYTES)
            array = open_numpy(path, self._check)
        except MaskError as error:
            raise SourceError(str(error)) from error
        except (OSError, ValueError) as error:
            words = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise SourceError(f"{path}: cannot be read as an array ({words}); expected a whole file") from error
        if array is None:
            raise SourceError(f"{path}: is no file of NumPy; expected what numpy.save or numpy.savez wrote")
        self._planes = array.reshape(-1, *self._plane(array.shape))
        numbers = range(len(self._planes))[frames.start : frames.end]
        if not numbers:
            raise SourceError(
                f"{path}: has {counted(len(self._planes), 'frame')}; frame {frames.start} (--start) is past the end"
            )
        self._levels = Levels.of(options.levels)
        self._images = self._levels.ahead(map(self._read, numbers), deep_image)
        self._rest = numbers[1:]
        self.first = self._frame(numbers[0])
        height, width = self._planes.shape[1:3]
        self.info = SourceInfo(name=str(path), width=width, height=height, fps=FOLDER_FPS, frame_count=len(numbers))

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in order; see `FrameSource`."""
        yield self.first
        yield from map(self._frame, self._rest)

    @property
    def warnings(self) -> Sequence[str]:
        """Return how values are shown; see `FrameSource`."""
        return self._levels.note(str(self._path))

    def close(self) -> None:
        """Do nothing: the map of the file goes with its last frame."""

    def _check(self, shape: tuple[int, ...], dtype: Any) -> None:
        plane = self._plane(shape)
        outer = [size for size in shape[: len(shape) - len(plane)] if size != 1]
        if len(plane) < 2 or len(outer) > 1 or 0 in shape or dtype.kind not in "buif":
            shown = "×".join(map(str, shape)) or "one number"
            raise SourceError(
                f"{self._path}: holds {dtype} {shown}; expected numbers as frames × height × width, or × 3 for RGB"
            )
        check_pixels(str(self._path), plane[1], plane[0], self._megapixels)
        if self._path.suffix.lower() == ".npz" and np.prod(shape, dtype=float) * dtype.itemsize > _PACKED_BYTES:
            raise SourceError(f"{self._path}: unpacks to more than 4 GiB; save it with numpy.save, as .npy")

    @staticmethod
    def _plane(shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the axes of one frame."""
        return shape[-3:] if len(shape) > 2 and shape[-1] in (1, 3, 4) else shape[-2:]

    def _read(self, index: int) -> NDArray[Any]:
        """Read one frame as [H, W] or BGR [H, W, 3]."""
        plane = np.asarray(self._planes[index])
        if plane.dtype == bool:
            plane = plane * np.uint8(255)
        return plane if plane.ndim == 2 else plane[..., 0] if plane.shape[2] == 1 else plane[..., 2::-1]

    def _frame(self, index: int) -> Frame:
        return Frame(self._levels.to_bgr(next(self._images)), index, index / FOLDER_FPS, f"{index:05d}")
