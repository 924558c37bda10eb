"""Objects of a LabelMe file: https://github.com/wkentaro/labelme, versions 3 to 5."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vosrt.errors import MaskError
from vosrt.video.shapes import Shape, Shapes, check_size, parse_outline

_CIRCLE_POINTS = 90
_WITHOUT_AREA = ("point", "points", "line", "linestrip")


def read_labelme(path: Path, document: dict[str, Any], width: int, height: int) -> Shapes:
    """Read the shapes that have an area: polygons, rectangles, circles and masks.

    Shapes of one label and one ``group_id`` are one object; any other shape is one object, numbered by its
    place.

    Args:
        path: the file, for messages.
        width: of the frames, in pixels.
        height: of the frames, in pixels.

    Raises:
        MaskError: drawn on another size, a shape is damaged or unknown, or none has an area.
    """
    drawn = [document.get("imageWidth"), document.get("imageHeight")]
    if drawn != [None, None]:
        check_size(path, drawn, width, height)
    objects: dict[int, Shape] = {}
    groups: dict[tuple[str, str], int] = {}
    flat = []
    for place, item in enumerate(document["shapes"], start=1):
        if not isinstance(item, dict):
            raise MaskError(f"{path}: shape {place} is no shape of LabelMe; expected label, points and shape_type")
        kind, name = item.get("shape_type") or "polygon", f"shape {place} ({item.get('label')})"
        if kind in _WITHOUT_AREA:
            flat.append(f"{name} is a {kind}")
            continue
        key = (str(item.get("label")), str(item.get("group_id")))
        number = len(objects) + 1 if item.get("group_id") is None else groups.setdefault(key, len(objects) + 1)
        shape = objects.setdefault(number, Shape())
        if kind == "mask":
            bitmap = _bitmap(path, name, item, width, height)
            shape.bitmap = bitmap if shape.bitmap is None else shape.bitmap | bitmap
        else:
            polygon = _polygon(path, name, kind, item.get("points"))
            shape.outlines.append(parse_outline(path, name, polygon, width=width, height=height, margin=1))
    if not objects:
        found = f"{flat[0]}, which has no area" if flat else "it holds no shapes"
        raise MaskError(f"{path}: {found}; expected a polygon, rectangle, circle or mask")
    return Shapes(objects, False, (f"{path}: {flat[0]}, which has no area and is left out",) if flat else ())


def _polygon(path: Path, name: str, kind: str, points: Any) -> Any:
    """Points of a shape as those of a polygon."""
    if kind in ("polygon", "rotation", "oriented_rectangle") or (kind == "rectangle" and _count(points) == 4):
        return points
    if kind not in ("rectangle", "circle"):
        raise MaskError(f"{path}: {name} is of the unknown type {kind!r}; expected polygon, rectangle, circle or mask")
    try:
        (x0, y0), (x1, y1) = ((float(x), float(y)) for x, y in points)
    except (TypeError, ValueError):
        raise MaskError(f"{path}: {name} has no two points [x, y]; expected them of a {kind}") from None
    if kind == "rectangle":
        return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
    angles = np.arange(_CIRCLE_POINTS) * (2 * np.pi / _CIRCLE_POINTS)
    radius = np.hypot(x1 - x0, y1 - y0)
    return np.stack((x0 + radius * np.cos(angles), y0 + radius * np.sin(angles)), axis=1)


def _bitmap(path: Path, name: str, item: dict[str, Any], width: int, height: int) -> NDArray[np.bool_]:
    """Bool [height, width]: a mask in base64, laid where the first point says."""
    try:
        (x, y), *_ = ((round(float(x)), round(float(y))) for x, y in item["points"])
        with Image.open(io.BytesIO(base64.b64decode(item["mask"]))) as image:
            if image.width * image.height > 4 * width * height:
                raise ValueError(f"an image of {image.width}×{image.height}")
            part = np.asarray(image) != 0
        if part.ndim != 2:
            raise ValueError(f"an image of mode {image.mode}")
    except (
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        OSError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:
        raise MaskError(f"{path}: the mask of {name} cannot be read ({error})") from error
    bitmap = np.zeros((height, width), bool)
    left, top = max(0, x), max(0, y)
    inside = part[top - y : max(0, height - y), left - x : max(0, width - x)]
    bitmap[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return bitmap


def _count(points: Any) -> int:
    return len(points) if isinstance(points, list) else 0
