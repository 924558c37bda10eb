"""Results as the types of other Python packages, none of which vosrt needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vosrt.errors import InputError, OptionError
from vosrt.types import U8Array
from vosrt.video.palette import davis_palette

if TYPE_CHECKING:
    from vosrt.types import ObjectResult
    from vosrt.video.base import SegmentedFrame


def to_supervision(labels: U8Array, object_ids: Sequence[int], objects: Mapping[int, ObjectResult]) -> Any:
    """Return the objects that a frame shows as `supervision.Detections`: boxes, masks, confidence and tracks.

    An object's number is its ``tracker_id`` and its ``class_id``, and names its ``class_name``.

    Args:
        labels: u8 [H, W] of object numbers.

    Raises:
        OptionError: supervision is not installed.
        InputError: the labels are on a GPU.
    """
    supervision = _package("supervision")
    shown = _shown(object_ids, objects)
    boxes = np.array([objects[each].box for each in shown], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    ids = np.array(shown, np.int64)
    return supervision.Detections(
        xyxy=boxes,
        mask=labels == ids.astype(np.uint8)[:, None, None],
        confidence=np.array([objects[each].confidence for each in shown], np.float32),
        class_id=ids,
        tracker_id=ids,
        data={"class_name": np.array([f"object {each}" for each in shown], str)},
    )


def to_fiftyone(labels: U8Array, object_ids: Sequence[int], objects: Mapping[int, ObjectResult]) -> Any:
    """Return the objects that a frame shows as `fiftyone.Detections`, each with its box and its mask within that.

    An object's number is its ``index``, and names its ``label``; ``confidence`` is as in `ObjectResult`.

    Args:
        labels: as for `to_supervision`.
        object_ids: likewise.
        objects: likewise.

    Raises:
        OptionError: FiftyOne is not installed.
        InputError: the labels are on a GPU.
    """
    fiftyone = _package("fiftyone.core.labels", "fiftyone")
    shown, (height, width) = _shown(object_ids, objects), labels.shape
    found = []
    for each in shown:
        x, y, w, h = objects[each].box
        found.append(
            fiftyone.Detection(
                label=f"object {each}",
                index=each,
                bounding_box=[x / width, y / height, w / width, h / height],
                mask=labels[y : y + h, x : x + w] == each,
                confidence=objects[each].confidence,
            )
        )
    return fiftyone.Detections(detections=found)


def to_napari(items: Iterable[SegmentedFrame]) -> list[tuple[Any, dict[str, Any], str]]:
    """Return frames and their objects as two layers of napari: ``viewer.add_layer(Layer.create(*each))`` for each.

    Args:
        items: what `Model.propagate` yields; all of it is kept.

    Returns:
        The pictures u8 [T, H, W, 3] RGB as an image and the object numbers u8 [T, H, W] as labels, in the overlay's
        colours; data, keywords and kind of each.
    """
    kept = [(each.frame.image[..., ::-1], each.labels) for each in items]
    pictures, labels = (np.stack(each) for each in zip(*kept, strict=True))
    palette = davis_palette() / 255
    colours: dict[int | None, Any] = {each: palette[each] for each in map(int, np.unique(labels))}
    colours |= {None: "transparent", 0: "transparent"}
    return [
        (pictures, {"name": "frames", "rgb": True}, "image"),
        (labels, {"name": "objects", "colormap": colours}, "labels"),
    ]


class RerunFile:
    """Frames, objects, areas and confidence over time as a recording that the Rerun viewer opens.

    Args:
        path: of the ``.rrd`` file.

    Raises:
        OptionError: the Rerun SDK is not installed, or the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._rerun = _package("rerun", "rerun-sdk")
        self._stream = self._rerun.RecordingStream("vosrt")
        try:
            self._stream.save(str(path))
        except (OSError, RuntimeError, ValueError) as error:
            raise OptionError(f"--rerun {path}: cannot be written ({error})") from error
        colours = [
            (i, f"object {i}" if i else "background", tuple(each)) for i, each in enumerate(davis_palette().tolist())
        ]
        self._stream.log("frame", self._rerun.AnnotationContext(colours), static=True)

    def write(self, item: SegmentedFrame) -> None:
        """Take one result."""
        rerun, stream, frame = self._rerun, self._stream, item.frame
        stream.set_time("frame", sequence=frame.index)
        stream.set_time("time", duration=frame.time_s)
        stream.log("frame/picture", rerun.Image(frame.image, color_model="BGR").compress(jpeg_quality=90))
        stream.log("frame/objects", rerun.SegmentationImage(item.labels))
        for each, found in item.objects.items():
            stream.log(f"objects/{each}/area_px", rerun.Scalars(found.area_px))
            stream.log(f"objects/{each}/confidence", rerun.Scalars(found.confidence))

    def close(self) -> None:
        """Finish the file."""
        self._stream.disconnect()


def _package(module: str, name: str = "") -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        name = name or module
        raise OptionError(f"{name} is not installed; install it with: pip install {name}") from error


def _shown(object_ids: Sequence[int], objects: Mapping[int, ObjectResult]) -> list[int]:
    if any(object_id not in objects for object_id in object_ids):
        raise InputError("the labels are on a GPU; open the stream with labels_on='host'")
    return [object_id for object_id in object_ids if objects[object_id].present]
