"""Where results go: overlay video, palette masks, COCO RLE lines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TextIO

import av
import cv2
import numpy as np
from PIL import Image

from vosrt.errors import WorkError
from vosrt.types import U8Array
from vosrt.video.base import FrameSink, SegmentedFrame
from vosrt.video.overlay import draw_overlay
from vosrt.video.palette import davis_palette
from vosrt.video.rle import encode_labels

_TIME_BASE = Fraction(1, 90_000)
_H264_OPTIONS = {"preset": "veryfast", "crf": "20"}
_KEY_FRAME_S = 2  # seconds between key frames, for seeking
_BT709 = 1  # the number of that matrix, transfer and set of primaries in H.264
_LIMITED_RANGE = 1


def part_of(path: Path) -> Path:
    """Return the temporary name a file has until it is whole."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what can go wrong while ``path`` is written into one clear error."""
    try:
        yield
    except (OSError, av.error.FFmpegError) as error:
        raise WorkError(f"{path}: cannot be written ({error.strerror or error}); is there space left?") from error


class OverlayVideo:
    """An H.264 video of the frames with the objects drawn over them, which any browser plays.

    Frames keep their timestamps. An odd width or height grows by one pixel, as 4:2:0 needs even ones.

    Args:
        path: where the finished ``.mp4`` goes; until then it has a temporary name beside it.
        fps: nominal frames per second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._path = path
        self._fps = fps
        self._file: _H264File | None = None

    def write(self, item: SegmentedFrame) -> None:
        """Append one frame."""
        image = _even(draw_overlay(item.frame.image, item.labels))
        with writing(self._path):
            if self._file is None:
                self._file = _H264File(part_of(self._path), self._fps, image.shape[1], image.shape[0])
            self._file.append(image, item.frame.time_s)

    def close(self) -> None:
        """Flush the encoder, write the index in front and give the file its name."""
        if self._file is None:
            return
        file, self._file = self._file, None
        with writing(self._path):
            file.finish()
            os.replace(part_of(self._path), self._path)


class _H264File:
    """An open mp4 file; times start with its first frame."""

    def __init__(self, path: Path, fps: float, width: int, height: int) -> None:
        rate = Fraction(fps).limit_denominator(1001)
        options = {**_H264_OPTIONS, "g": str(max(1, round(rate * _KEY_FRAME_S)))}
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream("libx264", rate=rate, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        context = self._stream.codec_context
        context.time_base = _TIME_BASE
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        context.thread_count = 2
        self._began_s: float | None = None
        self._last_pts = -1

    def append(self, image: U8Array, time_s: float) -> None:
        if self._began_s is None:
            self._began_s = time_s
        picture = av.VideoFrame.from_ndarray(image, format="bgr24").reformat(
            format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
        )
        # Strictly increasing, whatever the source says.
        self._last_pts = max(self._last_pts + 1, round((time_s - self._began_s) / _TIME_BASE))
        picture.pts, picture.time_base = self._last_pts, _TIME_BASE
        self._container.mux(self._stream.encode(picture))

    def finish(self) -> None:
        try:
            self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()


def _even(image: U8Array) -> U8Array:
    height, width = image.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return image
    return np.asarray(cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE), np.uint8)


class PaletteMasks:
    """A folder of PNG masks with the DAVIS palette, whose pixel values are object ids.

    Args:
        folder: where they go; created with the first mask.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._palette = davis_palette().tobytes()

    def write(self, item: SegmentedFrame) -> None:
        """Write one mask under a temporary name and rename it."""
        path = self._folder / f"{item.frame.name}.png"
        image = Image.fromarray(item.labels)
        image.putpalette(self._palette)
        with writing(path):
            self._folder.mkdir(exist_ok=True)
            try:
                image.save(part_of(path), format="PNG", compress_level=4)
            except BaseException:
                part_of(path).unlink(missing_ok=True)
                raise
            os.replace(part_of(path), path)

    def close(self) -> None:
        """Nothing to finish: every mask is whole once written."""


class RleLines:
    """JSON lines, one a frame, with the COCO run-length encoding of every object.

    Args:
        path: where the finished file goes; until then it has a temporary name beside it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def write(self, item: SegmentedFrame) -> None:
        """Append the line of one frame."""
        line = json.dumps(_as_record(item), separators=(",", ":"))
        with writing(self._path):
            if self._file is None:
                self._file = part_of(self._path).open("w", encoding="ascii")
            self._file.write(line + "\n")

    def close(self) -> None:
        """Give the file its name."""
        if self._file is None:
            return
        file, self._file = self._file, None
        with writing(self._path):
            file.close()
            os.replace(part_of(self._path), self._path)


def _as_record(item: SegmentedFrame) -> dict[str, object]:
    labels = item.labels
    areas = np.bincount(labels.reshape(-1), minlength=256)
    objects = []
    for object_id, counts in encode_labels(labels, item.object_ids).items():
        objects.append(
            {
                "id": object_id,
                "segmentation": {"size": list(labels.shape), "counts": counts},
                "area": int(areas[object_id]),
                "confidence": round(item.object_confidence.get(object_id, 0.0), 4),
            }
        )
    frame = item.frame
    return {"frame": frame.index, "name": frame.name, "time_s": round(frame.time_s, 6), "objects": objects}


class ResultFolder:
    """Several sinks in one folder, which is created when the first result is there and not before.

    Args:
        prepare: called once before the first write, to create the folder and make room.
        sinks: what is written into it.
    """

    def __init__(self, prepare: Callable[[], None], sinks: list[FrameSink]) -> None:
        self._prepare = prepare
        self._sinks = sinks
        self.started = False

    def write(self, item: SegmentedFrame) -> None:
        """Give the result to every sink."""
        if not self.started:
            self._prepare()
            self.started = True
        for sink in self._sinks:
            sink.write(item)

    def close(self) -> None:
        """Close every sink, also where one of them fails; the first failure is raised at the end."""
        errors: list[WorkError] = []
        for sink in self._sinks:
            try:
                sink.close()
            except WorkError as error:
                errors.append(error)
        if errors:
            raise errors[0]


def write_json(path: Path, document: dict[str, object]) -> None:
    """Write a JSON document under a temporary name and rename it.

    Raises:
        WorkError: it cannot be written.
    """
    with writing(path):
        try:
            part_of(path).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
            os.replace(part_of(path), path)
        except BaseException:
            with suppress(OSError):
                part_of(path).unlink(missing_ok=True)
            raise
