"""Reading masks: image files, and folders of them as DAVIS and YouTube-VOS lay them out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vosrt.errors import MaskError
from vosrt.types import MAX_OBJECT_ID, U8Array
from vosrt.video.base import SourceInfo
from vosrt.video.images import list_images

MASK_SUFFIXES = frozenset({".png", ".bmp", ".tif", ".tiff", ".gif", ".pgm"})

_INDEX_MODES = ("P", "L", "1", "I", "I;16", "I;16B", "I;16L")
_HOW_TO_SAVE = "save an 8-bit palette or greyscale PNG whose pixel values are object numbers (0 = background, 1, 2, …)"
# An antialiased black-and-white drawing has shades of grey along its edges and almost nowhere else.
_SHADES, _PURE_SHARE = 8, 0.9


def read_mask(path: Path, width: int, height: int) -> U8Array:
    """Read a palette, index or binary image as object ids.

    A mask that holds nothing but 0 and its format's white (255 or 65535) is binary: white means object 1.

    Args:
        path: an image file without lossy compression.
        width: expected width in pixels, that of the frames.
        height: expected height in pixels.

    Returns:
        u8 [height, width]; may be empty (all background).

    Raises:
        MaskError: not an image, of colours, of another size, or with ids above 255.
    """
    return read_single_mask(path, width, height)[0]


def read_single_mask(path: Path, width: int, height: int) -> tuple[U8Array, bool]:
    """Like :func:`read_mask`, and whether the pixel values number the objects (a binary mask numbers none)."""
    values = _read_values(path)
    if values.shape != (height, width):
        raise MaskError(
            f"{path}: the mask is {values.shape[1]}×{values.shape[0]} but the frames are {width}×{height}; "
            "expected the same size"
        )
    ids = _distinct(values)
    if ids[-1] in (255, 65535) and not ids[:-1].any():
        return (values > 0).astype(np.uint8), False
    objects = int(np.count_nonzero(ids))
    if ids[0] < 0 or objects > MAX_OBJECT_ID:
        raise MaskError(f"{path}: holds {objects} objects; expected at most {MAX_OBJECT_ID}")
    if ids[-1] > MAX_OBJECT_ID:
        raise MaskError(f"{path}: holds object number {ids[-1]}; expected numbers from 1 to {MAX_OBJECT_ID}")
    if ids[-1] == 255 and objects > _SHADES and np.isin(values, (0, 255)).mean() > _PURE_SHARE:
        raise MaskError(
            f"{path}: looks like a black-and-white drawing with soft edges ({objects} grey values would be "
            f"{objects} objects); save it without antialiasing"
        )
    return values.astype(np.uint8), True


def _distinct(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ascending, like np.unique, which takes five times as long for the few values of a mask."""
    if values.min() < 0 or values.max() > 65535:
        return np.unique(values)
    return np.flatnonzero(np.bincount(values.reshape(-1))).astype(np.int64)


def _read_values(path: Path) -> NDArray[np.int64]:
    try:
        with Image.open(path) as image:
            if image.format in ("JPEG", "WEBP", "MPO"):
                raise MaskError(f"{path}: {image.format} changes pixel values; {_HOW_TO_SAVE}")
            if image.mode not in _INDEX_MODES:
                colours = "an RGB image" if image.mode in ("RGB", "RGBA") else f"an image of mode {image.mode}"
                raise MaskError(f"{path}: is {colours}, not a mask; {_HOW_TO_SAVE}")
            return np.asarray(image).astype(np.int64)
    except FileNotFoundError:
        raise MaskError(f"{path}: no such mask") from None
    except UnidentifiedImageError:
        raise MaskError(f"{path}: is not an image; expected a mask as PNG") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MaskError(f"{path}: the mask cannot be read ({error}); expected a whole PNG") from error


@dataclass(frozen=True)
class MaskFolder:
    """The annotations of a folder.

    Attributes:
        masks: per frame index, u8 [H, W] with the objects that start there and nothing else.
        unmatched: names of mask files that belong to no frame.
    """

    masks: dict[int, U8Array]
    unmatched: tuple[str, ...]


def read_mask_folder(folder: Path, source: SourceInfo, start: int = 0, end: int | None = None) -> MaskFolder:
    """Read a folder of masks by the rule of the benchmarks: an object starts at the first mask that holds it.

    File stems are matched to the stems of the frames where the source is a folder of images, and are
    frame numbers otherwise.

    Args:
        folder: e.g. ``Annotations/480p/blackswan``.
        source: what the masks belong to.
        start: masks of earlier frames are ignored.
        end: masks of this and later frames are ignored.

    Raises:
        MaskError: there is no mask, none belongs to a frame, all are empty, or one cannot be used.
    """
    files = list_images(folder, MASK_SUFFIXES)
    if not files:
        raise MaskError(f"{folder}: holds no masks; expected PNG files named like the frames")
    numbers = {stem: index for index, stem in enumerate(source.stems)} if source.stems is not None else None
    masks: dict[int, U8Array] = {}
    unmatched: list[str] = []
    known = np.zeros(256, bool)
    known[0] = True
    wanted = 0
    for path in files:
        index = _frame_number(path) if numbers is None else numbers.get(path.stem)
        if index is None:
            unmatched.append(path.name)
            continue
        if index < start or (end is not None and index >= end):
            continue
        wanted += 1
        mask = read_mask(path, source.width, source.height)
        mask[known[mask]] = 0
        if mask.any():
            masks[index] = mask
            known[np.unique(mask)] = True
    if len(unmatched) == len(files):
        expected = "frame files" if numbers is not None else "frame numbers such as 00037.png"
        raise MaskError(
            f"{folder}: no mask is named like a frame ({files[0].name} …); expected the names of the {expected}"
        )
    if not masks:
        what = "all masks are empty" if wanted else "no mask lies between --start and --end"
        raise MaskError(f"{folder}: {what}; expected at least one object")
    return MaskFolder(masks, tuple(unmatched))


def _frame_number(path: Path) -> int | None:
    return int(path.stem) if path.stem.isdecimal() else None
