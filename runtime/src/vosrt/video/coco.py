"""Objects of COCO instances: https://cocodataset.org/#format-data, whole data sets, lists of results, and SA-1B."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vosrt.errors import MaskError
from vosrt.video import rle
from vosrt.video.masks import name_key
from vosrt.video.shapes import F64Array, Shape, Shapes, check_size, parse_outline


def read_coco(
    path: Path, document: dict[str, Any], width: int, height: int, *, frame: int = 0, stem: str | None = None
) -> Shapes:
    """Read the annotations of one image, as polygons or run-length encoding, numbered by their place.

    Args:
        path: the file, for messages.
        width: of the frames, in pixels.
        height: of the frames, in pixels.
        frame: number of the frame; where the file has several images, the one that is named like it counts.
        stem: file stem of that frame, where the source is a folder.

    Raises:
        MaskError: no image belongs to the frame, it has another size, an annotation is damaged, or none has an outline.
    """
    items = [item for item in document["annotations"] if isinstance(item, dict)]
    image = _choose(path, document, items, frame, stem)
    if "width" in image and "height" in image:
        check_size(path, [image["width"], image["height"]], width, height)
    if "id" in image:
        items = [item for item in items if item.get("image_id", image["id"]) == image["id"]]
    objects: dict[int, Shape] = {}
    boxes, crowds = [], 0
    for place, item in enumerate(items, start=1):
        name, segmentation = f"annotation {item.get('id', place)}", item.get("segmentation")
        if not segmentation:
            boxes.append((name, item.get("bbox")))
            continue
        objects[len(objects) + 1] = _shape(path, name, segmentation, width, height)
        crowds += bool(item.get("iscrowd"))
    if not objects:
        found = f"{boxes[0][0]} has no outline{_as_option(boxes[0][1])}" if boxes else "has no annotation of this frame"
        raise MaskError(f"{path}: {found}; expected polygons or run-length encoding in segmentation")
    warnings = []
    if boxes:
        warnings.append(f"{path}: {boxes[0][0]} has no outline and is left out{_as_option(boxes[0][1])}")
    if crowds:
        warnings.append(f"{path}: {crowds} of {len(objects)} objects are marked as crowd; each is followed as one")
    return Shapes(objects, False, tuple(warnings))


def _choose(
    path: Path, document: dict[str, Any], items: list[dict[str, Any]], frame: int, stem: str | None
) -> dict[str, Any]:
    """The image whose annotations count."""
    listed = document.get("images") or [document.get("image")]
    images = [image for image in listed if isinstance(image, dict)] if isinstance(listed, list) else []
    if not images:  # results name images by their ids only
        ids = {str(item.get("image_id")): {"id": item["image_id"]} for item in items if "image_id" in item}
        images = list(ids.values()) or [{}]
    if len(images) == 1:
        return images[0]
    named = [image for image in images if _is_named(str(image.get("file_name", "")), frame, stem)]
    if len(named) != 1:
        like = f"frame {frame}" if stem is None else stem
        found = ", ".join(str(image.get("file_name", f"id {image.get('id')}")) for image in images[:3])
        raise MaskError(
            f"{path}: describes {len(images)} images ({found} …), of which {len(named)} are named like {like}; "
            "expected one"
        )
    return named[0]


def _is_named(file_name: str, frame: int, stem: str | None) -> bool:
    own = Path(file_name).stem
    if stem is not None:
        return name_key(own) == name_key(stem)
    number = re.search(r"(\d+)$", own)
    return number is not None and int(number[1]) == frame


def _shape(path: Path, name: str, segmentation: Any, width: int, height: int) -> Shape:
    if isinstance(segmentation, dict):
        return Shape(bitmap=_decode(path, name, segmentation, width, height))
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise MaskError(f"{path}: {name} has no list of polygons; expected [[x, y, x, y, x, y, …], …]")
    bitmap = np.zeros((height, width), bool)
    for polygon in segmentation:
        points = list(zip(polygon[::2], polygon[1::2], strict=False)) if len(polygon) % 2 == 0 else None
        bitmap |= _inside(parse_outline(path, name, points, width=width, height=height, margin=1), width, height)
    return Shape(bitmap=bitmap)


def _inside(outline: F64Array, width: int, height: int) -> NDArray[np.bool_]:
    """Pixels whose centres lie in a polygon: bool [height, width].

    In COCO, coordinates are distances from the corner of the picture, so that the first pixel reaches from 0 to 1.

    Args:
        outline: f64 [N, 2] of x and y.
        width: in pixels.
        height: in pixels.
    """
    centres = np.arange(height) + 0.5
    turns = np.zeros((height, width + 1), np.int64)  # odd where a row enters or leaves the polygon
    for (x0, y0), (x1, y1) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        rows = np.flatnonzero((y0 <= centres) != (y1 <= centres))
        crossings = x0 + (centres[rows] - y0) * ((x1 - x0) / (y1 - y0)) if rows.size else rows
        turns[rows, np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.int64)] += 1
    inside: NDArray[np.bool_] = np.cumsum(turns, axis=1)[:, :width] % 2 == 1
    return inside


def _decode(path: Path, name: str, segmentation: dict[str, Any], width: int, height: int) -> NDArray[np.bool_]:
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if size != [height, width]:
        check_size(path, size[::-1] if isinstance(size, list) else size, width, height)
    try:
        if not isinstance(counts, str | list):
            raise ValueError("no counts")
        return rle.decode(counts, height, width)
    except (ValueError, TypeError, OverflowError) as error:
        raise MaskError(f"{path}: the run-length encoding of {name} cannot be read ({error})") from error


def _as_option(box: Any) -> str:
    """The option that marks the object by its box instead."""
    try:
        x, y, w, h = (round(float(value)) for value in box)
    except (TypeError, ValueError, OverflowError):
        return ""
    return f" (--box {x},{y},{w},{h} would follow it)"
