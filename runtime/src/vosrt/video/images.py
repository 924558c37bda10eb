"""A folder of images as a video."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vosrt.errors import BrokenVideoError, SourceError
from vosrt.types import U8Array
from vosrt.video.base import Frame, FrameRange, SourceInfo

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
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


class ImageFolderSource:
    """Frames of a folder, in natural order of the file names.

    Args:
        folder: where the images are.
        frames: the part that is wanted.

    Raises:
        SourceError: there is no image, one is not an image, or they differ in size.
    """

    def __init__(self, folder: Path, frames: FrameRange = FrameRange()) -> None:  # noqa: B008 (frozen)
        files = list_images(folder)
        if not files:
            kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
            raise SourceError(f"{folder}: holds no images; expected frames as {kinds}")
        self._start = frames.start
        self._files = files[frames.start : frames.end]
        if not self._files:
            raise SourceError(f"{folder}: has {len(files)} frames; frame {frames.start} (--start) is past the end")
        _check_sizes(self._files)
        image = _read(self._files[0])
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
            image = _read(path)
            if image is None:
                raise BrokenVideoError(f"{path}: frame {index} cannot be read as an image", index)
            if image.shape != self.first.image.shape:  # turned by its EXIF tag: the headers agree
                raise BrokenVideoError(
                    f"{path}: frame {index} is {image.shape[1]}×{image.shape[0]} but the first frame is "
                    f"{self.info.width}×{self.info.height}; expected one size in a folder",
                    index,
                )
            yield self._frame(offset, image)

    def _frame(self, offset: int, image: U8Array) -> Frame:
        index = self._start + offset
        return Frame(image, index, index / FOLDER_FPS, self._files[offset].stem)

    def close(self) -> None:
        """Nothing to release: each file is closed after it is read."""


def _check_sizes(files: list[Path]) -> None:
    """Compare the sizes in the files' headers, so that a wrong one is found before any work is done."""
    first: tuple[int, int] | None = None
    for path in files:
        try:
            with Image.open(path) as image:
                size = image.size
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise SourceError(f"{path}: cannot be read as an image; expected a whole frame") from error
        first = first or size
        if size != first:
            raise SourceError(
                f"{path}: is {size[0]}×{size[1]} but {files[0].name} is {first[0]}×{first[1]}; "
                "expected frames of one size"
            )


def _read(path: Path) -> U8Array | None:
    """Read an image as BGR u8 [H, W, 3], upright by its EXIF tag; None where that is impossible."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError:
        return None
    if not data.size:
        return None
    # imdecode and not imread: it takes any path, and does not print where a file is damaged.
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if image is None else np.asarray(image, np.uint8)
