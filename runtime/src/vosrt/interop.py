"""Results as the types of other Python packages, none of which vosrt needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from vosrt.errors import InputError, OptionError
from vosrt.types import U8Array

if TYPE_CHECKING:
    from vosrt.types import ObjectResult


def to_supervision(labels: U8Array, object_ids: Sequence[int], objects: Mapping[int, ObjectResult]) -> Any:
    """Return the objects that a frame shows as `supervision.Detections`: boxes, masks, confidence and tracks.

    An object's number is its ``tracker_id`` and its ``class_id``, and names its ``class_name``.

    Args:
        labels: u8 [H, W] of object numbers.
        object_ids: those that are tracked.
        objects: what is known of each.

    Raises:
        OptionError: supervision is not installed.
        InputError: the labels are on a GPU.
    """
    try:
        supervision = import_module("supervision")
    except ImportError as error:
        raise OptionError("supervision is not installed; install it with: pip install supervision") from error
    if any(object_id not in objects for object_id in object_ids):
        raise InputError("the labels are on a GPU; open the stream with labels_on='host'")
    shown = [object_id for object_id in object_ids if objects[object_id].present]
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
