"""What to follow: masks, boxes and polygons as a user gives them, turned into annotations of frames."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vosrt.errors import MaskError, OptionError
from vosrt.types import MAX_OBJECT_ID, U8Array
from vosrt.video.base import FrameSource, SourceInfo
from vosrt.video.masks import read_mask_folder, read_single_mask

_GRABCUT_ROUNDS = 5
_GRABCUT_SIDE = 640  # pixels; larger surroundings are segmented at this size
_LEAST_FILLED = 0.2  # part of its box that an object covers
_POLYGON_BITS = 4  # sub-pixel bits of cv2.fillPoly


@dataclass(frozen=True)
class Prompts:
    """What the user gave.

    Attributes:
        masks: ``"FILE"``, ``"37:FILE"`` for frame 37, or a folder of masks.
        boxes: ``"x,y,width,height"`` on the first frame, one object each.
        polygons: ``"FILE"`` or ``"37:FILE"``, JSON; see `read_polygons`.
    """

    masks: Sequence[str] = ()
    boxes: Sequence[str] = ()
    polygons: Sequence[str] = ()


@dataclass
class Annotations:
    """What to follow, per frame.

    Attributes:
        masks: per frame index, u8 [H, W] with the ids annotated there.
        warnings: one line each on what was given but cannot be used.
    """

    masks: dict[int, U8Array] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of all objects, ascending."""
        return tuple(sorted({int(i) for mask in self.masks.values() for i in np.unique(mask) if i}))

    def add(self, index: int, mask: U8Array, option: str) -> None:
        """Lay the objects of ``mask``, which ``option`` gave, over what frame ``index`` already holds."""
        if index in self.masks:
            twice = set(np.unique(mask)) & set(np.unique(self.masks[index])) - {0}
            if twice:
                self.warnings.append(
                    f"{option}: object {min(twice)} is marked in frame {index} already; both marks count"
                )
            mask = np.where(mask > 0, mask, self.masks[index])
        self.masks[index] = mask

    def free_id(self, option: str) -> np.uint8:
        """The smallest number that no object has yet.

        Raises:
            MaskError: all are taken.
        """
        free = set(range(1, MAX_OBJECT_ID + 1)) - set(self.object_ids)
        if not free:
            raise MaskError(f"{option}: all {MAX_OBJECT_ID} object numbers are taken; expected fewer objects")
        return np.uint8(min(free))


def load_annotations(prompts: Prompts, source: FrameSource, *, start: int = 0, end: int | None = None) -> Annotations:
    """Read everything the user marked and check it against the source.

    Args:
        prompts: what the user gave.
        source: what it belongs to; its first frame serves the boxes.
        start: the frame that prompts without a number belong to.
        end: first frame that will not be read.

    Raises:
        OptionError: nothing was given, or a frame number is out of range.
        MaskError: a mask, box or polygon does not fit.
    """
    if not (prompts.masks or prompts.boxes or prompts.polygons):
        raise OptionError("nothing to follow: give --mask FILE, --box x,y,width,height or --polygon FILE")
    info, annotations = source.info, Annotations()
    for text in prompts.masks:
        number, path = _split(text)
        if path.is_dir():
            if number is not None:
                raise OptionError(f"--mask {text}: a folder of masks takes no frame number; its file names carry it")
            folder = read_mask_folder(path, info, start, end)
            for index, mask in folder.masks.items():
                _check_frame(f"--mask {path}", index, info, start, end)
                annotations.add(index, mask, f"--mask {path}")
            if folder.unmatched:
                annotations.warnings.append(
                    f"{path}: {len(folder.unmatched)} masks belong to no frame, unused: {folder.unmatched[0]} …"
                )
            continue
        index = _check_frame(f"--mask {text}", number, info, start, end)
        mask, numbered = read_single_mask(path, info.width, info.height)
        if not mask.any():
            raise MaskError(f"{path}: the mask is empty; expected at least one pixel that is not 0")
        annotations.add(index, mask if numbered else mask * annotations.free_id(f"--mask {text}"), f"--mask {text}")
    for text in prompts.polygons:
        number, path = _split(text)
        index = _check_frame(f"--polygon {text}", number, info, start, end)
        annotations.add(index, read_polygons(path, info.width, info.height), f"--polygon {text}")
    for text in prompts.boxes:
        free = annotations.free_id(f"--box {text}")
        inside, clear = cut_out(source.first.image, parse_box(text, info.width, info.height))
        if not clear:
            annotations.warnings.append(
                f"--box {text}: no outline stands out in it, so an ellipse that fills it is followed; "
                "a --polygon or --mask would be better"
            )
        annotations.add(start, inside * free, f"--box {text}")
    return annotations


def _split(text: str) -> tuple[int | None, Path]:
    """Split ``"37:late.png"``; a file of exactly that name wins."""
    match = re.fullmatch(r"(\d+):(.+)", text)
    if match is None or Path(text).exists():
        return None, Path(text)
    return int(match[1]), Path(match[2])


def _check_frame(option: str, number: int | None, info: SourceInfo, start: int, end: int | None) -> int:
    if number is None:
        return start
    last = None if info.frame_count is None else start + info.frame_count - 1
    if end is not None:
        last = min(end - 1, end - 1 if last is None else last)
    if number < start or (last is not None and number > last):
        known = f"{start} to {last}" if last is not None else f"{start} or later"
        raise OptionError(f"{option}: frame {number} is not among the frames that are read; expected {known}")
    return number


def parse_box(text: str, width: int, height: int) -> tuple[int, int, int, int]:
    """Parse ``"x,y,width,height"`` in pixels and check that it lies in the frame.

    Raises:
        OptionError: not four whole numbers.
        MaskError: empty, not inside the frame, or all of it.
    """
    try:
        x, y, w, h = (int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"--box {text}: expected four whole numbers, x,y,width,height in pixels") from None
    if w < 1 or h < 1:
        raise MaskError(f"--box {text}: is empty; expected a width and a height of at least 1 pixel")
    if x < 0 or y < 0 or x + w > width or y + h > height:
        raise MaskError(
            f"--box {text}: reaches outside the frame; expected x + width ≤ {width} and y + height ≤ {height}, from 0"
        )
    if w == width and h == height:
        raise MaskError(f"--box {text}: is the whole frame; expected some background around the object")
    return x, y, w, h


def cut_out(image: U8Array, box: tuple[int, int, int, int]) -> tuple[U8Array, bool]:
    """Find the object in a box with GrabCut (Rother et al. 2004), which learns its colours from the box's surroundings.

    An object fills a good part of its box. Where GrabCut finds less than that, it has found something else, and the
    ellipse that fills the box takes its place.

    Args:
        image: u8 [H, W, 3], BGR.
        box: x, y, width, height in pixels.

    Returns:
        u8 [H, W] of 0 and 1, and whether GrabCut found it.
    """
    x, y, w, h = box
    height, width = image.shape[:2]
    margin = 2 * max(w, h) + 32
    left, top = max(0, x - margin), max(0, y - margin)
    right, bottom = min(width, x + w + margin), min(height, y + h + margin)
    around = image[top:bottom, left:right]
    scale = min(1.0, _GRABCUT_SIDE / max(around.shape[:2]))
    small = cv2.resize(around, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else around.copy()
    trimap = np.full(small.shape[:2], cv2.GC_BGD, np.uint8)
    x0, x1 = round((x - left) * scale), round((x + w - left) * scale)
    y0, y1 = round((y - top) * scale), round((y + h - top) * scale)
    trimap[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = cv2.GC_PR_FGD
    models = np.zeros((1, 65)), np.zeros((1, 65))  # of background and object, filled in
    cv2.setRNGSeed(0)  # its clustering is seeded from OpenCV's generator
    with suppress(cv2.error):  # too few colours to tell apart; the box itself is left as the object
        cv2.grabCut(small, trimap, (0, 0, 0, 0), *models, _GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
    found = ((trimap == cv2.GC_PR_FGD) | (trimap == cv2.GC_FGD)).astype(np.float32)
    if scale < 1:
        found = cv2.resize(found, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = found > 0.5
    filled = np.count_nonzero(mask) / (w * h)
    if _LEAST_FILLED <= filled < 1:
        return mask, True
    from_middle = [(np.arange(n) + 0.5) / (n / 2) - 1 for n in (h, w)]  # -1 to 1 across the box
    mask[:] = 0
    mask[y : y + h, x : x + w] = from_middle[0][:, None] ** 2 + from_middle[1][None, :] ** 2 <= 1
    if w < 3 or h < 3:
        mask[y : y + h, x : x + w] = 1
    return mask, False


def read_polygons(path: Path, width: int, height: int) -> U8Array:
    """Read objects drawn as polygons.

    The file is JSON; coordinates are pixels, (0, 0) is the middle of the top left one::

        {
          "size": [854, 480],
          "objects": [
            {"id": 1, "name": "swan", "polygons": [[[401, 80], [430, 75], [452, 120]]]},
            {"id": 2, "polygons": [[[10, 10], [60, 10], [60, 90]], [[80, 10], [95, 10], [95, 40]]]}
          ]
        }

    ``size`` (width, height) and ``name`` may be left out; ``id`` is the object's place in the list then.
    The polygons of one object are united; a later object lies over an earlier one.

    Returns:
        u8 [height, width] object ids.

    Raises:
        MaskError: not such a file, drawn for another size, or a point outside the frame.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise MaskError(f"{path}: no such polygon file") from None
    except OSError as error:
        raise MaskError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise MaskError(f"{path}: is not JSON ({error}); expected polygons") from error
    if not isinstance(document, dict) or not isinstance(document.get("objects"), list) or not document["objects"]:
        raise MaskError(f'{path}: names no objects; expected {{"objects": [{{"id": 1, "polygons": [[[x, y], …]]}}]}}')
    size = document.get("size", [width, height])
    if size != [width, height]:
        drawn = "×".join(map(str, size)) if isinstance(size, list) else str(size)
        raise MaskError(f"{path}: was drawn on {drawn} but the frames are {width}×{height}; expected the same size")
    mask = np.zeros((height, width), np.uint8)
    seen: set[int] = set()
    for place, item in enumerate(document["objects"], start=1):
        object_id, outlines = _parse_object(path, place, item, width, height)
        if object_id in seen:
            raise MaskError(f"{path}: object {object_id} is there twice; expected all its polygons in one entry")
        seen.add(object_id)
        for outline in outlines:  # one by one: fillPoly cuts holes where polygons of one call overlap
            cv2.fillPoly(mask, [outline], object_id, cv2.LINE_8, _POLYGON_BITS)
    return mask


def _parse_object(path: Path, place: int, item: Any, width: int, height: int) -> tuple[int, list[Any]]:
    object_id = item.get("id", place) if isinstance(item, dict) else None
    if type(object_id) is not int or not 1 <= object_id <= MAX_OBJECT_ID:
        raise MaskError(f"{path}: object {place} has no usable id; expected a number from 1 to {MAX_OBJECT_ID}")
    polygons = item.get("polygons")
    if not isinstance(polygons, list) or not polygons:
        raise MaskError(f"{path}: object {object_id} has no polygons; expected [[[x, y], [x, y], [x, y], …], …]")
    outlines = []
    for polygon in polygons:
        try:
            points = np.array(polygon, np.float64)
        except (TypeError, ValueError, OverflowError):
            points = np.empty(0)
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
            raise MaskError(f"{path}: object {object_id} has a polygon that is not three or more points [x, y]")
        outside = (points < -0.5).any(axis=1) | (points > (width, height)).any(axis=1)
        if outside.any():
            x, y = points[outside.argmax()]
            raise MaskError(
                f"{path}: object {object_id} has the point ({x:g}, {y:g}) outside the frame; "
                f"expected 0 to {width} and 0 to {height}"
            )
        outlines.append(np.round(points * (1 << _POLYGON_BITS)).astype(np.int32))
    return object_id, outlines
