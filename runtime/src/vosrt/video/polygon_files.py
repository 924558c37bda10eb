"""Outlines of the objects in the files of other programs: COCO instances, and LabelMe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from vosrt._results import Target
from vosrt.video.base import SegmentedFrame
from vosrt.video.outlines import outlines
from vosrt.video.sinks import Lines, Sink

_LABELME_VERSION = "5.5.0"  # the version whose layout this is
_JPEG_QUALITY = 95
_IDS_PER_FRAME = 256


class CocoInstances(Lines):
    """One JSON document with the polygons of every frame, in the layout of COCO instances.

    Images have the numbers of their frames, every object is a category with its number.

    Args:
        object_ids: of all objects that are marked anywhere.
        file_name: gives the name of a frame's picture, by its index.
    """

    def __init__(self, target: Target, name: str, object_ids: Sequence[int], file_name: Callable[[int], str]) -> None:
        super().__init__(target, name)
        self._object_ids, self._file_name = object_ids, file_name
        self._state: dict[str, Any] = {"first": None, "last": None, "size": [0, 0], "annotations": 0}

    def header(self) -> str:
        """All that is known beforehand; annotations come first, as images are known at the end only."""
        categories = [{"id": each, "name": f"object {each}", "supercategory": "object"} for each in self._object_ids]
        info = {"description": "objects followed by vosrt"}
        return f'{{"info": {json.dumps(info)},\n"categories": {json.dumps(categories)},\n"annotations": ['

    def lines(self, item: SegmentedFrame) -> str:
        """The annotations of one frame, one per line."""
        state, height, width = self._state, *item.labels.shape
        state.update(last=item.frame.index, size=[width, height])
        state["first"] = item.frame.index if state["first"] is None else state["first"]
        texts = []
        for object_id in item.object_ids:
            if (record := _annotation(item, object_id)) is not None:
                texts.append(("," if state["annotations"] else "") + "\n" + json.dumps(record, separators=(",", ":")))
                state["annotations"] += 1
        return "".join(texts)

    def footer(self) -> Iterator[str]:
        """The images, one by one."""
        width, height = self._state["size"]
        yield '\n],\n"images": ['
        for index in range(self._state["first"], self._state["last"] + 1):
            image = {"id": index, "file_name": self._file_name(index), "width": width, "height": height}
            yield ("," if index > self._state["first"] else "") + "\n" + json.dumps(image)
        yield "\n]}\n"

    def keep(self) -> dict[str, Any]:
        """See `Sink`."""
        return {**super().keep(), **self._state}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Sink`."""
        super().restore(state)
        self._state = {name: state[name] for name in self._state}


def _annotation(item: SegmentedFrame, object_id: int) -> dict[str, Any] | None:
    region = item.objects[object_id]
    if not region.present:
        return None
    polygons = outlines(item.labels, object_id, region.box)
    return {
        "id": item.frame.index * _IDS_PER_FRAME + object_id,  # the same in a resumed run
        "image_id": item.frame.index,
        "category_id": object_id,
        "segmentation": [polygon.round(2).reshape(-1).tolist() for polygon in polygons],
        "area": region.area_px,
        "bbox": list(region.box),
        "iscrowd": 0,
        "score": round(region.confidence, 4),
    }


class LabelMeFiles(Sink):
    """A JSON file of LabelMe for every frame, beside its picture, so that the folder can be opened and corrected.

    Parts of one object have its number as ``group_id``.
    """

    def __init__(self, target: Target, folder: str) -> None:
        self._target, self._folder = target, folder

    def write(self, item: SegmentedFrame) -> None:
        """Write the picture, then its file."""
        name, (height, width) = item.frame.name, item.labels.shape
        shapes = [
            {
                "label": f"object {object_id}",
                "points": np.floor(polygon).tolist(),  # LabelMe fills pixels by their number, the outline included
                "group_id": object_id,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for object_id in item.object_ids
            for polygon in outlines(item.labels, object_id, item.objects[object_id].box)
        ]
        document = {
            "version": _LABELME_VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": f"{name}.jpg",
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        _, picture = cv2.imencode(".jpg", item.frame.image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        self._target.write(f"{self._folder}/{name}.jpg", picture.tobytes())
        text = json.dumps(document, indent=1) + "\n"
        self._target.write(f"{self._folder}/{name}.json", text.encode())

    def close(self) -> None:
        """Do nothing: every file is complete once written."""
