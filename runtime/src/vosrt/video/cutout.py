"""The objects alone, cut out of their background: pictures or a video with an alpha channel."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO, Final, cast

import av
import cv2
import numpy as np
from av.packet import PacketSideData

from vosrt._results import Growing, Results, Target
from vosrt.types import U8Array
from vosrt.video.base import SegmentedFrame
from vosrt.video.sinks import Sink, as_rate, encoding, even

_FRINGE_PX = 16  # around an object that keep their colour: coarse colour channels and scaling mix neighbours
_PACKET = struct.Struct("<q?II")  # pts, key frame, bytes of the packet and of its alpha channel
_ALPHA: Final = "matroska_block_additional"
_ALPHA_TYPE = 15  # AV_PKT_DATA_MATROSKA_BLOCKADDITIONAL of libavcodec
_BT709 = 1
_LIMITED_RANGE = 1


def cut_out(image: U8Array, labels: U8Array) -> U8Array:
    """Return the objects before nothing: u8 [H, W, 4] BGRA, alpha 255 on objects and 0 elsewhere, not premultiplied.

    Pixels beside an object keep their colour, those further away are black.

    Args:
        image: u8 [H, W, 3], BGR.
        labels: u8 [H, W], 0 for background.
    """
    alpha = np.asarray(cv2.inRange(labels, 1, 255), np.uint8)
    x, y, width, height = cv2.boundingRect(alpha)
    cut = np.zeros((*labels.shape, 4), np.uint8)
    if width == 0:
        return cut
    top, left = max(0, y - _FRINGE_PX), max(0, x - _FRINGE_PX)
    near = np.s_[top : y + height + _FRINGE_PX, left : x + width + _FRINGE_PX]
    kept = cv2.dilate(alpha[near], np.ones((3, 3), np.uint8), iterations=_FRINGE_PX)
    coloured = cv2.copyTo(image[near], kept)
    cv2.merge((coloured, alpha[near]), cut[near])
    return cut


class CutOutPictures(Sink):
    """PNG pictures of the objects with an alpha channel, one a frame."""

    def __init__(self, target: Target, folder: str) -> None:
        self._target, self._folder = target, folder

    def write(self, item: SegmentedFrame) -> None:
        """Write one picture."""
        _, data = cv2.imencode(".png", cut_out(item.frame.image, item.labels), [cv2.IMWRITE_PNG_COMPRESSION, 1])
        self._target.write(f"{self._folder}/{item.frame.name}.png", data.tobytes())

    def close(self) -> None:
        """Do nothing: every picture is complete once written."""


@dataclass(frozen=True)
class Coding:
    """Encoding of a video with an alpha channel.

    Attributes:
        container: format of the file.
        codec: name of the encoder.
        ticks: time stamps per second.
    """

    container: str
    codec: str
    pix_fmt: str
    ticks: int
    options: dict[str, str]
    tags: dict[str, str]


CODINGS = {
    "mov": Coding(
        "mov", "prores_ks", "yuva444p10le", 90_000, {"profile": "4444", "alpha_bits": "16", "vendor": "apl0"}, {}
    ),
    # Without frames that look ahead each picture is one packet, and its alpha channel belongs to it.
    "webm": Coding(
        "webm",
        "libvpx-vp9",
        "yuva420p",
        1000,
        {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "5", "auto-alt-ref": "0", "lag-in-frames": "0"},
        {"alpha_mode": "1"},
    ),
}


class CutOutVideo(Sink):
    """A video of the objects with an alpha channel: ProRes 4444 for editors, VP9 for browsers.

    Neither can go on after a crash in its own container, so packets are collected in a growing file of their own and
    put into the container when the sink is closed. Each second of video is encoded by itself, so that a resumed run
    gives the same packets.

    Args:
        fps: nominal frames per second.
        coding: one of `CODINGS`.
        pixel_aspect: width of a pixel by its height, which players stretch it by.
    """

    def __init__(
        self, target: Results, name: str, fps: float, coding: Coding, pixel_aspect: Fraction = Fraction(1)
    ) -> None:
        self._target, self._name, self._coding, self._pixel_aspect = target, name, coding, pixel_aspect
        self._rate = as_rate(fps)
        self._file: Growing | None = None
        self._encoder: av.VideoCodecContext | None = None
        self.group = max(1, round(self._rate))  # frames that are encoded together
        self._state: dict[str, Any] = {"frames": 0, "size": [0, 0], "began_s": 0.0, "last_pts": -1}

    def write(self, item: SegmentedFrame) -> None:
        """Append one frame."""
        image, state = even(cut_out(item.frame.image, item.labels)), self._state
        with encoding(self._target.path / self._name):
            if self._file is None:
                self._file = self._target.append(self._name)
                state.update(size=[image.shape[1], image.shape[0]], began_s=item.frame.time_s)
            if state["frames"] % self.group == 0:
                self._end_group()
            self._encoder = self._encoder or self._open_encoder()
            picture = av.VideoFrame.from_ndarray(image, format="bgra").reformat(
                format=self._coding.pix_fmt, dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            # Containers need strictly increasing times, and sources may repeat one.
            time = round((item.frame.time_s - state["began_s"]) * self._coding.ticks)
            picture.pts = state["last_pts"] = max(state["last_pts"] + 1, time)
            picture.time_base = Fraction(1, self._coding.ticks)
            self._store(self._encoder.encode(picture))
            state["frames"] += 1

    def keep(self) -> dict[str, Any]:
        """See `Sink`."""
        with encoding(self._target.path / self._name):
            self._end_group()
        return dict(self._state)

    def restore(self, state: dict[str, Any]) -> None:
        """See `Sink`."""
        self._state = dict(state)
        if state["frames"]:
            self._file = self._target.append(self._name)

    def close(self) -> None:
        """Put the packets into the container and give it its name."""
        if self._file is None:
            return
        file, self._file = self._file, None
        with encoding(self._target.path / self._name):
            self._end_group(file)
            with self._target.whole(self._name) as whole:
                self._write_container(file.read_back(), whole)
            file.discard()

    def _open_encoder(self) -> av.VideoCodecContext:
        context = cast(av.VideoCodecContext, av.CodecContext.create(self._coding.codec, "w"))
        context.width, context.height = self._state["size"]
        context.sample_aspect_ratio = self._pixel_aspect
        context.pix_fmt, context.time_base = self._coding.pix_fmt, Fraction(1, self._coding.ticks)
        context.framerate, context.thread_count = self._rate, 2
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        context.options = {**self._coding.options, "g": str(self.group)}
        return context

    def _end_group(self, file: Growing | None = None) -> None:
        if self._encoder is not None:
            self._store(self._encoder.encode(None), file)
            self._encoder = None

    def _store(self, packets: Iterable[av.Packet[Any]], file: Growing | None = None) -> None:
        file = file or self._file
        assert file is not None
        for packet in packets:
            alpha = bytes(packet.get_sidedata(_ALPHA)) if packet.has_sidedata(_ALPHA) else b""
            data = bytes(packet)
            file.write(_PACKET.pack(packet.pts, packet.is_keyframe, len(data), len(alpha)) + data + alpha)
            file.keep()

    def _write_container(self, packets: BinaryIO, whole: BinaryIO) -> None:
        with av.open(whole, "w", format=self._coding.container, options={"fflags": "+bitexact"}) as container:
            stream = cast(av.VideoStream, container.add_stream(self._coding.codec, rate=self._rate))
            stream.width, stream.height = self._state["size"]
            stream.pix_fmt, stream.codec_context.sample_aspect_ratio = self._coding.pix_fmt, self._pixel_aspect
            stream.time_base = stream.codec_context.time_base = Fraction(1, self._coding.ticks)
            stream.metadata.update(self._coding.tags)
            stream.codec_context.options = dict(self._coding.options)
            for packet in _read_packets(packets):
                packet.stream, packet.time_base = stream, Fraction(1, self._coding.ticks)
                packet.duration = round(self._coding.ticks / self._rate)
                container.mux_one(packet)


def _read_packets(file: BinaryIO) -> Iterator[av.Packet[Any]]:
    while head := file.read(_PACKET.size):
        pts, is_keyframe, length, alpha_length = _PACKET.unpack(head)
        packet = av.Packet(file.read(length))
        packet.pts = packet.dts = pts
        packet.is_keyframe = is_keyframe
        if alpha_length:
            side = PacketSideData(_ALPHA_TYPE, alpha_length)  # type: ignore[call-arg]  # PyAV's stub omits them
            side.update(file.read(alpha_length))
            packet.set_sidedata(side)
        yield packet
