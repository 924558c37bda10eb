"""The formats of other programs in which results are written: one table for the commands and the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vosrt._results import Target
from vosrt.video.base import SegmentedFrame, SourceInfo
from vosrt.video.images import list_images
from vosrt.video.outlines import outlines
from vosrt.video.polygon_files import CocoInstances, LabelMeFiles
from vosrt.video.sinks import Lines, Sink

_JPEG_QUALITY = 95


@dataclass(frozen=True)
class Format:
    """A format of another program.

    Attributes:
        title: its name, for people.
        about: what is written, in a few words.
        file: the file or folder that is written.
        open: opens what writes it, with the target, that name, the source and the numbers of all objects.
    """

    title: str
    about: str
    file: str
    open: Callable[[Target, str, SourceInfo, Sequence[int]], Sink]


class YoloFiles(Sink):
    """A data set of YOLO for segmentation: a picture and a text file per frame, and ``data.yaml``.

    A line is a class, from 0 in order of the object numbers, and one polygon in parts of width and height.
    """

    def __init__(self, target: Target, folder: str, object_ids: Sequence[int]) -> None:
        self._target, self._folder = target, folder
        self._classes = {object_id: at for at, object_id in enumerate(object_ids)}
        self._begun = False

    def write(self, item: SegmentedFrame) -> None:
        """Write the picture, then its labels."""
        if not self._begun:
            names = "".join(f"  {at}: object {object_id}\n" for object_id, at in self._classes.items())
            text = f"path: .\ntrain: images/train\nval: images/train\nnc: {len(self._classes)}\nnames:\n{names}"
            self._target.write(f"{self._folder}/data.yaml", text.encode())
            self._begun = True
        size = np.array(item.labels.shape[::-1], np.float64)
        lines = [
            f"{self._classes[object_id]} " + " ".join(f"{value:.6f}" for value in (polygon / size).reshape(-1)) + "\n"
            for object_id in item.object_ids
            for polygon in outlines(item.labels, object_id, item.objects[object_id].box)
        ]
        picture = cv2.imencode(".jpg", item.frame.image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
        self._target.write(f"{self._folder}/images/train/{item.frame.name}.jpg", picture.tobytes())
        self._target.write(f"{self._folder}/labels/train/{item.frame.name}.txt", "".join(lines).encode())

    def close(self) -> None:
        """Do nothing: every file is complete once written."""


class MotLines(Lines):
    """Boxes as in the results of MOTChallenge: frames and pixels count from 1, and an object's number is its track."""

    def lines(self, item: SegmentedFrame) -> str:
        """A line per object that the frame shows."""
        shown = [(object_id, item.objects[object_id]) for object_id in item.object_ids]
        return "".join(
            f"{item.frame.index + 1},{object_id},{each.box[0] + 1},{each.box[1] + 1},{each.box[2]},{each.box[3]},"
            f"{each.confidence:.4f},-1,-1,-1\n"
            for object_id, each in shown
            if each.present
        )


class CvatImages(Lines):
    """Annotations in the layout "CVAT for images 1.1"; parts of one object share a ``group_id``."""

    def __init__(self, target: Target, name: str, object_ids: Sequence[int], file_name: Callable[[int], str]) -> None:
        super().__init__(target, name)
        self._object_ids, self._file_name = object_ids, file_name

    def header(self) -> str:
        """The labels."""
        labels = "".join(f"<label><name>object {each}</name></label>" for each in self._object_ids)
        head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
        return f"{head}<meta><task><labels>{labels}</labels></task></meta>\n"

    def lines(self, item: SegmentedFrame) -> str:
        """One image."""
        from xml.sax.saxutils import quoteattr  # which imports HTTP and TLS

        height, width = item.labels.shape
        name = quoteattr(self._file_name(item.frame.index))
        shapes = "".join(
            f'<polygon label="object {object_id}" source="auto" occluded="0" z_order="0" group_id="{object_id}" '
            f'points="{";".join(f"{x:.2f},{y:.2f}" for x, y in polygon)}"></polygon>\n'
            for object_id in item.object_ids
            for polygon in outlines(item.labels, object_id, item.objects[object_id].box)
        )
        return f'<image id="{item.frame.index}" name={name} width="{width}" height="{height}">\n{shapes}</image>\n'

    def footer(self) -> Iterator[str]:
        """The end."""
        yield "</annotations>\n"


class LabelStudioLines(Lines):
    """Tasks of Label Studio with polygons as predictions, one JSON document; points are in percent of the picture."""

    def __init__(self, target: Target, name: str, file_name: Callable[[int], str]) -> None:
        super().__init__(target, name)
        self._file_name = file_name
        self._tasks = 0

    def header(self) -> str:
        """The beginning of the list."""
        return "["

    def lines(self, item: SegmentedFrame) -> str:
        """One task."""
        height, width = item.labels.shape
        results = [
            {
                "id": f"{object_id}-{part}",
                "type": "polygonlabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "score": round(item.objects[object_id].confidence, 4),
                "value": {
                    "points": (polygon / (width, height) * 100).round(4).tolist(),
                    "polygonlabels": [f"object {object_id}"],
                    "closed": True,
                },
            }
            for object_id in item.object_ids
            for part, polygon in enumerate(outlines(item.labels, object_id, item.objects[object_id].box))
        ]
        data = {"image": self._file_name(item.frame.index)}
        task = {"data": data, "predictions": [{"model_version": "vosrt", "result": results}]}
        self._tasks += 1
        return ("," if self._tasks > 1 else "") + "\n" + json.dumps(task, separators=(",", ":"))

    def footer(self) -> Iterator[str]:
        """The end of the list."""
        yield "\n]\n"

    def keep(self) -> dict[str, object]:
        """See `Sink`."""
        return {**super().keep(), "tasks": self._tasks}

    def restore(self, state: dict[str, object]) -> None:
        """See `Sink`."""
        super().restore(state)
        self._tasks = int(str(state["tasks"]))


def _picture_names(info: SourceInfo) -> Callable[[int], str]:
    """Return the names of the frames' pictures: those in a folder, or ``00037.jpg`` for what has none."""
    if info.stems is None:
        return lambda index: f"{index:05d}.jpg"
    names = [path.name for path in list_images(Path(info.name))]
    return lambda index: names[index]


FORMATS: dict[str, Format] = {
    "coco": Format(
        "COCO",
        "polygons, coco.json",
        "coco.json",
        lambda target, name, info, ids: CocoInstances(target, name, ids, _picture_names(info)),
    ),
    "labelme": Format(
        "LabelMe",
        "a file per frame, to go on there",
        "labelme",
        lambda target, name, info, ids: LabelMeFiles(target, name),
    ),
    "yolo": Format(
        "YOLO",
        "a data set to train on",
        "yolo",
        lambda target, name, info, ids: YoloFiles(target, name, ids),
    ),
    "mot": Format(
        "MOTChallenge",
        "boxes and tracks, mot.txt",
        "mot.txt",
        lambda target, name, info, ids: MotLines(target, name),
    ),
    "cvat": Format(
        "CVAT",
        "polygons of images 1.1, cvat.xml",
        "cvat.xml",
        lambda target, name, info, ids: CvatImages(target, name, ids, _picture_names(info)),
    ),
    "label-studio": Format(
        "Label Studio",
        "polygons as predictions",
        "label-studio.json",
        lambda target, name, info, ids: LabelStudioLines(target, name, _picture_names(info)),
    ),
}
