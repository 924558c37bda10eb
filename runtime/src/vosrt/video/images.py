"""A folder of images as a video."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from vosrt._reading import IMAGE_BYTES, RefusedFileError, open_image, read_bytes
from vosrt.errors import BrokenVideoError, SourceError
from vosrt.text import counted
from vosrt.types import U8Array
from vosrt.video.base import Frame, FrameRange, SourceInfo, SourceOptions, check_pixels
from vosrt.video.levels import Levels

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pnm"}
)
# Pictures that OpenCV may fail to read: a warning names them, because frames may be missing.
_OTHER_PICTURES = re.compile(
    r"\.(arw|avif|cr[23]|dng|dpx|exr|gif|hdr|hei[cf]|hif|j2k|jp2|jxl|nef|orf|p[bf]m|psd|qoi|raf|rw2|sgi|tga)",
    re.IGNORECASE,
)
FOLDER_FPS = 24.0  # what DAVIS plays at; images carry no rate


def natural_key(path: Path) -> tuple[tuple[int, int | str], ...]:
    """Sort key that puts ``frame2`` before ``frame10``."""
    parts = re.split(r"(\d+)", path.stem.lower())
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts if part)


def list_images(folder: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Return the image files of a folder in natural order, hidden files excluded.

    Raises:
        SourceError: the folder cannot be listed, or two files share a stem (results would overwrite each other).
    """
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != "."]
    except OSError as error:
        raise SourceError(f"{folder}: cannot be listed ({error.strerror})") from error
    files.sort(key=natural_key)
    stems: dict[str, Path] = {}
    for path in files:
        if path.stem in stems:
            raise SourceError(f"{folder}: {stems[path.stem].name} and {path.name} share a name; expected one of them")
        stems[path.stem] = path
    return files


def _left_out(folder: Path) -> str | None:
    """Name the pictures of a folder that cannot be frames because of their kind, or return None."""
    names = sorted(path.name for path in folder.iterdir() if _OTHER_PICTURES.fullmatch(path.suffix))
    names = [name for name in names if name[0] != "."]
    if not names:
        return None
    return f"{len(names)} {'picture' if len(names) == 1 else 'pictures'} of another kind ({names[0]})"


class ImageFolderSource:
    """Frames of a folder, in natural order of the file names.

    Raises:
        SourceError: the folder holds no image, one is damaged, or they differ in size.
    """

    def __init__(
        self,
        folder: Path,
        frames: FrameRange = FrameRange(),  # noqa: B008 (frozen)
        options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
    ) -> None:
        files = list_images(folder)
        left_out = _left_out(folder)
        if not files:
            kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
            found = f", only {left_out}" if left_out else ""
            raise SourceError(f"{folder}: holds no images{found}; expected frames as {kinds}")
        self._left_out = [f"{folder}: {left_out} left out; expected frames of one kind"] if left_out else []
        self._start = frames.start
        self._files = files[frames.start : frames.end]
        if not self._files:
            raise SourceError(
                f"{folder}: has {counted(len(files), 'frame')}; frame {frames.start} (--start) is past the end"
            )
        _check_sizes(self._files, options.max_megapixels)
        if _has_pages(self._files[0]):
            pages = "holds several pages, of which the first is read; give the file itself to read all"
            self._left_out.append(f"{self._files[0]}: {pages}")
        self._name, self._levels = str(folder), Levels.of(options.levels)
        self._images = self._levels.ahead(map(read_image, self._files), deep_image)
        image = self._next()
        if image is None:
            raise SourceError(f"{self._files[0]}: cannot be read as an image")
        self.first = self._frame(0, image)
        height, width = image.shape[:2]
        self.info = SourceInfo(
            name=str(folder),
            width=width,
            height=height,
            fps=FOLDER_FPS,
            frame_count=len(self._files),
            stems=tuple(path.stem for path in files),
        )

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in order; see `FrameSource`."""
        yield self.first
        for offset, path in enumerate(self._files[1:], start=1):
            index = self._start + offset
            image = self._next()
            if image is None:
                raise BrokenVideoError(f"{path}: frame {index} cannot be read as an image", index)
            if image.shape != self.first.image.shape:  # turned by its EXIF tag: the headers agree
                raise BrokenVideoError(
                    f"{path}: frame {index} is {image.shape[1]}×{image.shape[0]} but the first frame is "
                    f"{self.info.width}×{self.info.height}; expected one size in a folder",
                    index,
                )
            yield self._frame(offset, image)

    @property
    def warnings(self) -> Sequence[str]:
        """Pictures that were left out, and how values of more than 8 bits are shown; see `FrameSource`."""
        return self._left_out + self._levels.note(self._name)

    def _next(self) -> U8Array | None:
        image = next(self._images)
        return None if image is None else self._levels.to_bgr(image)

    def _frame(self, offset: int, image: U8Array) -> Frame:
        index = self._start + offset
        return Frame(image, index, index / FOLDER_FPS, self._files[offset].stem)

    def close(self) -> None:
        """Do nothing: each file is closed after it is read."""


def deep_image(image: NDArray[Any] | None) -> NDArray[Any] | None:
    """Return ``image`` if its values have more than 8 bits, else None."""
    return None if image is None or image.dtype == np.uint8 else image


def _check_sizes(files: list[Path], max_megapixels: float) -> None:
    """Compare the sizes in the files' headers, so that a wrong one is found before any work is done."""
    first: tuple[int, int] | None = None
    for path in files:
        size = _size(path)
        if first is None:
            first = size
            check_pixels(str(path), *size, max_megapixels)
        if size != first:
            raise SourceError(
                f"{path}: is {size[0]}×{size[1]} but {files[0].name} is {first[0]}×{first[1]}; "
                "expected frames of one size"
            )


def _has_pages(path: Path) -> bool:
    """Return whether a TIFF file is a stack."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    with suppress(OSError, ValueError, EOFError), open_image(path) as image:
        image.seek(1)
        return True
    return False


def _size(path: Path) -> tuple[int, int]:
    """Return width and height by a file's header."""
    try:
        with open_image(path) as image:
            return image.size
    except RefusedFileError as error:
        raise SourceError(f"{path}: {error.strerror}") from error
    except UnidentifiedImageError as error:  # its text names an object of Python
        raise SourceError(f"{path}: cannot be read as an image; expected a whole frame") from error
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read as an image ({error}); expected a whole frame") from error


def read_image(path: Path) -> NDArray[Any] | None:
    """Read an image as BGR u8 [H, W, 3], upright by its EXIF tag; None where that is impossible.

    One whose values have more than 8 bits stays as it is: u16, float … [H, W], [H, W, 3] or [H, W, 4].
    """
    try:
        data = np.frombuffer(read_bytes(path, IMAGE_BYTES), np.uint8)
    except OSError:
        return None
    if not data.size:
        return None
    # imdecode and not imread: it takes any path, and does not print where a file is damaged.
    try:
        deep = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if _may_be_deep(data[:64].tobytes()) else None
        if deep is not None and deep.dtype != np.uint8:
            return deep
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if image is None else np.asarray(image, np.uint8)


def _may_be_deep(head: bytes) -> bool:
    """Return whether the values of an image file can have more than 8 bits: a TIFF, 16-bit PNG or PNM."""
    if head.startswith(b"\x89PNG"):
        return head[24:25] == b"\x10"
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") or head[:2] in (b"P2", b"P3", b"P5", b"P6")
