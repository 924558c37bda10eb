"""Objects in JSON files: polygons in a format of our own, LabelMe files, and COCO data sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vosrt._reading import read_json
from vosrt.errors import MaskError
from vosrt.types import MAX_OBJECT_ID, U8Array
from vosrt.video.coco import read_coco
from vosrt.video.labelme import read_labelme
from vosrt.video.shapes import Shape, Shapes, check_size, parse_outline

_EXPECTED = 'expected {"objects": [{"id": 1, "polygons": [[[x, y], …]]}]}, a LabelMe file or COCO instances'


@dataclass(frozen=True)
class Drawing:
    """The objects of a file as a mask.

    Attributes:
        labels: u8 [H, W], object ids.
        numbered: the file numbers its objects; otherwise they are counted from 1.
        warnings: one line each on what was left out.
    """

    labels: U8Array
    numbered: bool
    warnings: tuple[str, ...]


def read_polygons(path: Path, width: int, height: int, *, frame: int = 0, stem: str | None = None) -> Drawing:
    """Read objects drawn as polygons.

    The file is JSON: a LabelMe file, COCO instances, or this format, whose coordinates are pixels, with (0, 0) in the
    middle of the top left one::

        {
          "size": [854, 480],
          "objects": [
            {"id": 1, "name": "swan", "polygons": [[[401, 80], [430, 75], [452, 120]]]},
            {"id": 2, "polygons": [[[10, 10], [60, 10], [60, 90]], [[80, 10], [95, 10], [95, 40]]]}
          ]
        }

    ``size`` (width, height) and ``name`` may be left out; ``id`` is the object's place in the list then.
    The polygons of one object are united; a later object lies over an earlier one.

    Args:
        width: of the frames, in pixels.
        height: of the frames, in pixels.
        frame: number of the frame that the objects belong to; chooses among several images of COCO.
        stem: file stem of that frame, where the source is a folder.

    Raises:
        MaskError: not such a file, drawn for another size, a point outside the frame, or no object has a pixel.
    """
    document = _load(path)
    if (program := _foreign(document)) is not None:
        raise MaskError(f"{path}: is a file of {program}, which is not read; expected its export as COCO, or LabelMe")
    if isinstance(document, dict) and "counts" in document:
        document = [document]
    if isinstance(document, list) and document and all(isinstance(item, dict) for item in document):
        # COCO's format of results, or run-length encodings alone, as pycocotools returns them
        document = {"annotations": [{"segmentation": item} if "counts" in item else item for item in document]}
    if not isinstance(document, dict):
        raise MaskError(f"{path}: names no objects; {_EXPECTED}")
    if isinstance(document.get("shapes"), list):
        shapes = read_labelme(path, document, width, height)
    elif isinstance(document.get("annotations"), list):
        shapes = read_coco(path, document, width, height, frame=frame, stem=stem)
    else:
        shapes = _read_own(path, document, width, height)
    if len(shapes.objects) > MAX_OBJECT_ID:
        raise MaskError(f"{path}: holds {len(shapes.objects)} objects; expected at most {MAX_OBJECT_ID}")
    labels = np.zeros((height, width), np.uint8)
    for object_id, shape in shapes.objects.items():
        shape.draw(labels, object_id)
    unseen = sorted(set(shapes.objects) - set(np.unique(labels).tolist()))
    if len(unseen) == len(shapes.objects):
        raise MaskError(f"{path}: no object has a pixel in the frame; expected outlines within {width}×{height}")
    hidden = (f"{path}: object {unseen[0]} has no pixel of its own in the frame and is left out",) if unseen else ()
    return Drawing(labels, shapes.numbered, (*shapes.warnings, *hidden))


def _foreign(document: Any) -> str | None:
    """Return whose format this is, if it is one that looks like those that are read but is none of them."""
    items = document if isinstance(document, list) else [document]
    first = items[0] if items and isinstance(items[0], dict) else {}
    inner = {name: value[0] for name, value in first.items() if isinstance(value, list) and value}
    keys = {name: set(value) for name, value in inner.items() if isinstance(value, dict)}
    if "segmentations" in keys.get("annotations", ()):
        return "YouTube-VIS"
    if "segments_info" in keys.get("annotations", ()):
        return "COCO panoptic"
    if first.get("type") in ("Feature", "FeatureCollection"):
        return "GeoJSON"
    if {"tags", "tracks"} & set(first) and ("version" in first or "shapes" in first):
        return "CVAT"
    if "result" in keys.get("annotations", ()) or any("original_width" in each for each in keys.values()):
        return "Label Studio"
    if {"_via_img_metadata", "_via_settings"} & set(first):
        return "VIA"
    if any(isinstance(value, dict) and {"filename", "regions"} <= set(value) for value in first.values()):
        return "VIA"
    if "geometryType" in keys.get("objects", ()):
        return "Supervisely"
    if {"data_row", "DataRow ID", "Labeled Data"} & set(first):
        return "Labelbox"
    if {"annotations", "slots"} & set(keys.get("items", ())) or ("item" in first and "annotations" in first):
        return "Datumaro (CVAT)" if "items" in first else "V7 Darwin"
    return None


def _load(path: Path) -> Any:
    try:
        return read_json(path)
    except FileNotFoundError:
        raise MaskError(f"{path}: no such polygon file") from None
    except OSError as error:
        raise MaskError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        if path.suffix.lower() == ".xml":  # of CVAT and PASCAL VOC
            raise MaskError(f"{path}: is XML, which is not read; expected LabelMe's JSON, or COCO instances") from error
        raise MaskError(f"{path}: is not JSON ({error}); expected polygons") from error


def _read_own(path: Path, document: dict[str, Any], width: int, height: int) -> Shapes:
    items = document.get("objects")
    if not isinstance(items, list) or not items:
        raise MaskError(f"{path}: names no objects; {_EXPECTED}")
    check_size(path, document.get("size", [width, height]), width, height)
    objects: dict[int, Shape] = {}
    for place, item in enumerate(items, start=1):
        object_id = item.get("id", place) if isinstance(item, dict) else None
        if type(object_id) is not int or not 1 <= object_id <= MAX_OBJECT_ID:
            raise MaskError(f"{path}: object {place} has no usable id; expected a number from 1 to {MAX_OBJECT_ID}")
        if object_id in objects:
            raise MaskError(f"{path}: object {object_id} is there twice; expected all its polygons in one entry")
        polygons = item.get("polygons")
        if not isinstance(polygons, list) or not polygons:
            raise MaskError(f"{path}: object {object_id} has no polygons; expected [[[x, y], [x, y], [x, y], …], …]")
        name = f"object {object_id}"
        outlines = [parse_outline(path, name, polygon, width=width, height=height) for polygon in polygons]
        if max(outline.max() for outline in outlines) <= 1 < min(width, height):
            raise MaskError(
                f"{path}: {name} has coordinates from 0 to 1; expected pixels, 0 to {width} and 0 to {height}"
            )
        objects[object_id] = Shape(outlines)
    return Shapes(objects, True)
