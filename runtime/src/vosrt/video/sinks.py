"""Sinks of results: overlay video, palette masks, COCO RLE lines.

A sink writes through a `Target` (see `vosrt._results`): whole files with ``target.write(name, data)``, files that grow
with the frames with ``target.append(name)``. The target names failures, lists the files, and lets a resumed run go on
in a growing file where the checkpoint was; a sink overrides `Sink.keep` and `Sink.restore` only for what it has in mind
besides.
"""

from __future__ import annotations

import base64
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import cv2
import numpy as np
from av.codec.context import Flags
from PIL import Image

from vosrt._results import Growing, Results, Target
from vosrt.core.native import Presence
from vosrt.errors import OptionError, VosrtError, WorkError
from vosrt.text import printable
from vosrt.types import PropagationOptions, U8Array
from vosrt.video.base import FrameSink, SegmentedFrame
from vosrt.video.overlay import OverlayStyle, draw_overlay, shrink
from vosrt.video.palette import davis_palette

_TIME_BASE = Fraction(1, 90_000)
_LONGEST = 1 << 30  # ticks, 3.3 hours: more than twice as many do not fit into a frame of mp4
_START_CODE = b"\0\0\0\1"
_BT709 = 1  # the number of that matrix, transfer and set of primaries in H.264
_LIMITED_RANGE = 1
# One fragment a frame: what a killed process leaves is playable to the last frame that came out of the encoder.
_FRAGMENTED = {"movflags": "+empty_moov+default_base_moof+frag_every_frame", "flush_packets": "1"}
_INDEX_BYTES, _INDEX_BYTES_PER_FRAME = 4096, 48  # upper bounds of what the index of an mp4 file takes


class Sink(FrameSink):
    """A sink that a resumed run can go on with.

    Attributes:
        group: a run can be resumed after a multiple of so many frames.
    """

    group = 1

    def keep(self) -> dict[str, Any]:
        """Return what `restore` needs besides the growing files, as JSON."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `keep` gave; called before the first frame of a resumed run."""

    def summary(self) -> dict[str, Any]:
        """Return the sink's part of the summary, as JSON."""
        return {}


def as_rate(fps: float) -> Fraction:
    """Return a frame rate as a fraction, as containers hold it; below 1, the seconds per frame are rounded instead."""
    return Fraction(fps).limit_denominator(1001) if fps >= 1 else 1 / Fraction(1 / fps).limit_denominator(1001)


@contextmanager
def encoding(path: Path) -> Iterator[None]:
    """Turn failures of FFmpeg, while it writes the file ``path``, into errors of the work."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise WorkError(f"{path}: cannot be written ({error.strerror or error}); is there space left?") from error


@dataclass(frozen=True)
class Codec:
    """Encoding of the overlay.

    Attributes:
        encoder: its name in FFmpeg.
        container: format and suffix of the finished file.
        options: of the encoder. Without frames that look ahead, packets are in the order of the frames, and a group of
            pictures can follow any other.
    """

    encoder: str
    container: str
    options: dict[str, str]


_VP9 = {"crf": "30", "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"}
# A third of the time of the preset veryfast at crf 20, with files and errors of the same size.
_H264 = {"preset": "ultrafast", "crf": "22", "bf": "0", "x264-params": "cabac=1:deblock=1,0,0"}
CODECS = {
    "h264": Codec("libx264", "mp4", _H264),
    "vp9": Codec("libvpx-vp9", "webm", {**_VP9, "auto-alt-ref": "0", "lag-in-frames": "0"}),
    "av1": Codec("libsvtav1", "mp4", {"preset": "10", "crf": "30", "svtav1-params": "pred-struct=1:lookahead=0:lp=2"}),
}


class OverlayVideo(Sink):
    """A video of the frames with the objects drawn over them, which any browser plays.

    Frames keep their timestamps. An odd width or height grows by one pixel, as 4:2:0 needs even ones.

    While it is written it is a fragmented mp4 file, playable at any moment. Each second of video is encoded by itself,
    so that a resumed run gives the same bytes as one that was not interrupted. When it is closed, its packets are
    copied into a file with the index in front.

    Args:
        fps: nominal frames per second.
        pixel_aspect: width of a pixel by its height, which players stretch it by.
        style: how objects are drawn; None is the usual one.
        codec: one of `CODECS`.

    Raises:
        OptionError: the installed PyAV has no such encoder.
    """

    def __init__(
        self,
        target: Results,
        name: str,
        fps: float,
        pixel_aspect: Fraction = Fraction(1),
        style: OverlayStyle | None = None,
        codec: str = "h264",
    ) -> None:
        self._codec = CODECS[codec]
        if self._codec.encoder not in av.codecs_available:
            raise OptionError(
                f"the codec is {codec}, but the installed PyAV has no encoder {self._codec.encoder}; "
                f"choose another of {', '.join(CODECS)}, or: pip install --force-reinstall av"
            )
        self._target, self._name, self._pixel_aspect = target, name, pixel_aspect
        self._style = style or OverlayStyle()
        self._rate = as_rate(fps)
        self.group = max(1, round(self._rate))  # frames that are encoded together
        self._file: _Fragments | None = None

    def write(self, item: SegmentedFrame) -> None:
        """Append one frame."""
        image = even(draw_overlay(*shrink(item.frame.image, item.labels, self._style.size), self._style))
        with encoding(self._target.path / self._name):
            if self._file is None:
                self._file = self._open(image.shape[1], image.shape[0])
            self._file.append(image, item.frame.time_s)

    def keep(self) -> dict[str, Any]:
        """See `Sink`."""
        with encoding(self._target.path / self._name):
            return {} if self._file is None else self._file.end_group()

    def restore(self, state: dict[str, Any]) -> None:
        """See `Sink`."""
        if not state:
            return
        with encoding(self._target.path / self._name):
            earlier = self._target.set_aside(self._name)
            self._file = self._open(state["width"], state["height"])
            if earlier is not None:
                with earlier:
                    self._file.take_over(earlier, state)
                self._target.drop_aside(self._name)

    def close(self) -> None:
        """Flush the encoder, copy everything into a file with the index in front, and give it its name."""
        if self._file is None:
            return
        file, self._file = self._file, None
        with encoding(self._target.path / self._name):
            fragments = file.finish()
            with self._target.whole(self._name) as whole:
                _copy_with_index_in_front(fragments.read_back(), whole, self._codec.container, file.frames)
            fragments.discard()

    def _open(self, width: int, height: int) -> _Fragments:
        shape = width, height, self._pixel_aspect
        return _Fragments(self._target.append(self._name), self._codec, self._rate, self.group, shape)


class _Fragments:
    """An mp4 file of one fragment a frame; times start with its first frame."""

    def __init__(
        self, file: Growing, codec: Codec, rate: Fraction, group: int, shape: tuple[int, int, Fraction]
    ) -> None:
        os.environ.setdefault("SVT_LOG", "1")  # the encoder of AV1 prints its settings otherwise
        self._codec = codec
        self._file, self._rate, self._group, self._shape = file, rate, group, shape
        self._container = av.open(file, "w", format="mp4", options=_FRAGMENTED)
        self._stream = cast(av.VideoStream, self._container.add_stream(codec.encoder, rate=rate))
        self._encoder: av.VideoCodecContext | None = self._stream.codec_context
        self._set_up(self._stream.codec_context)
        self._began_s: float | None = None
        self._last_pts = -1
        self._held = b""  # the newest packet, which is written with the next one
        self.frames = 0

    def append(self, image: U8Array, time_s: float) -> None:
        if self.frames and self.frames % self._group == 0:
            self.end_group()
        if self._encoder is None:
            self._encoder = cast(av.VideoCodecContext, av.CodecContext.create(self._codec.encoder, "w"))
            self._set_up(self._encoder)
        if self._began_s is None:
            self._began_s = time_s
        picture = av.VideoFrame.from_numpy_buffer(image, format="bgr24").reformat(
            format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
        )
        # Containers need strictly increasing times, and sources may repeat one.
        wanted = round((time_s - self._began_s) / _TIME_BASE)
        self._last_pts += min(max(1, wanted - self._last_pts), _LONGEST)
        picture.pts, picture.time_base = self._last_pts, _TIME_BASE
        self._mux(self._encoder.encode(picture))
        self.frames += 1

    def end_group(self) -> dict[str, Any]:
        """Bring everything into the file; the next frame begins a new group. Returns what `take_over` needs."""
        if self._encoder is not None and self.frames:
            self._mux(self._encoder.encode(None))
            self._encoder = None
        width, height, _ = self._shape
        return {
            "frames": self.frames,
            "width": width,
            "height": height,
            "began_s": self._began_s,
            "last_pts": self._last_pts,
            "held": base64.b64encode(self._held).decode("ascii"),
        }

    def take_over(self, earlier: BinaryIO, state: dict[str, Any]) -> None:
        """Copy the packets of an interrupted run up to ``state``, and go on after them."""
        self.frames, self._began_s, self._last_pts = state["frames"], state["began_s"], state["last_pts"]
        with av.open(earlier, "r") as container:
            for packet in container.demux(container.streams.video[0]):
                if packet.pts is not None and packet.pts < self._last_pts:
                    data = bytes(packet)
                    if self._codec.encoder == "libx264":
                        data = _with_start_codes(data)
                    self._mux([_packet(data, packet.pts, packet.is_keyframe)])
        self._mux([_packet(base64.b64decode(state["held"]), self._last_pts, self._group == 1)])
        self._encoder = None

    def finish(self) -> Growing:
        """End the file and return it."""
        try:
            self.end_group()
        finally:
            self._container.close()
        return self._file

    def _set_up(self, context: av.VideoCodecContext) -> None:
        context.width, context.height, context.sample_aspect_ratio = self._shape
        context.pix_fmt, context.time_base, context.framerate = "yuv420p", _TIME_BASE, self._rate
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        context.thread_count = 2
        context.flags |= Flags.global_header
        context.options = {**self._codec.options, "g": str(self._group)}

    def _mux(self, packets: Iterable[av.Packet[Any]]) -> None:
        for packet in packets:
            packet.stream, packet.duration = self._stream, min(round(1 / (self._rate * _TIME_BASE)), _LONGEST)
            self._held = bytes(packet)
            self._container.mux_one(packet)
            self._file.keep()


def _packet(data: bytes, pts: int, is_keyframe: bool) -> av.Packet[Any]:
    packet: av.Packet[Any] = av.Packet(data)
    packet.pts = packet.dts = pts
    packet.time_base, packet.is_keyframe = _TIME_BASE, is_keyframe
    return packet


def _with_start_codes(data: bytes) -> bytes:
    """The H.264 units of a packet as the encoder gives them; in mp4, their length stands before each of them."""
    units, position = [], 0
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        units += [_START_CODE, data[position + 4 : position + 4 + length]]
        position += 4 + length
    return b"".join(units)


def _copy_with_index_in_front(fragments: BinaryIO, whole: BinaryIO, container_format: str, frames: int) -> None:
    """Copy the packets of a fragmented mp4 file into one that browsers can play while they load it."""
    option = "moov_size" if container_format == "mp4" else "reserve_index_space"
    options = {option: str(_INDEX_BYTES + _INDEX_BYTES_PER_FRAME * frames), "fflags": "+bitexact"}
    with av.open(fragments, "r") as source, av.open(whole, "w", format=container_format, options=options) as container:
        read = source.streams.video[0]
        written = container.add_stream_from_template(read, opaque=True)  # a decoder may have no encoder of its name
        for packet in source.demux(read):
            if packet.dts is not None:  # the last one is empty
                packet.stream = written
                container.mux_one(packet)


def even(image: U8Array) -> U8Array:
    """Return a picture whose sides are even; an odd one grows by a pixel."""
    height, width = image.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return image
    return np.asarray(cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE), np.uint8)


def palette_png(labels: U8Array) -> bytes:
    """Return labels u8 [H, W] as a PNG file with the DAVIS palette."""
    image = Image.fromarray(labels)
    image.putpalette(davis_palette().tobytes())
    data = io.BytesIO()
    image.save(data, format="PNG", compress_type=zlib.Z_RLE)  # half the time for masks, and smaller
    return data.getvalue()


class PaletteMasks(Sink):
    """PNG masks with the DAVIS palette, whose pixel values are object ids.

    Args:
        folder: their folder in it; empty for the target itself.
    """

    def __init__(self, target: Target, folder: str = "") -> None:
        self._target = target
        self._folder = f"{folder}/" if folder else ""

    def write(self, item: SegmentedFrame) -> None:
        """Write one mask."""
        self._target.write(f"{self._folder}{item.frame.name}.png", palette_png(item.labels))

    def close(self) -> None:
        """Do nothing: every mask is complete once written."""


class Lines(Sink):
    """A text file with some lines for every frame."""

    def __init__(self, target: Target, name: str) -> None:
        self._target, self._name = target, name
        self._file: Growing | None = None

    def header(self) -> str:
        """Return the text above the first frame."""
        return ""

    def lines(self, item: SegmentedFrame) -> str:
        """Return the text of one frame."""
        raise NotImplementedError

    def footer(self) -> Iterable[str]:
        """Yield the text below the last frame, in pieces."""
        return ()

    def write(self, item: SegmentedFrame) -> None:
        """Append the lines of one frame."""
        text = self.lines(item)
        if self._file is None:
            text = self.header() + text
            self._file = self._target.append(self._name)
        self._file.write(text.encode())
        self._file.keep()

    def keep(self) -> dict[str, Any]:
        """See `Sink`."""
        return {"begun": self._file is not None}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Sink`."""
        if state["begun"]:
            self._file = self._target.append(self._name)

    def close(self) -> None:
        """Write the last lines and give the file its name."""
        if self._file is not None:
            file, self._file = self._file, None
            for text in self.footer():
                file.write(text.encode())
            file.close()


class RleLines(Lines):
    """JSON lines, one a frame, with the COCO run-length encoding of every object."""

    def lines(self, item: SegmentedFrame) -> str:
        """The line of one frame."""
        frame = item.frame
        objects = [
            {
                "id": object_id,
                "segmentation": {"size": list(item.labels.shape), "counts": item.runs.counts(object_id)},
                "area": item.objects[object_id].area_px,
                "confidence": round(item.objects[object_id].confidence, 4),
                "state": item.objects[object_id].state,
                "state_confidence": round(item.objects[object_id].state_confidence, 4),
            }
            for object_id in item.object_ids
        ]
        record = {
            "frame": frame.index,
            "name": printable(frame.name),
            "time_s": round(frame.time_s, 6),
            "objects": objects,
        }
        return json.dumps(record, separators=(",", ":")) + "\n"


class ResultFolder:
    """Several sinks that write one result, which appears with the first frame and not before.

    Args:
        sinks: by name, in the order in which they take a frame.
        options: with the thresholds by which objects are lost and back.
    """

    def __init__(self, results: Results, sinks: Mapping[str, Sink], options: PropagationOptions | None = None) -> None:
        self._results = results
        self._sinks = dict(sinks)
        self._presence = Presence(options)
        self.frames = 0
        self.warnings: list[str] = []

    @property
    def started(self) -> bool:
        """Return whether any part of the result exists."""
        return self._results.started

    @property
    def group(self) -> int:
        """A run can be resumed after a multiple of so many frames."""
        return max([1, *(sink.group for sink in self._sinks.values())])

    def summary(self) -> dict[str, Any]:
        """Return the sinks' parts of the summary."""
        return {name: value for sink in self._sinks.values() for name, value in sink.summary().items()}

    def write(self, item: SegmentedFrame) -> None:
        """Give the result to every sink.

        The states of objects are those of the masks that are written, which may have been cleaned, and of the whole
        run, also where a resumed one began with another stream.
        """
        item = replace(item, measured=self._presence.follow(item.frame.index, item.objects))
        for sink in self._sinks.values():
            sink.write(item)
        self.frames += 1

    def keep(self, last_index: int, session: bytes) -> None:
        """Keep all that a resumed run needs to go on after the newest frame.

        Args:
            last_index: of that frame in its source.
            session: the stream after that frame; empty before the first annotation.
        """
        states = {name: sink.keep() for name, sink in self._sinks.items()}
        document = {"frames": self.frames, "last_index": last_index, "sinks": states}
        document["presence"] = self._presence.keep()
        try:
            self._results.save_checkpoint(document, session)
        except WorkError as error:  # no reason to lose the result
            self.warnings = [f"{error}; a run that is killed begins again, or at the session before"]

    def restore(self) -> tuple[int, bytes] | None:
        """Go on from what `keep` kept: index of the last frame and the session; None if nothing was kept.

        Raises:
            OutputError: it is damaged.
        """
        kept = self._results.load_checkpoint()
        if kept is None:
            return None
        document, session = kept
        for name, sink in self._sinks.items():
            sink.restore(document["sinks"][name])
        self._presence.restore(document["presence"])
        self.frames = int(document["frames"])
        return int(document["last_index"]), session

    def close(self) -> None:
        """Close every sink, also where one of them fails; the first failure is raised at the end."""
        errors: list[VosrtError] = []
        for sink in self._sinks.values():
            try:
                sink.close()
            except VosrtError as error:
                errors.append(error)
        if errors:
            raise errors[0]
