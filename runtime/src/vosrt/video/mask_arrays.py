"""Label images as arrays: NumPy's files, and TIFF files of 64 bits, which no image library of the runtime opens."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vosrt._reading import IMAGE_BYTES, check_regular
from vosrt.errors import MaskError
from vosrt.video.tiff import tifffile_version

_NUMPY, _ZIP, _TIFF = b"\x93NUMPY", b"PK\x03\x04", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
Check = Callable[[tuple[int, ...], Any], None]
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_array(path: Path, width: int, height: int) -> NDArray[Any] | None:
    """Read a mask that is no image.

    Args:
        path: an ``.npy`` file, an ``.npz`` file of one array, or a TIFF file of one plane.
        width: expected width in pixels.
        height: expected height in pixels.

    Returns:
        Numbers or bool [height, width], axes of length 1 beside them left out; None if it is no such file.

    Raises:
        MaskError: another shape, several arrays, or pickled objects.
        MissingExtraError: a TIFF file, and tifffile is not installed.
        OSError, ValueError: it is damaged.
    """
    check_regular(path, IMAGE_BYTES)

    def check(shape: tuple[int, ...], dtype: Any) -> None:
        _check(path, shape, dtype, width, height)

    array = open_numpy(path, check)
    if array is None:
        with path.open("rb") as file:
            if file.read(4) not in _TIFF:
                return None
        array = _read_tiff(path, check)
    return np.asarray(array).reshape(height, width)


def open_numpy(path: Path, check: Check) -> NDArray[Any] | None:
    """Open an array of NumPy.

    Args:
        path: an ``.npy`` file, whose array stays in the file, or an ``.npz`` file of one array, which is read.
        check: called with shape and dtype before memory is allocated; raises where they are not those expected.

    Returns:
        The array, read-only where it stays in the file; None if it is no such file.

    Raises:
        MaskError: several arrays.
        OSError, ValueError: it is damaged, or holds pickled objects.
    """
    with path.open("rb") as file:
        head = file.read(6)
    if head == _NUMPY:
        # A map of the file, unlike an array, cannot be larger than the file.
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        check(array.shape, array.dtype)
        return array
    return _read_npz(path, check) if head[:4] == _ZIP else None


def _read_npz(path: Path, check: Check) -> NDArray[Any] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            if not names:
                return None
            if len(names) > 1:
                raise MaskError(f"{path}: holds {len(names)} arrays ({', '.join(names[:3])}); expected one array")
            with archive.open(names[0]) as member:
                shape, _, dtype = _HEADERS[np.lib.format.read_magic(member)](member)
                check(shape, dtype)
            with archive.open(names[0]) as member:
                array: NDArray[Any] = np.lib.format.read_array(member)
            return array
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _read_tiff(path: Path, check: Check) -> NDArray[Any]:
    tifffile_version()
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            check(series.shape, series.dtype)
            array: NDArray[Any] = series.asarray()
            return array
    except MaskError:
        raise
    except Exception as error:  # tifffile's, and those of many codecs
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _check(path: Path, shape: tuple[int, ...], dtype: Any, width: int, height: int) -> None:
    sides = tuple(size for size in shape if size != 1)
    if sides != tuple(size for size in (height, width) if size != 1):
        shown = "×".join(map(str, shape))
        raise MaskError(
            f"{path}: holds an array of {shown}; expected {height}×{width} numbers, as the frames have pixels"
        )
    if dtype is None or dtype.kind not in "buif":
        raise MaskError(f"{path}: holds {dtype}, not numbers; expected an array of integers, 0 = background, 1, 2, …")
