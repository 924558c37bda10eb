"""Prompts: masks, boxes and polygons of the user, turned into annotations of frames."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vosrt.errors import MaskError, OptionError
from vosrt.prompt.points import Finder, Point
from vosrt.types import MAX_OBJECT_ID, U8Array
from vosrt.video.base import FrameSource, SourceInfo
from vosrt.video.boxes import cut_out, parse_box
from vosrt.video.masks import read_mask_file, read_mask_folder, void_warning
from vosrt.video.polygons import read_polygons


@dataclass(frozen=True)
class Prompts:
    """Marks of the user.

    Attributes:
        masks: ``"FILE"``, ``"37:FILE"`` for frame 37, or a folder of masks.
        boxes: ``"x,y,width,height"`` on the first frame or ``"37:x,y,width,height"`` on frame 37, one object each.
        points: ``"x,y"``, ``"x,y,-"`` where the object is not, ``"37:x,y"`` on frame 37, ``"2=x,y"`` of object 2; all
            points of a frame without a number are one object.
        polygons: ``"FILE"`` or ``"37:FILE"``, JSON; see `read_polygons`.
    """

    masks: Sequence[str] = ()
    boxes: Sequence[str] = ()
    polygons: Sequence[str] = ()
    points: Sequence[str] = ()


@dataclass
class Annotations:
    """Objects to follow, per frame.

    Attributes:
        masks: per frame index, u8 [H, W] with the ids annotated on that frame.
        warnings: one line for each mark that cannot be used.
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
            before, mask = self.masks[index], np.where(mask > 0, mask, self.masks[index])
            for hidden in np.setdiff1d(before, mask):
                self.warnings.append(
                    f"{option}: covers object {hidden} of frame {index} completely, so that one is not followed; "
                    "give each object a mask of its own"
                )
        self.masks[index] = mask

    def with_free_ids(self, mask: U8Array, option: str) -> U8Array:
        """Number the objects of ``mask``, which ``option`` gave, by the smallest numbers that no object has yet.

        Raises:
            MaskError: too few are left.
        """
        free = sorted(set(range(1, MAX_OBJECT_ID + 1)) - set(self.object_ids))
        objects = np.setdiff1d(mask, [0])
        if len(objects) > len(free):
            raise MaskError(f"{option}: all {MAX_OBJECT_ID} object numbers are taken; expected fewer objects")
        numbers = np.zeros(256, np.uint8)
        numbers[objects] = free[: len(objects)]
        return np.asarray(numbers[mask])


def load_annotations(
    prompts: Prompts,
    source: FrameSource,
    *,
    start: int = 0,
    end: int | None = None,
    find: Finder | None = None,
    frame_at: Callable[[int], U8Array] | None = None,
) -> Annotations:
    """Read everything the user marked and check it against the source.

    Args:
        source: what it belongs to; its first frame serves the boxes.
        start: the frame that prompts without a number belong to.
        end: first frame that will not be read.
        find: finds objects at points and in boxes; None takes no points, and cuts boxes out by colour.
        frame_at: returns a later frame u8 [H, W, 3] by its number; None takes points and boxes on the first frame only.

    Raises:
        OptionError: no object is marked, or a frame number is out of range.
        MaskError: a mask, box or polygon does not fit.
    """
    if not (prompts.masks or prompts.boxes or prompts.polygons or prompts.points):
        raise OptionError("nothing to follow: give --mask FILE, --points x,y, --box x,y,width,height or --polygon FILE")
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
            annotations.warnings.extend(folder.warnings)
            continue
        index = _check_frame(f"--mask {text}", number, info, start, end)
        read = read_mask_file(path, info.width, info.height)
        if not read.labels.any():
            raise MaskError(f"{path}: the mask is empty; expected at least one pixel that is not 0")
        if read.void:
            annotations.warnings.append(void_warning(path))
        if read.numbered and read.labels.all():
            annotations.warnings.append(
                f"{path}: has no 0, so that every pixel belongs to an object; where the smallest number means the "
                "background, make that 0"
            )
        labels = read.labels if read.numbered else annotations.with_free_ids(read.labels, f"--mask {text}")
        annotations.add(index, labels, f"--mask {text}")
    for text in prompts.polygons:
        number, path = _split(text)
        index = _check_frame(f"--polygon {text}", number, info, start, end)
        stem = None if info.stems is None else info.stems[index]
        drawing = read_polygons(path, info.width, info.height, frame=index, stem=stem)
        annotations.warnings.extend(drawing.warnings)
        labels = drawing.labels if drawing.numbered else annotations.with_free_ids(drawing.labels, f"--polygon {text}")
        annotations.add(index, labels, f"--polygon {text}")
    for text in prompts.boxes:
        number, rest = _split_number(text)
        index = _check_frame(f"--box {text}", number, info, start, end)
        image = _frame(f"--box {text}", index, source, start, frame_at)
        inside, doubt = cut_out(image, parse_box(text, rest, info.width, info.height), find)
        if doubt is not None:
            annotations.warnings.append(f"--box {text}: {doubt}; a --polygon or --mask would be better")
        annotations.add(index, annotations.with_free_ids(inside, f"--box {text}"), f"--box {text}")
    for (index, object_id), clicks in _clicked(prompts.points, info, start, end).items():
        option = f"--points on frame {index}"
        if find is None:
            raise OptionError("--points needs a network, and none is loaded here; give --mask FILE or --polygon FILE")
        found = find(_frame(option, index, source, start, frame_at), clicks, None).astype(np.uint8)
        labels = found * np.uint8(object_id) if object_id else annotations.with_free_ids(found, option)
        annotations.add(index, labels, option)
    return annotations


def _clicked(texts: Sequence[str], info: SourceInfo, start: int, end: int | None) -> dict[tuple[int, int], list[Point]]:
    """The points of each frame and object, whose number is 0 where it has none."""
    clicked: dict[tuple[int, int], list[Point]] = {}
    for text in texts:
        match = re.fullmatch(r"(?:(\d+):)?(?:(\d{1,3})=)?([\d.]+),([\d.]+)(?:,([+-]))?", text)
        try:
            x, y = (float(match[3]), float(match[4])) if match else (math.nan, math.nan)
        except ValueError:
            match = None
        if match is None:
            raise OptionError(f"--points {text}: expected x,y in pixels, with ,- where the object is not: 120,80,-")
        if match[2] and not 1 <= int(match[2]) <= MAX_OBJECT_ID:
            raise OptionError(f"--points {text}: the object is {match[2]}; expected 1 to {MAX_OBJECT_ID}")
        if not (x < info.width and y < info.height):
            raise MaskError(
                f"--points {text}: is outside the frame; expected x below {info.width}, y below {info.height}"
            )
        index = _check_frame(f"--points {text}", int(match[1]) if match[1] else None, info, start, end)
        clicked.setdefault((index, int(match[2] or 0)), []).append(Point(x, y, match[5] != "-"))
    for (index, object_id), clicks in clicked.items():
        if not any(click.positive for click in clicks):
            which = f"object {object_id} on frame {index}" if object_id else f"frame {index}"
            raise OptionError(
                f"--points: those of {which} only say where the object is not; expected one that is on it"
            )
    return clicked


def _frame(
    option: str, index: int, source: FrameSource, start: int, frame_at: Callable[[int], U8Array] | None
) -> U8Array:
    """The frame u8 [H, W, 3] of a number."""
    if index == start:
        return source.first.image
    if frame_at is None:
        raise OptionError(f"{option}: only the first frame, {start}, can be looked at here; expected a mark on it")
    return frame_at(index)


def _split_number(text: str) -> tuple[int | None, str]:
    """Split ``"37:rest"``."""
    number, colon, rest = text.partition(":")
    return (int(number), rest) if colon and number.isdecimal() else (None, text)


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
