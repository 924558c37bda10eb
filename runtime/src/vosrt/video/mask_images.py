"""Meaning of the pixels of a mask image: background, or the object that each belongs to.

Black is background under any number of a palette. An image that can show only one object (1 bit, two colours, black
and white, or opaque on transparent) does not number it. All others number their objects: by palette index, by grey
value, or by the colours of DAVIS.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vosrt._reading import open_image, silenced
from vosrt.errors import MaskError
from vosrt.types import MAX_OBJECT_ID
from vosrt.video.images import read_image
from vosrt.video.mask_arrays import read_array
from vosrt.video.palette import davis_palette
from vosrt.video.soft_edges import distinct, shades

I64Array = NDArray[np.int64]
IntArray = NDArray[np.signedinteger[Any]]
BoolArray = NDArray[np.bool_]

HOW_TO_SAVE = "save an 8-bit palette or greyscale PNG whose pixel values are object numbers (0 = background, 1, 2, …)"

_BLACK, _WHITE = 0, 0xFFFFFF
_NONE = -1  # is white where colours are compared by their brightness
_DAVIS = {(int(r) << 16) + (int(g) << 8) + int(b): number for number, (r, g, b) in enumerate(davis_palette())}


@dataclass(frozen=True)
class Pixels:
    """The meaning of an image.

    Attributes:
        values: i64 [H, W]; 0 is background.
        numbered: the values number objects; otherwise they are 0 and 1.
    """

    values: I64Array
    numbered: bool


def read_pixels(path: Path, width: int, height: int, *, numbered: bool = False) -> Pixels:
    """Read an image and find out what its pixels mean.

    Args:
        path: an image file without lossy compression.
        width: expected width in pixels, that of the frames.
        height: expected height in pixels.
        numbered: greyscale values number objects even where only 0 and 255 occur, as in a series of numbered masks.

    Raises:
        MaskError: not an image, of another size, with soft edges, or of colours whose meaning is not clear.
    """
    try:
        with open_image(path) as image:
            if image.size != (width, height):
                raise MaskError(
                    f"{path}: the mask is {image.width}×{image.height} but the frames are {width}×{height}; "
                    "expected the same size"
                )
            if image.format in ("JPEG", "MPO") or (image.format == "WEBP" and not _is_lossless(path)):
                raise MaskError(f"{path}: {image.format} changes pixel values; {HOW_TO_SAVE}")
            if (pictures := getattr(image, "n_frames", 1)) > 1:
                raise MaskError(f"{path}: holds {pictures} pictures; expected the mask of one frame, saved alone")
            codec, _, _, layout = (getattr(image, "tile", None) or [("", (), 0, "")])[0]  # loading takes it away
            if codec == "libtiff":  # not of plain TIFF files, which Pillow decodes itself
                with silenced():
                    image.load()
            return _meaning(path, image, str(layout if isinstance(layout, str) else layout[0]), numbered)
    except FileNotFoundError:
        raise MaskError(f"{path}: no such mask") from None
    except UnidentifiedImageError:
        return _of_array(path, width, height, numbered)
    except MaskError:
        raise
    except Exception as error:  # Pillow's formats raise any kind: SyntaxError, TypeError, struct.error …
        raise MaskError(f"{path}: the mask cannot be read ({error}); expected a whole PNG") from error


def _of_array(path: Path, width: int, height: int, numbered: bool) -> Pixels:
    try:
        values = read_array(path, width, height)
    except (OSError, ValueError) as error:
        raise MaskError(f"{path}: the mask cannot be read ({error}); expected a whole file, or a PNG") from error
    if values is None:
        raise MaskError(f"{path}: is not an image; expected a mask as PNG")
    if values.dtype == bool:
        return Pixels(values.astype(np.int64), False)
    return _of_greys(path, _whole(path, values), _white(values), numbered)


def _is_lossless(webp: Path) -> bool:
    with webp.open("rb") as file:
        return b"VP8L" in file.read(4096)


def _meaning(path: Path, image: Image.Image, layout: str, numbered: bool) -> Pixels:
    if image.mode in ("L", "RGB") and "transparency" in image.info:
        image = image.convert("LA" if image.mode == "L" else "RGBA")
    if image.mode == "1":
        return Pixels(np.asarray(image).astype(np.int64), False)
    if image.mode == "P":
        return _of_palette(path, image, numbered)
    if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
        return _of_greys(path, *_grey_values(path, image, layout), numbered)
    if image.mode in ("LA", "RGB", "RGBA"):
        return _of_colours(path, image, numbered)
    raise MaskError(f"{path}: is an image of mode {image.mode}, not a mask; {HOW_TO_SAVE}")


def _grey_values(path: Path, image: Image.Image, layout: str) -> tuple[I64Array, int]:
    """Values as the file holds them, and its white."""
    # Pillow spreads grey values of 2 and 4 bits over 0 to 255.
    few = re.match(r"L;([24])", layout)
    values = np.asarray(image)
    if few:
        white = (1 << int(few[1])) - 1
        return values.astype(np.int64) * white // 255, white
    return _whole(path, values), _white(values)


def _whole(path: Path, values: NDArray[Any]) -> I64Array:
    if values.dtype.kind == "f":
        values = values.astype(np.float64)  # half floats end at 65504
    if not np.isfinite(values).all() or (values != np.rint(values)).any():
        raise MaskError(f"{path}: holds fractions, not object numbers; {HOW_TO_SAVE}")
    if values.min() < -65535 or values.max() > 65535:
        raise MaskError(f"{path}: holds numbers up to {values.max():.0f}, not object numbers; {HOW_TO_SAVE}")
    return values.astype(np.int64)


def _white(values: NDArray[Any]) -> int:
    return 65535 if values.dtype.kind != "f" and values.max() > 255 else 255


def _of_greys(path: Path, values: I64Array, white: int, numbered: bool) -> Pixels:
    if not numbered and (values[values != 0] == white).all():
        return Pixels((values != 0).astype(np.int64), False)
    used = distinct(values)
    if len(used) == 2 and used[0] > 0 and used[1] > 0.75 * white:  # such as 16 and 235, black and white of video
        raise MaskError(
            f"{path}: holds {used[0]} and {used[1]} only, and no 0, which is the background; expected 0 and one number"
        )
    _refuse_soft_edges(path, values, white)
    return Pixels(values, True)


def _of_palette(path: Path, image: Image.Image, numbered: bool) -> Pixels:
    index = np.asarray(image).astype(np.int64)
    entries = np.array(image.getpalette() or [], np.int64).reshape(-1, 3)
    palette = np.zeros((256, 3), np.int64)
    palette[: len(entries)] = entries
    if len(set(entries[:, 0])) == 256 and (entries == entries[:, :1]).all():
        return _of_greys(path, palette[index, 0], _WHITE & 255, numbered)
    colours, used = _pack(palette), distinct(index)
    hidden = _transparent(image.info.get("transparency"), used)
    shown = np.setdiff1d(used, hidden)
    black = shown[colours[shown] == _BLACK]
    if len(hidden) and len(shown) == 1:
        background = hidden
    elif colours[0] == _BLACK:  # numbers its objects by index, though unused entries are black as well
        background = np.union1d(hidden, [0])
    elif len(black):
        background = np.union1d(hidden, black)
    else:
        background = hidden if len(hidden) else np.array([0])
    objects = np.setdiff1d(shown, background)
    white = np.isin(objects, () if numbered else (255,)) | (colours[objects] == _WHITE)
    if len(objects) <= 1 and (len(entries) <= 2 or 0 in objects or white.all()):
        return Pixels(np.isin(index, objects).astype(np.int64), False)
    if any(_DAVIS.get(int(colours[i])) != i for i in shown):
        _refuse_soft_edges(path, palette.sum(axis=1)[index])
    numbers = np.arange(256)
    numbers[0] = min(
        background.min(), MAX_OBJECT_ID - 1
    )  # where index 0 is an object, it takes the background's number
    numbers[background] = 0
    return Pixels(numbers[index], True)


def _transparent(transparency: int | bytes | None, used: I64Array) -> I64Array:
    """Palette indices in use that are transparent, if others are opaque."""
    if transparency is None:
        return used[:0]
    if isinstance(transparency, bytes):
        alpha = np.full(256, 255, np.uint8)
        alpha[: len(transparency)] = np.frombuffer(transparency, np.uint8)
        hidden = used[alpha[used] == 0]
    else:
        hidden = used[used == transparency]
    return hidden if len(hidden) < len(used) else used[:0]


def _of_colours(path: Path, image: Image.Image, numbered: bool) -> Pixels:
    deep = read_image(path)  # Pillow has no more than the high byte of each channel
    if deep is not None and deep.dtype == np.uint16 and deep.ndim == 3:
        channels = deep[..., [2, 1, 0, *range(3, deep.shape[2])]].astype(np.int32)
    else:
        channels = np.asarray(image).astype(np.int32)
        if image.mode == "LA":
            channels = channels[..., [0, 0, 0, 1]]
    shown = np.ones(channels.shape[:2], bool)
    if channels.shape[2] == 4:
        channels, shown = channels[..., :3], _opaque(path, channels[..., 3])
    low = channels & 255
    if (low != channels).any():
        if ((low != 0) & (low != channels >> 8)).any():  # numbers, and not colours of 8 bits that were widened
            if (channels != channels[..., :1]).any():
                raise MaskError(f"{path}: has colours of 16 bits per channel; {HOW_TO_SAVE}")
            return _of_greys(path, np.where(shown, channels[..., 0], 0), 65535, numbered)
        channels >>= 8
    colours = _pack(channels)
    seen = np.zeros(_WHITE + 1, bool)
    seen[colours[shown]] = True
    visible = np.flatnonzero(seen)
    grey = (channels == channels[..., :1])[shown].all()
    if not grey and all(int(colour) in _DAVIS for colour in visible):
        lookup = np.zeros(_WHITE + 1, np.uint8)
        lookup[list(_DAVIS)] = list(_DAVIS.values())
        return Pixels(np.where(shown, lookup[colours], 0).astype(np.int64), True)
    if len(visible) == 1 and not shown.all():
        return Pixels(shown.astype(np.int64), False)
    if grey and (image.mode == "LA" or numbered):
        return _of_greys(path, np.where(shown, channels[..., 0], 0), 255, numbered)
    colours = np.where(shown, colours, _BLACK)
    if colours.min() == _BLACK and np.count_nonzero(visible) == 1:
        return Pixels((colours != _BLACK).astype(np.int64), False)
    if grey:
        return _of_greys(path, np.where(shown, channels[..., 0], 0), 255, numbered)
    _refuse_soft_edges(path, np.where(shown, channels.sum(axis=-1), 0))
    count = np.count_nonzero(visible)
    raise MaskError(
        f"{path}: is an {image.mode} image of {count} colours{'' if colours.min() == _BLACK else ' and no black'}, "
        f"which do not say what is object and what background; {HOW_TO_SAVE}, or one black-and-white image per object"
    )


def _opaque(path: Path, alpha: IntArray) -> BoolArray:
    """Bool [H, W]: what an alpha channel shows; all if it is the same everywhere."""
    levels = np.unique(alpha)
    if len(levels) > 2 or (len(levels) == 2 and levels[0] != 0):
        raise MaskError(
            f"{path}: has soft edges ({len(levels)} levels of transparency); save it without antialiasing, or "
            "threshold it"
        )
    shown: BoolArray = alpha == levels[-1]
    return shown


def _refuse_soft_edges(path: Path, values: I64Array, white: int = _NONE) -> None:
    if count := shades(values, white):
        raise MaskError(
            f"{path}: has soft edges: {count} of its {len(distinct(values))} values are shades between areas, not "
            "objects; save it without antialiasing and at its own size, or threshold it"
        )


def _pack(channels: IntArray) -> IntArray:
    return np.asarray((channels[..., 0] << 16) + (channels[..., 1] << 8) + channels[..., 2])
