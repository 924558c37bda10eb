"""Readings that begin at key frames: the very frames of a reading from the start, in time that grows with the range."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.fakes.media import write_video
from vosrt.types import U8Array
from vosrt.video import rewound
from vosrt.video.base import Frame, FrameSource, SourceOptions
from vosrt.video.key_frames import KeyFrames
from vosrt.video.packets import Packets
from vosrt.video.rewound import Rewound
from vosrt.video.source import open_source

COUNT, HEIGHT, WIDTH = 60, 48, 80
KINDS = {
    "closed.mp4": ("libx264", {"g": "8", "bf": "2"}),
    "open.mp4": ("libx264", {"g": "8", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
    "open.ts": ("libx264", {"g": "8", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
    "refresh.mkv": ("libx264", {"g": "8", "x264-params": "intra-refresh=1"}),
    "parts.avi": ("mpeg4", {"g": "8", "bf": "2"}),
    "reordered.avi": ("libx264", {"g": "8", "bf": "2"}),
    "all.avi": ("mjpeg", {}),
    "one.mp4": ("libx264", {"g": "600", "x264-params": "scenecut=0"}),
    "vp9.webm": ("libvpx-vp9", {"g": "8", "deadline": "realtime"}),
}


@pytest.fixture
def video(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A video of a square that moves over noise, as a parameter names it."""
    codec, options = KINDS[request.param]
    path = tmp_path / str(request.param)
    noise = np.random.default_rng(5).integers(0, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    pictures = [np.roll(noise, t, axis=1) for t in range(COUNT)]
    for t, picture in enumerate(pictures):
        picture[10:30, t : t + 20] = (20, 20, 240)
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    try:
        return write_video(path, pictures, codec=codec, rate=25, pix_fmt=pix_fmt, encoder=options)
    except (av.codec.codec.UnknownCodecError, ValueError):
        pytest.skip(f"FFmpeg is built without {codec}")


@pytest.fixture
def packets(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for every packet of the video that any source reads."""
    read: list[None] = []
    note = Packets._note

    def counted(self: Packets, *args: Any) -> None:
        read.append(None)
        note(self, *args)

    monkeypatch.setattr(Packets, "_note", counted)
    return read


def read(path: Path, begin: int, end: int, keys: KeyFrames | None = None) -> list[Frame]:
    source = open_source(str(path), start=begin, end=end, options=SourceOptions(keys=keys))
    try:
        return list(source)
    finally:
        source.close()


def same(ours: list[Frame], theirs: list[Frame]) -> None:
    assert [(each.index, each.time_s, each.name) for each in ours] == [
        (each.index, each.time_s, each.name) for each in theirs
    ]
    for each, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(each.image, other.image)


@pytest.mark.parametrize("video", KINDS, indirect=True)
def test_frames_are_those_of_a_reading_from_the_start(video: Path) -> None:
    whole, keys = read(video, 0, COUNT), KeyFrames()
    for begin, end in ((40, 50), (55, COUNT), (20, 30), (33, 34), (0, 3), (8, 17), (0, COUNT)):
        same(read(video, begin, end, keys), whole[begin:end])
    assert keys.trusted


@pytest.mark.parametrize("video", ["closed.mp4", "open.ts", "parts.avi", "vp9.webm"], indirect=True)
def test_the_way_back_reads_every_packet_few_times(
    video: Path, packets: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewound, "CHUNK_BYTES", 4 * HEIGHT * WIDTH * 3)
    keys = KeyFrames()

    def reopen(begin: int, end: int) -> FrameSource:
        return open_source(str(video), start=begin, end=end, options=SourceOptions(keys=keys))

    whole = read(video, 0, COUNT)
    source = open_source(str(video))
    packets.clear()
    backward = list(Rewound(reopen, source, 0, COUNT - 1))
    source.close()
    for frame, other in zip(reversed(backward), whole, strict=True):
        np.testing.assert_array_equal(frame.image, other.image)
    assert keys.trusted
    assert len(packets) < 8 * COUNT  # 15 chunks of 4 frames; from the start it is 15 / 2 of all frames, and 8 with B


@pytest.mark.parametrize("video", ["closed.mp4"], indirect=True)
@pytest.mark.parametrize("field", [0, 1, 2])
def test_what_differs_once_is_read_from_the_start(video: Path, field: int) -> None:
    """A timestamp, a time or pixels that differ in the middle of a range cost time and no frame."""
    whole, keys = read(video, 0, COUNT), KeyFrames()
    read(video, 50, 51, keys)
    seen: list[Any] = list(keys._seen[27])
    seen[field] += 1
    keys._seen[27] = tuple(seen)
    same(read(video, 24, 32, keys), whole[24:32])
    assert not keys.trusted
    same(read(video, 24, 32, keys), whole[24:32])


def test_damage_ends_the_trust(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """What is lost keeps its number only for who decoded all that came before."""
    request.param = "parts.avi"
    path = video.__wrapped__(request, tmp_path)  # type: ignore[attr-defined]
    data = bytearray(path.read_bytes())
    middle: U8Array = np.random.default_rng(0).integers(0, 255, 200, dtype=np.uint8)
    data[len(data) // 3 : len(data) // 3 + 200] = middle.tobytes()
    path.write_bytes(data)
    whole, keys = read(path, 0, COUNT), KeyFrames()
    for begin, end in ((45, 50), (40, 45), (18, 30)):
        same(read(path, begin, end, keys), [each for each in whole if begin <= each.index < end])
