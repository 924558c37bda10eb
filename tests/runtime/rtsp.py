"""A small RTSP server for tests: H.264 over the connection itself, as cameras behind firewalls send it."""

from __future__ import annotations

import base64
import re
import socketserver
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from threading import Event, Thread

import av
import numpy as np

WIDTH, HEIGHT, RATE = 96, 64, 25
_TICKS = 90_000


def encode(count: int, group: int = 10, size: tuple[int, int] = (WIDTH, HEIGHT)) -> list[list[bytes]]:
    """Encode frames whose grey value is 10 + 5 t modulo 250; return the NAL units of each."""
    width, height = size
    codec = av.CodecContext.create("libx264", "w")
    assert isinstance(codec, av.VideoCodecContext)
    codec.width, codec.height, codec.pix_fmt, codec.time_base = width, height, "yuv420p", Fraction(1, RATE)
    codec.options = {"tune": "zerolatency", "g": str(group), "preset": "ultrafast"}
    frames = []
    for t in range(count):
        picture = av.VideoFrame.from_ndarray(np.full((height, width, 3), (10 + 5 * t) % 250, np.uint8), format="bgr24")
        picture.pts = t
        data = b"".join(bytes(packet) for packet in codec.encode(picture))
        frames.append([unit for unit in re.split(b"\x00\x00\x00?\x01", data) if unit])
    return frames


class _Camera(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(
        self, frames: list[list[bytes]], drop_after: list[int | None], interval_s: float, stall_at: int | None
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.frames, self.drop_after, self.interval_s = frames, drop_after, interval_s
        self.sent, self.stall_at, self.goes_on = 0, stall_at, Event()


class _Session(socketserver.StreamRequestHandler):
    server: _Camera

    def handle(self) -> None:
        self._sequence = 0
        try:
            while (line := self.rfile.readline()) and self._answer(line.decode().split()):
                pass
        except ConnectionError:
            pass

    def _answer(self, request: list[str]) -> bool:
        headers = {}
        while (line := self.rfile.readline().decode().strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        extra, body = "", ""
        if request[0] == "OPTIONS":
            extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
        elif request[0] == "DESCRIBE":
            units = {unit[0] & 31: unit for unit in self.server.frames[0]}
            sets = ",".join(base64.b64encode(units[kind]).decode() for kind in (7, 8))
            body = (
                "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
                f"a=rtpmap:96 H264/{_TICKS}\r\na=fmtp:96 packetization-mode=1;sprop-parameter-sets={sets}\r\n"
                "a=control:t\r\n"
            )
            extra = "Content-Type: application/sdp\r\n"
        elif request[0] == "SETUP":
            extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
        if body:
            extra += f"Content-Length: {len(body)}\r\n"
        self.wfile.write(f"RTSP/1.0 200 OK\r\nCSeq: {headers.get('cseq', 1)}\r\n{extra}\r\n{body}".encode())
        if request[0] == "PLAY":
            self._play()
            return False
        return request[0] != "TEARDOWN"

    def _play(self) -> None:
        """Send the frames of this moment on, as a camera does, until the connection is to drop."""
        drop_after = self.server.drop_after.pop(0) if self.server.drop_after else None
        for place, frame in enumerate(self.server.frames):
            if place == self.server.stall_at:
                self.server.stall_at = None
                self.server.goes_on.wait()
                return
            if place == drop_after:
                return
            for unit in frame:
                self._send(unit, place * _TICKS // RATE, last=unit is frame[-1])
            self.wfile.flush()
            self.server.sent += 1
            time.sleep(self.server.interval_s)

    def _send(self, unit: bytes, stamp: int, *, last: bool) -> None:
        parts = [unit]
        if len(unit) > 1200:  # in fragments
            pieces = [unit[place : place + 1200] for place in range(1, len(unit), 1200)]
            kinds = [(0x80 if piece is pieces[0] else 0) | (0x40 if piece is pieces[-1] else 0) for piece in pieces]
            head = (unit[0] & 0xE0) | 28
            parts = [bytes([head, kind | (unit[0] & 31)]) + piece for kind, piece in zip(kinds, pieces, strict=True)]
        for part in parts:
            self._sequence += 1
            end = 0x80 if last and part is parts[-1] else 0
            packet = struct.pack(">BBHII", 0x80, 96 | end, self._sequence, stamp, 1) + part
            self.wfile.write(b"$\0" + struct.pack(">H", len(packet)) + packet)


@contextmanager
def camera(
    count: int = 40,
    *,
    drop_after: tuple[int | None, ...] = (),
    interval_s: float = 0.01,
    then: tuple[int, int] | None = None,
    stall_at: int | None = None,
) -> Iterator[str]:
    """Run a camera; give its address.

    Args:
        count: frames that a connection delivers before it ends.
        drop_after: per connection, after how many frames it drops; None is not at all.
        then: width and height of the second half of the frames; None: as the first.
        stall_at: after how many frames the first connection that gets there stays open and sends nothing more.
    """
    frames = encode(count) if then is None else encode(count // 2) + encode(count - count // 2, size=then)
    with _Camera(frames, list(drop_after), interval_s, stall_at) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"rtsp://127.0.0.1:{server.server_address[1]}/camera"
        finally:
            server.goes_on.set()
            server.shutdown()
