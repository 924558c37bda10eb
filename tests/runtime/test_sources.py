"""Sources yield every frame upright with its time, and say where and why they stop."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from tests.fakes import media
from vosrt.errors import BrokenVideoError, OptionError, SourceError
from vosrt.types import U8Array
from vosrt.video.base import Frame, SourceOptions
from vosrt.video.source import open_source
from vosrt.video.timeline import Timeline

WIDTH, HEIGHT = 96, 64
CODECS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4", "gif": "gif"}

Write = Callable[..., Path]


@pytest.fixture
def write_video(tmp_path: Path) -> Write:
    """Writes a clip at 10 frames a second whose frame t is noise around the grey value 20 + 10 t."""

    def write(
        suffix: str = "mp4", count: int = 20, times: Sequence[float] | None = None, rotation: int = 0, **options: str
    ) -> Path:
        def pictures() -> Iterator[U8Array]:
            for t in range(count):
                noise = np.random.default_rng(t).integers(-15, 15, (HEIGHT, WIDTH, 3))
                image = (20 + 10 * t + noise).clip(0, 255).astype(np.uint8)
                image[:8, :8] = 255  # marks the top left corner
                yield image

        def prepare(stream: av.VideoStream) -> None:
            stream.bit_rate = 2_000_000
            if rotation:
                stream.set_display_rotation(rotation)
            if times is not None:
                stream.codec_context.time_base = Fraction(1, 1000)

        return media.write_video(
            tmp_path / f"clip.{suffix}",
            pictures(),
            codec=CODECS[suffix],
            pix_fmt="rgb8" if suffix == "gif" else "yuv420p",
            options=options,
            prepare=prepare,
            stamp=None if times is None else lambda t: (round(times[t] * 1000), Fraction(1, 1000)),
        )

    return write


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


def read_all(path: Path, **options: Any) -> list[Frame]:
    source = open_source(str(path), **options)
    try:
        return list(source)
    finally:
        source.close()


def read_until_broken(path: Path) -> tuple[list[Frame], BrokenVideoError]:
    source = open_source(str(path))
    frames: list[Frame] = []
    with pytest.raises(BrokenVideoError) as caught:
        frames.extend(source)  # keeps what came before the error
    source.close()
    return frames, caught.value


@pytest.mark.parametrize("suffix", CODECS)
def test_every_container_gives_all_frames_in_order(write_video: Write, suffix: str) -> None:
    frames = read_all(write_video(suffix))
    assert [frame.index for frame in frames] == list(range(20))
    assert [frame.name for frame in frames[:2]] == ["00000", "00001"]
    assert [frame.time_s for frame in frames] == pytest.approx([t / 10 for t in range(20)], abs=1e-3)
    assert all(frame.image.shape == (HEIGHT, WIDTH, 3) and frame.image.dtype == np.uint8 for frame in frames)
    grey = [float(frame.image[16:].mean()) for frame in frames]
    assert grey == pytest.approx([20 + 10 * t for t in range(20)], abs=9)


def test_info_is_known_before_reading(write_video: Write) -> None:
    source = open_source(str(write_video()))
    info = source.info
    source.close()
    assert (info.width, info.height, info.fps, info.frame_count, info.live) == (WIDTH, HEIGHT, 10.0, 20, False)


def test_a_range_keeps_the_numbers_of_the_source(write_video: Write) -> None:
    path = write_video()
    assert [frame.index for frame in read_all(path, start=5, end=8)] == [5, 6, 7]
    source = open_source(str(path), start=15, end=99)
    assert source.info.frame_count == 5
    source.close()


@pytest.mark.parametrize(("start", "end"), [(-1, None), (5, 5), (5, 2)])
def test_empty_ranges_are_refused(write_video: Write, start: int, end: int | None) -> None:
    with pytest.raises(OptionError, match=r"--(start|end) is"):
        open_source(str(write_video()), start=start, end=end)


def test_a_start_past_the_end_is_refused(write_video: Write) -> None:
    with pytest.raises(SourceError, match=r"has 20 frames; frame 20 \(--start\) is past the end"):
        open_source(str(write_video()), start=20)


def test_variable_frame_rate_keeps_its_timestamps(write_video: Write) -> None:
    times = [0.0, 0.1, 0.15, 0.4, 1.0, 1.05]
    frames = read_all(write_video("mkv", count=6, times=times))
    assert [frame.time_s for frame in frames] == pytest.approx(times, abs=2e-3)


@pytest.mark.parametrize(("rotation", "corner"), [(90, "bottom left"), (-90, "top right"), (180, "bottom right")])
def test_rotated_files_are_turned_upright(write_video: Write, rotation: int, corner: str) -> None:
    """A display matrix that turns counterclockwise brings the marked top left corner to the bottom left."""
    image = read_all(write_video(rotation=rotation), end=1)[0].image
    assert image.shape[:2] == ((HEIGHT, WIDTH) if rotation == 180 else (WIDTH, HEIGHT))
    rows = slice(-8, None) if "bottom" in corner else slice(8)
    columns = slice(-8, None) if "right" in corner else slice(8)
    assert image[rows, columns].mean() > 200
    assert image.mean() < 90


@pytest.mark.parametrize(
    ("suffix", "options"), [("mp4", {"movflags": "+faststart"}), ("mkv", {}), ("webm", {}), ("avi", {}), ("gif", {})]
)
def test_a_cut_off_file_yields_what_it_holds_and_says_where_it_breaks(
    write_video: Write, suffix: str, options: dict[str, str]
) -> None:
    path = write_video(suffix, **options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    frames, error = read_until_broken(path)
    assert 5 <= len(frames) < 19
    assert error.frame_index == len(frames)
    assert str(error).startswith(f"{path}: the video breaks at frame {len(frames)} (")


def test_noise_from_which_nothing_can_be_reached_is_a_break(write_video: Write) -> None:
    """All blocks lie in one cluster, so a Matroska demuxer finds no way back into the file."""
    path = write_video("mkv")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    path.write_bytes(data)
    frames, error = read_until_broken(path)
    assert 2 <= error.frame_index == len(frames) < 20
    assert "the rest cannot be read" in str(error)


@pytest.mark.parametrize("keep", [0.5, 0.02])
def test_a_truncated_file_without_index_is_refused(write_video: Write, keep: float) -> None:
    path = write_video("mp4")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(
        SourceError, match=r"clip.mp4: cannot be opened as a video \(.*expected a whole, playable video"
    ):
        open_source(str(path))


def test_files_that_are_no_video_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nope.mp4: no such file or folder"):
        open_source(str(tmp_path / "nope.mp4"))
    (tmp_path / "text.mp4").write_text("not a video at all")
    with pytest.raises(SourceError, match=r"text.mp4: cannot be opened as a video"):
        open_source(str(tmp_path / "text.mp4"))
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(SourceError, match=r"empty.mp4: is an empty file"):
        open_source(str(tmp_path / "empty.mp4"))


def test_sound_without_pictures_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(SourceError, match="has no video stream"):
        open_source(str(path))


def test_a_video_of_zero_frames_is_refused(write_video: Write) -> None:
    path = write_video("gif")
    data = path.read_bytes()
    first_picture = data.index(b"\x21\xf9\x04")
    path.write_bytes(data[:first_picture] + b";")
    with pytest.raises(SourceError, match=r"clip.gif: (holds no frame that can be decoded|cannot be opened)"):
        open_source(str(path))


def test_a_video_whose_frames_are_all_damaged_is_refused(write_video: Write) -> None:
    path = write_video("mkv")
    data = bytearray(path.read_bytes())
    start = data.index(bytes.fromhex("1F43B675")) + 40  # inside the first cluster
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)
    with pytest.raises(SourceError, match="holds no frame that can be decoded; expected a playable video"):
        open_source(str(path))


def test_a_video_is_read_over_http(write_video: Write) -> None:
    path = write_video("mp4", movflags="+faststart")
    handler = partial(QuietHandler, directory=str(path.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = open_source(f"http://127.0.0.1:{server.server_port}/{path.name}")
        frames = list(source)
        source.close()
        server.shutdown()
    assert len(frames) == 20
    assert not source.info.live


def test_unreachable_addresses_are_refused() -> None:
    with pytest.raises(SourceError, match=r"cannot be opened as a video \(.*reachable"):
        open_source("rtsp://127.0.0.1:1/camera")
    with pytest.raises(SourceError, match=r"protocol not found\); expected .* vos-run batch fetches from stores"):
        open_source("s3://bucket/clip.mp4")


def test_closing_waits_for_no_reader_and_harms_none(write_video: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted run closes a source in which a thread may still wait for a stalled stream."""
    inside, go_on = threading.Event(), threading.Event()
    place = Timeline.place

    def wait(timeline: Timeline, *arguments: Any, **options: Any) -> tuple[int, float]:
        if timeline.count == 3:
            inside.set()
            assert go_on.wait(10)
        return place(timeline, *arguments, **options)

    monkeypatch.setattr(Timeline, "place", wait)
    source = open_source(str(write_video(count=20)))
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(list, source)
        assert inside.wait(10)
        source.close()
        go_on.set()
        assert len(reading.result(10)) == 20
    source.close()
    with pytest.raises(AssertionError):
        next(source._container.demux())  # type: ignore[attr-defined]


def test_an_absent_camera_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SourceError, match="camera 97: cannot be opened"):
        open_source("97")
    assert capfd.readouterr().err == ""


def test_an_impossible_camera_number_is_refused() -> None:
    with pytest.raises(SourceError, match="camera 99999999999999: there is no such number"):
        open_source("99999999999999")


@pytest.fixture
def write_images(tmp_path: Path) -> Write:
    def write(names: Sequence[str], sizes: dict[str, tuple[int, int]] | None = None) -> Path:
        folder = tmp_path / "frames"
        folder.mkdir()
        for value, name in enumerate(names):
            width, height = (sizes or {}).get(name, (WIDTH, HEIGHT))
            cv2.imwrite(str(folder / name), np.full((height, width, 3), 10 * value, np.uint8))
        return folder

    return write


def test_a_folder_is_read_in_natural_order(write_images: Write) -> None:
    folder = write_images(["frame10.png", "frame2.png", "Frame1.png"])
    (folder / "notes.txt").write_text("ignored")
    (folder / "._frame3.png").write_bytes(b"ignored")
    frames = read_all(folder)
    assert [frame.name for frame in frames] == ["Frame1", "frame2", "frame10"]
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [20, 10, 0]
    assert [frame.index for frame in read_all(folder, start=1)] == [1, 2]


def test_mixed_sizes_are_refused_before_reading(write_images: Write) -> None:
    folder = write_images(["0.png", "1.png", "2.png"], {"2.png": (32, 16)})
    with pytest.raises(SourceError, match=r"2.png: is 32×16 but 0.png is 96×64; expected frames of one size"):
        open_source(str(folder))


def test_folders_without_frames_are_refused(write_images: Write, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="empty: holds no images; expected frames as bmp, dib"):
        open_source(str(tmp_path / "empty"))
    folder = write_images(["0.png", "1.png"])
    with pytest.raises(SourceError, match="has 2 frames; frame 2"):
        open_source(str(folder), start=2)
    (folder / "1.png").write_bytes(b"not an image")
    with pytest.raises(SourceError, match=r"1.png: cannot be read as an image; expected a whole frame"):
        open_source(str(folder))


def test_a_damaged_image_breaks_the_sequence_there(write_images: Write) -> None:
    folder = write_images(["0.png", "1.png", "2.png"])
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "1.png"), noise)
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[:60])  # the header is whole, so only reading finds out
    frames, error = read_until_broken(folder)
    assert [frame.index for frame in frames] == [0]
    assert error.frame_index == 1
    assert "1.png: frame 1 cannot be read as an image" in str(error)


@pytest.mark.parametrize(
    "name",
    ["cam1:front.mp4", "rtsp:x.mp4", "clip [v3] %03d.mp4", os.fsdecode(b"caf\xe9.mp4"), "a\nb.mp4", "0", "-x.mp4"],
)
def test_any_name_of_a_file_works(write_video: Write, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg would take ``cam1:`` in a relative path for a protocol."""
    path = write_video()
    path.rename(path.with_name(name))
    monkeypatch.chdir(path.parent)
    assert len(read_all(Path(name))) == 20


def test_names_of_frames_may_be_as_long_as_the_file_system_lets_them(write_images: Write) -> None:
    names = ["n" * 250 + f"{t}.png" for t in range(2)]
    assert [frame.name for frame in read_all(write_images(names))] == [name[:-4] for name in names]


def test_a_folder_mixes_suffixes_of_one_kind(tmp_path: Path, write_images: Write) -> None:
    folder = write_images(["0.jpg", "1.jpg", "2.jpg", "3.jpg"])
    (folder / "1.jpg").rename(folder / "1.jfif")
    (folder / "3.jpg").rename(folder / "3.JPE")
    source = open_source(str(folder))
    assert [frame.name for frame in source] == ["0", "1", "2", "3"]
    assert list(source.warnings) == []


def test_pictures_of_another_kind_are_named(write_images: Write) -> None:
    folder = write_images(["0.png", "1.png"])
    (folder / "2.heic").write_bytes(b"a phone's")
    (folder / "3.DNG").write_bytes(b"a camera's")
    (folder / "notes.txt").write_text("no picture")
    source = open_source(str(folder))
    assert list(source.warnings) == [
        f"{folder}: 2 pictures of another kind (2.heic) left out; expected frames of one kind"
    ]
    for name in ("0.png", "1.png"):
        (folder / name).unlink()
    with pytest.raises(
        SourceError, match=r"holds no images, only 2 pictures of another kind \(2.heic\); expected frames"
    ):
        open_source(str(folder))


def test_images_that_are_too_large_are_refused_by_their_headers(write_images: Write) -> None:
    folder = write_images(["0.png", "1.png"])
    with pytest.raises(SourceError, match=r"0.png: a frame is 96×64, 0.0 megapixels; expected at most 0.001"):
        open_source(str(folder), options=SourceOptions(max_megapixels=0.001))
    assert len(list(open_source(str(folder), options=SourceOptions(max_megapixels=0.01)))) == 2


def test_images_beyond_what_pillow_opens_are_one_clear_line(
    write_images: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow refuses them under any --max-megapixels."""
    folder = write_images(["a.png", "b.png"])
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(SourceError, match=r"a.png: has more than 0 megapixels, the most that is read of an image"):
        open_source(str(folder))
