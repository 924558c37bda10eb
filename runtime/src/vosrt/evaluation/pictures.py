"""Pictures of a report: frames with prediction and annotation drawn over them, and which of them are worth a look."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from vosrt._reading import IMAGE_BYTES, read_bytes
from vosrt.errors import SourceError
from vosrt.evaluation.layouts import AnnotatedSequence, Dataset
from vosrt.types import U8Array
from vosrt.video.images import IMAGE_SUFFIXES, list_images
from vosrt.video.masks import MASK_SUFFIXES, name_key
from vosrt.video.overlay import draw_overlay

_WIDTH = 360  # pixels
_JPEG_QUALITY = 80
_WHITE = (255, 255, 255)


def worst_frames(values: Sequence[float], count: int) -> list[int]:
    """Positions of the worst frames, the worst first, none close to another, since neighbours look alike.

    Args:
        values: score per frame.
        count: at most so many.
    """
    distance = max(1, len(values) // (2 * count))
    chosen: list[int] = []
    for i in sorted(range(len(values)), key=lambda i: values[i]):
        if len(chosen) < count and all(abs(i - other) >= distance for other in chosen):
            chosen.append(i)
    return chosen


class Pictures:
    """Draws frames of one sequence.

    Args:
        source: its frames and annotations.
    """

    def __init__(self, dataset: Dataset, source: AnnotatedSequence, masks: Path) -> None:
        self._dataset = dataset
        self._source = source
        self._frames = _by_stem(source.frames, IMAGE_SUFFIXES)
        self._masks = _by_stem(masks, MASK_SUFFIXES)

    def element(self, stem: str) -> str:
        """Return an annotated frame as an image element that holds its data.

        Raises:
            SourceError: the frame is missing or cannot be read.
            MaskError: a mask cannot be read.
        """
        path = self._frames.get(stem)
        if path is None:
            raise SourceError(f"{self._source.frames}: has no frame {stem}, which is annotated")
        data = np.frombuffer(read_bytes(path, IMAGE_BYTES), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
        if image is None:
            raise SourceError(f"{path}: cannot be read as an image")
        height, width = image.shape[:2]
        size = (_WIDTH, max(1, round(height * _WIDTH / width)))
        small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
        prediction, annotation = (
            np.asarray(
                cv2.resize(self._dataset.read(file, width, height), size, interpolation=cv2.INTER_NEAREST), np.uint8
            )
            for file in (self._masks[stem], self._source.annotations[stem])
        )
        drawn = draw_overlay(small, prediction)
        _outline(drawn, annotation)
        _, jpeg = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        text = base64.b64encode(jpeg.tobytes()).decode("ascii")
        alt = f"{self._source.name}, frame {stem}: prediction tinted, annotation outlined"
        return f'<img src="data:image/jpeg;base64,{text}" width="{size[0]}" height="{size[1]}" alt="{escape(alt)}">'


def _by_stem(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    return {name_key(path.stem): path for path in list_images(folder, suffixes)}


def _outline(image: U8Array, annotation: U8Array) -> None:
    """Draw a white line around every object of the annotation."""
    for object_id in np.flatnonzero(np.bincount(annotation.reshape(-1))[1:]) + 1:
        mask = (annotation == object_id).view(np.uint8)
        contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        cv2.polylines(image, contours, True, _WHITE, 1, cv2.LINE_AA)
