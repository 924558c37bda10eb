"""Healthy videos are whole, damaged and joined ones are read on, and truncated ones are named as such."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from tests.fakes.media import write_video
from vosrt.errors import BrokenVideoError, SourceError
from vosrt.types import U8Array
from vosrt.video.base import Frame, FrameSource, SourceOptions
from vosrt.video.source import open_source

WIDTH, HEIGHT, RATE = 96, 64, 25
Make = Callable[..., bytes]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes the bytes of a clip at 25 frames a second whose corners are red, green (right) and blue (below)."""

    def write(
        suffix: str = "mp4",
        count: int = 20,
        size: tuple[int, int] = (WIDTH, HEIGHT),
        codec: str = "libx264",
        shift_s: float = 0.0,
        held_s: float = 0.0,
        rate: Fraction | int = RATE,
        encoder: dict[str, str] | None = None,
        options: dict[str, str] | None = None,
        prepare: Callable[[Any], None] = lambda stream: None,
    ) -> bytes:
        def pictures() -> Iterator[U8Array]:
            for t in range(count):
                noise = np.random.default_rng(t).integers(0, 60, (size[1], size[0], 3)).astype(np.uint8)
                noise[:16, :16], noise[:16, -16:], noise[-16:, :16] = (0, 0, 255), (0, 255, 0), (255, 0, 0)
                yield noise

        path = write_video(
            tmp_path / f"made.{suffix}",
            pictures(),
            codec=codec,
            rate=rate,
            pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p",
            encoder=encoder,
            options=options,
            prepare=prepare,
            stamp=lambda t: (t + round(shift_s * RATE), 1 / Fraction(rate)),
            held_s=held_s,
        )
        return path.read_bytes()

    return write


@pytest.fixture
def save(tmp_path: Path) -> Callable[[bytes, str], str]:
    def write(data: bytes, name: str) -> str:
        path = tmp_path / name
        path.write_bytes(data)
        return str(path)

    return write


def read(path: str, **options: Any) -> tuple[list[Frame], Sequence[str], FrameSource]:
    source = open_source(path, **options)
    frames = list(source)
    source.close()
    return frames, source.warnings, source


def steps(frames: list[Frame]) -> list[float]:
    return [round(b.time_s - a.time_s, 4) for a, b in pairwise(frames)]


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx"), ("gif", "gif")]
)
def test_a_last_frame_that_is_held_is_no_break(make: Make, save: Any, suffix: str, codec: str) -> None:
    def prepare(stream: Any) -> None:
        stream.pix_fmt = "rgb8" if suffix == "gif" else "yuv420p"

    frames, warnings, source = read(save(make(suffix, codec=codec, held_s=6.0, prepare=prepare), f"held.{suffix}"))
    assert len(frames) == 20
    assert frames[-1].time_s == pytest.approx(0.76)
    assert not warnings
    assert source.info.fps == pytest.approx(25) or suffix == "gif"  # whose average is all that is known


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "libx264"), ("mkv", "mjpeg"), ("webm", "libvpx")])
@pytest.mark.parametrize("rate", [Fraction(24000, 1001), 25, 7])
@pytest.mark.parametrize("count", [1, 7])
def test_a_short_file_is_whole_though_its_index_is_large_beside_its_frames(
    make: Make, save: Any, suffix: str, codec: str, rate: Fraction | int, count: int
) -> None:
    """Times in Matroska are rounded to milliseconds, so that a header promises a little more than the frames have."""
    frames, warnings, _ = read(save(make(suffix, count, codec=codec, rate=rate), f"short.{suffix}"))
    assert (len(frames), list(warnings)) == (count, [])


def test_an_index_behind_the_frames_is_no_frame_that_was_not_read(make: Make, save: Any) -> None:
    """The sound may be longer than the video, and an index may take more bytes than that share of the file."""
    data = bytearray(make("mkv", 20, encoder={"g": "1"}))
    tag = data.index(b"00:00:00.800")
    data[tag : tag + 12] = b"00:00:00.900"
    end = data.index(b"\x18\x53\x80\x67") + 4
    padding = b"\xec" + (1 << 56 | 3000).to_bytes(8, "big") + bytes(3000)
    length = int.from_bytes(data[end : end + 8], "big") + len(padding)
    assert (
        len(read(save(bytes(data[:end]) + length.to_bytes(8, "big") + bytes(data[end + 8 :]) + padding, "a.mkv"))[0])
        == 20
    )


@pytest.mark.parametrize(
    ("codec", "encoder"), [("libx264", {}), ("libx264", {"bf": "0"}), ("mpeg4", {"bf": "2"}), ("mjpeg", {})]
)
def test_frames_of_an_avi_are_shown_in_their_order(make: Make, save: Any, codec: str, encoder: dict[str, str]) -> None:
    """AVI stores no timestamps, and those that FFmpeg gives to reordered packets are not in the frames' order."""
    frames, warnings, _ = read(save(make("avi", codec=codec, encoder=encoder), "reordered.avi"))
    assert [frame.time_s for frame in frames] == pytest.approx([index / RATE for index in range(20)])
    assert list(warnings) == []


@pytest.mark.parametrize("count", [1, 2])
def test_the_first_frame_is_at_zero_though_a_recording_of_one_frame_does_not_say_when_it_begins(
    make: Make, save: Any, count: int
) -> None:
    data = make("ts", count, codec="mpeg2video", shift_s=1.4, encoder={"bf": "0"})
    assert [frame.time_s for frame in read(save(data, "one.ts"))[0]] == pytest.approx([0, 0.04][:count])


def test_fewer_frames_than_an_index_promises_are_a_warning(make: Make, save: Any) -> None:
    data = bytearray(make("avi", codec="mjpeg"))
    struct.pack_into("<I", data, data.index(b"avih") + 8 + 16, 300)
    struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, 300)
    frames, warnings, source = read(save(bytes(data), "stale.avi"))
    assert len(frames) == 20
    assert list(warnings) == [f"{source.info.name}: its header promises 300 frames but it holds 20"]


def test_a_longer_duration_in_a_header_is_no_break(make: Make, save: Any) -> None:
    data = bytearray(make("mkv"))
    place = data.index(b"\x44\x89\x88") + 3  # Duration, a double of milliseconds
    struct.pack_into(">d", data, place, 60_000.0)
    tag = data.index(b"00:00:00.800")
    data[tag : tag + 8] = b"00:01:00"
    assert len(read(save(bytes(data), "stale.mkv"))[0]) == 20


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("mp4", "libx264", {"movflags": "+faststart"}),
        ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ("mkv", "libx264", {"cluster_time_limit": "200"}),
        ("webm", "libvpx", {"cluster_time_limit": "200"}),
        ("avi", "mpeg4", {}),
        ("flv", "flv", {}),
    ],
)
@pytest.mark.parametrize("keep", [0.6, 0.8])
def test_a_truncated_file_is_broken(
    make: Make, save: Any, suffix: str, codec: str, options: dict[str, str], keep: float
) -> None:
    data = make(suffix, codec=codec, options=options, encoder={"g": "5"})
    source = open_source(save(data[: int(len(data) * keep)], f"cut.{suffix}"))
    with pytest.raises(BrokenVideoError, match=r"the video breaks at frame \d+ \((the end of the file|the data ends)"):
        list(source)
    source.close()


@pytest.mark.parametrize(("suffix", "options"), [("mp4", {"movflags": "+faststart"}), ("mkv", {})])
def test_only_what_follows_the_video_is_missing(make: Make, save: Any, suffix: str, options: dict[str, str]) -> None:
    data = make(suffix, options=options)
    if suffix == "mp4":
        data += struct.pack(">I4s", 500, b"free") + bytes(100)
    else:
        data = data[: data.rindex(b"\x1c\x53\xbb\x6b") + 6]  # the cues
    assert len(read(save(data, f"whole.{suffix}"))[0]) == 20


@pytest.mark.parametrize(
    ("suffix", "codec", "shift_s"), [("mp4", "libx264", 0.0), ("mkv", "libx264", 5.0), ("avi", "libx264", 0.0)]
)
def test_one_damaged_frame_is_left_out_and_the_others_keep_their_numbers(
    make: Make, save: Any, suffix: str, codec: str, shift_s: float
) -> None:
    options, encoder = {"movflags": "+faststart"} if suffix == "mp4" else {}, {"bf": "0", "g": "10"}
    data = bytearray(make(suffix, 40, codec=codec, shift_s=shift_s, options=options, encoder=encoder))
    with av.open(save(bytes(data), f"whole.{suffix}")) as container:
        damaged = next(packet for place, packet in enumerate(container.demux(video=0)) if place == 13)
        assert damaged.pos is not None
        data[damaged.pos : damaged.pos + damaged.size] = b"\xff" * damaged.size
    frames, warnings, source = read(save(bytes(data), f"damaged.{suffix}"))
    assert [frame.index for frame in frames] == [index for index in range(40) if index != 13]
    assert [frame.time_s for frame in frames] == pytest.approx([frame.index / RATE for frame in frames])
    assert "frame 13 could not be decoded and is left out" in warnings[0]
    assert source.info.frame_count in {40, None}
    assert [frame.index for frame in read(source.info.name, start=20, end=23)[0]] == [20, 21, 22]


def test_a_cluster_that_is_lost_renumbers_nothing(make: Make, save: Any) -> None:
    data = bytearray(make("mkv", 40, encoder={"bf": "0", "g": "5"}, options={"cluster_time_limit": "190"}))
    clusters = [place for place in range(len(data)) if data[place : place + 4] == b"\x1f\x43\xb6\x75"]
    data[clusters[3] : clusters[4]] = bytes(clusters[4] - clusters[3])
    frames, warnings, _ = read(save(bytes(data), "hole.mkv"))
    assert 30 <= len(frames) < 40
    assert [frame.time_s for frame in frames] == pytest.approx([frame.index / RATE for frame in frames], abs=1e-3)
    assert frames[-1].index == 39
    assert "could not be decoded" in warnings[0]


def test_a_file_whose_second_half_is_zeros_is_broken(make: Make, save: Any) -> None:
    """A download that allocated its space leaves such a file."""
    data = make("mp4", 40, options={"movflags": "+faststart"})
    half = len(data) // 2
    source = open_source(save(data[:half] + bytes(len(data) - half), "zeros.mp4"))
    with pytest.raises(BrokenVideoError, match="the rest cannot be decoded"):
        list(source)
    source.close()


@pytest.mark.parametrize("shift_s", [0.0, 3600.0])
def test_joined_recordings_are_one(make: Make, save: Any, shift_s: float) -> None:
    options = {"muxdelay": "0"}
    joined = make("ts", options=options) + make("ts", shift_s=shift_s, options=options)
    frames, warnings, source = read(save(joined, "joined.ts"))
    assert [frame.index for frame in frames] == list(range(40))
    assert set(steps(frames)) == {0.04}
    assert len(warnings) == 1
    assert "the timestamps restart or jump at frame 20" in warnings[0]
    assert [frame.time_s for frame in read(source.info.name, start=30)[0]] == pytest.approx(
        [index / RATE for index in range(30, 40)], abs=0.01
    )


@pytest.mark.parametrize(
    ("suffix", "codec"), [("flv", "flv"), ("flv", "libx264"), ("wmv", "wmv2"), ("mp4", "libx264"), ("mov", "mpeg4")]
)
def test_appended_recordings_are_read_where_the_reader_ends_with_the_first(
    make: Make, save: Any, suffix: str, codec: str
) -> None:
    parts = [make(suffix, count, codec=codec) for count in (20, 15, 10)]
    path = save(b"".join(parts), f"joined.{suffix}")
    frames, warnings, source = read(path)
    assert [frame.index for frame in frames] == list(range(45))
    assert [frame.time_s for frame in frames] == pytest.approx([index / RATE for index in range(45)], abs=0.01)
    assert warnings == [f"{path}: is 3 recordings that were joined; each follows the one before it"]
    assert source.info.frame_count is None or suffix not in ("mp4", "mov")
    assert [frame.index for frame in read(path, start=30, end=40)[0]] == list(range(30, 40))


def test_what_is_appended_and_no_recording_is_left_out(make: Make, save: Any) -> None:
    for data in (make("mp4") + b"\0\0\0\x10ftypisom\0\0\0\0", make("flv", codec="flv") + b"FLV\x01\x05\0\0\0\x09"):
        frames, warnings, _ = read(save(data, "appended.bin"))
        assert (len(frames), list(warnings)) == (20, [])


def test_joined_fragmented_files_give_every_frame_once(make: Make, save: Any) -> None:
    fragmented = make("mp4", options={"movflags": "+empty_moov+default_base_moof+frag_keyframe"})
    frames, warnings, _ = read(save(2 * fragmented, "fragments.mp4"))
    assert len(warnings) == 1
    assert [frame.index for frame in frames] == list(range(40))


def test_a_lost_packet_of_a_broadcast_is_read_over(make: Make, save: Any) -> None:
    data = make("ts", 40, encoder={"g": "10", "bf": "0"})
    packets = [data[place : place + 188] for place in range(0, len(data), 188)]
    inside = [place for place, packet in enumerate(packets) if not packet[1] & 0x40]  # no start of a frame
    del packets[inside[len(inside) // 2]]
    frames, warnings, _ = read(save(b"".join(packets), "lost.ts"))
    assert len(frames) in (39, 40)
    assert frames[-1].index == 39
    assert warnings


def test_what_a_lost_packet_took_is_concealed(tmp_path: Path, save: Any) -> None:
    """Without concealment, the rest of the key frame would be grey or green: three times this error."""
    random = np.random.default_rng(0)
    noise = cv2.GaussianBlur(random.integers(0, 256, (256, 416, 3), dtype=np.uint8), (0, 0), 5)
    still = np.asarray(cv2.normalize(noise, noise, 0, 240, cv2.NORM_MINMAX), np.uint8)
    pictures = [
        cv2.add(np.roll(still, 3 * t, 1), random.integers(0, 12, still.shape, dtype=np.uint8)) for t in range(30)
    ]
    encoder = {"g": "100", "bf": "0", "qp": "16"}
    data = write_video(tmp_path / "whole.ts", pictures, rate=25, encoder=encoder).read_bytes()
    packets = [data[place : place + 188] for place in range(0, len(data), 188)]
    inside = [place for place, packet in enumerate(packets) if not packet[1] & 0x40]  # no start of a frame
    del packets[inside[60]]
    pairs = zip(read(save(data, "whole.ts"))[0], read(save(b"".join(packets), "lost.ts"))[0], strict=True)
    errors = [float(np.abs(a.image.astype(int) - b.image).mean()) for a, b in pairs]
    assert 0 < max(errors) < 15


def test_a_change_of_size_is_named(make: Make, save: Any) -> None:
    source = open_source(save(make("ts") + make("ts", size=(64, 48)), "sizes.ts"))
    frames: list[Frame] = []
    with pytest.raises(BrokenVideoError, match=r"from 96×64 to 64×48 at frame 20; expected one size"):
        frames.extend(source)
    source.close()
    assert len(frames) == 20


def set_matrix(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """Write a display matrix into the track header of an MP4 file."""
    place = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    matrix = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    return data[:place] + matrix + data[place + 36 :]


CORNERS = {"red": (0, 0, 255), "green": (0, 255, 0), "blue": (255, 0, 0)}


@pytest.mark.parametrize(
    ("matrix", "corners"),  # top left, top right, bottom left, bottom right, as a player shows them
    [
        ((1, 0, 0, 1), ["red", "green", "blue", None]),
        ((-1, 0, 0, 1), ["green", "red", None, "blue"]),
        ((1, 0, 0, -1), ["blue", None, "red", "green"]),
        ((-1, 0, 0, -1), [None, "blue", "green", "red"]),
        ((0, 1, -1, 0), ["blue", "red", None, "green"]),
        ((0, -1, 1, 0), ["green", None, "red", "blue"]),
        ((0, 1, 1, 0), ["red", "blue", "green", None]),
        ((0, -1, -1, 0), [None, "green", "blue", "red"]),
    ],
)
def test_turns_and_mirrorings_are_shown_as_a_player_shows_them(
    make: Make, save: Any, matrix: tuple[int, int, int, int], corners: list[str | None]
) -> None:
    frames, _, source = read(save(set_matrix(make("mp4"), *matrix), "turned.mp4"), end=1)
    image = frames[0].image.astype(int)
    assert image.shape[:2] == ((HEIGHT, WIDTH) if matrix[0] else (WIDTH, HEIGHT))
    assert (source.info.height, source.info.width) == image.shape[:2]
    for place, name in zip([np.s_[3, 3], np.s_[3, -4], np.s_[-4, 3], np.s_[-4, -4]], corners, strict=True):
        near = {known: np.abs(image[place] - colour).max() for known, colour in CORNERS.items()}
        assert [known for known, distance in near.items() if distance < 90] == ([name] if name else [])


@pytest.mark.parametrize("turned", [False, True])
def test_pixels_that_are_not_square_are_told(make: Make, save: Any, turned: bool) -> None:
    def prepare(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2)

    data = make("mp4", prepare=prepare)
    _, _, source = read(save(set_matrix(data, 0, 1, -1, 0) if turned else data, "wide.mp4"))
    assert source.info.pixel_aspect == (Fraction(1, 2) if turned else 2)


def write_with_cover(path: Path, *, video: bool) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        cover = container.add_stream("mjpeg", rate=1)
        assert isinstance(cover, av.VideoStream)
        cover.width, cover.height, cover.pix_fmt = 300, 300, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        streams: list[Any] = [cover]
        if video:
            streams.append(container.add_stream("libx264", rate=RATE))
            streams[1].width, streams[1].height, streams[1].pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound = container.add_stream("aac", rate=44100)
        container.mux(cover.encode(av.VideoFrame(300, 300, "yuvj420p")))
        container.mux(cover.encode(None))
        for t in range(20 if video else 0):
            frame = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH, 3), 10 * t, np.uint8), format="bgr24")
            container.mux(streams[1].encode(frame))
        if video:
            container.mux(streams[1].encode(None))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 44100
        container.mux(sound.encode(samples))
        container.mux(sound.encode(None))


def test_a_cover_is_never_the_video(tmp_path: Path) -> None:
    write_with_cover(tmp_path / "film.mp4", video=True)
    frames, _, _ = read(str(tmp_path / "film.mp4"))
    assert len(frames) == 20
    assert frames[0].image.shape == (HEIGHT, WIDTH, 3)


def test_sound_with_a_cover_is_refused(tmp_path: Path) -> None:
    write_with_cover(tmp_path / "song.m4a", video=False)
    with pytest.raises(SourceError, match="has no video stream"):
        open_source(str(tmp_path / "song.m4a"))


def test_a_video_that_nothing_decodes_is_refused(tmp_path: Path, make: Make) -> None:
    known, unknown, data = tmp_path / "known.mp4", tmp_path / "unknown.mp4", make()
    known.write_bytes(data)
    assert len(read(str(known))[0]) == 20
    at = data.rindex(b"avc1")  # the first one names a brand
    unknown.write_bytes(data[:at] + b"xyz0" + data[at + 4 :])
    with pytest.raises(SourceError, match="encrypted or in a codec that FFmpeg does not decode; convert it"):
        open_source(str(unknown))


def test_an_edit_list_counts_what_will_be_decoded(make: Make, save: Any) -> None:
    """A trim without encoding keeps the frames since the key frame before, and hides them."""
    data = bytearray(make("mp4", 40, encoder={"bf": "0", "g": "100"}))
    place = data.index(b"elst") + 4
    assert struct.unpack_from(">II", data, place) == (0, 1)
    with av.open(save(bytes(data), "whole.mp4")) as container:
        ticks = container.streams.video[0].time_base
    assert ticks is not None
    start = round(15 / RATE / ticks)
    struct.pack_into(">Ii", data, place + 8, 1000, start)
    frames, _, source = read(save(bytes(data), "trimmed.mp4"))
    assert len(frames) == source.info.frame_count == 25
    assert set(steps(frames)) == {0.04}


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("avi", "mpeg4"), ("mkv", "libx264")])
def test_latin_1_metadata_refuses_no_video(make: Make, save: Any, suffix: str, codec: str) -> None:
    def prepare(stream: Any) -> None:
        stream.container.metadata["title"] = "MuXXller"

    data = make(suffix, codec=codec, prepare=prepare)
    assert b"MuXXller" in data
    assert len(read(save(data.replace(b"MuXXller", b"M\xfcller  "), f"title.{suffix}"))[0]) == 20


def test_frames_that_are_too_large_are_refused_before_they_are_decoded(make: Make, save: Any) -> None:
    path = save(make("mp4"), "large.mp4")
    with pytest.raises(
        SourceError, match=r"a frame is 96×64, 0.0 megapixels; expected at most 0.006; --max-megapixels"
    ):
        open_source(path, options=SourceOptions(max_megapixels=0.006))
    assert len(read(path, options=SourceOptions(max_megapixels=0.007))[0]) == 20


def test_animated_webp_is_refused_by_name(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (32, 32), (value, 0, 0)) for value in (0, 120, 240)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:])
    with pytest.raises(SourceError, match="animated WebP cannot be decoded here; convert it"):
        open_source(str(tmp_path / "a.webp"))
    pictures[0].save(tmp_path / "still.webp")
    assert len(read(str(tmp_path / "still.webp"))[0]) == 1
