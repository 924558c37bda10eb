"""What is written can be read back exactly, is whole, and appears under its name only when it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import pytest
from PIL import Image

from vosrt._files import write_file
from vosrt._results import Results
from vosrt.errors import WorkError
from vosrt.types import U8Array
from vosrt.video.base import Frame, SegmentedFrame
from vosrt.video.palette import davis_palette
from vosrt.video.rle import decode
from vosrt.video.sinks import OverlayVideo, PaletteMasks, ResultFolder, RleLines, Sink


def segmented(index: int, time_s: float, *, height: int = 48, width: int = 64, name: str = "") -> SegmentedFrame:
    image = np.full((height, width, 3), (40, 90, 160), np.uint8)
    labels = np.zeros((height, width), np.uint8)
    labels[10:20, 10 + index : 20 + index], labels[30:40, 40:60] = 1, 200
    frame = Frame(image, index, time_s, name or f"{index:05d}")
    return SegmentedFrame(frame, labels, (1, 3, 200), {1: 0.9, 3: 0.0, 200: 0.51234567})


def read_video(path: Path) -> tuple[list[U8Array], list[float], av.VideoStream]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        images = [np.asarray(frame.to_ndarray(format="bgr24"), np.uint8) for frame in frames]
        return images, [frame.time or 0.0 for frame in frames], stream


@pytest.fixture
def results(tmp_path: Path) -> Iterator[Results]:
    """Results that are written into ``tmp_path``."""
    with Results(tmp_path, "test", {}) as opened:
        yield opened


def names_in(folder: Path) -> list[str]:
    """All files but the list of them."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return [name for name in names if name != ".vosrt.jsonl"]


def write_video(results: Results, times: list[float], height: int = 48, width: int = 64) -> None:
    sink, path = OverlayVideo(results, "overlay.mp4", fps=25), results.path / "overlay.mp4"
    for index, time_s in enumerate(times):
        sink.write(segmented(index, time_s, height=height, width=width))
        assert not path.exists()
    sink.close()


def test_the_video_is_what_browsers_play(results: Results, tmp_path: Path) -> None:
    """H.264 in 4:2:0, tagged colours, and the index in front of the data."""
    path = tmp_path / "overlay.mp4"
    write_video(results, [t / 25 for t in range(30)])
    images, times, stream = read_video(path)
    assert len(images) == 30
    assert times == pytest.approx([t / 25 for t in range(30)], abs=1e-4)
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert stream.average_rate == Fraction(25)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert names_in(tmp_path) == ["overlay.mp4"]


def test_colours_survive(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "overlay.mp4"
    write_video(results, [0.0, 0.1], height=256, width=256)
    image = read_video(path)[0][0]
    assert image[128:, 128:].reshape(-1, 3).mean(axis=0) == pytest.approx((40, 90, 160), abs=12)


def test_variable_timestamps_are_kept_from_the_first_frame_on(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "overlay.mp4"
    write_video(results, [3.0, 3.1, 3.15, 3.9, 3.9, 5.0])
    assert read_video(path)[1] == pytest.approx([0.0, 0.1, 0.15, 0.9, 0.9, 2.0], abs=1e-3)


@pytest.mark.parametrize("seconds", [1.5, 600, 3600, 86_400])
def test_slow_frames_keep_their_times(results: Results, tmp_path: Path, seconds: float) -> None:
    """Timelapses have a frame every 1.5 s, hour or day; mp4 can show a frame for 3.3 hours at most."""
    sink, path = OverlayVideo(results, "overlay.mp4", fps=1 / seconds), tmp_path / "overlay.mp4"
    for index in range(3):
        sink.write(segmented(index, index * seconds))
    sink.close()
    _, times, _ = read_video(path)
    assert times == pytest.approx([0, min(seconds, 11_930.5), 2 * min(seconds, 11_930.5)], abs=0.1)


@pytest.mark.parametrize(("height", "width"), [(47, 63), (48, 63), (47, 64)])
def test_odd_sizes_grow_by_one_pixel(results: Results, tmp_path: Path, height: int, width: int) -> None:
    path = tmp_path / "overlay.mp4"
    write_video(results, [0.0], height=height, width=width)
    assert read_video(path)[0][0].shape == (48, 64, 3)


def test_masks_have_the_davis_palette_and_the_name_of_their_frame(results: Results, tmp_path: Path) -> None:
    sink = PaletteMasks(results, "masks")
    item = segmented(3, 0.0, name="frame_0003")
    sink.write(item)
    sink.close()
    assert [file.name for file in (tmp_path / "masks").iterdir()] == ["frame_0003.png"]
    with Image.open(tmp_path / "masks" / "frame_0003.png") as image:
        assert image.mode == "P"
        assert image.getpalette() == davis_palette().reshape(-1).tolist()
        np.testing.assert_array_equal(np.asarray(image), item.labels)


def test_lines_hold_every_tracked_object(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "masks.jsonl"
    sink = RleLines(results, path.name)
    items = [segmented(index, index / 10) for index in range(3)]
    for item in items:
        sink.write(item)
        assert not path.exists()
    sink.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["frame"] for line in lines] == [0, 1, 2]
    for item, line in zip(items, lines, strict=True):
        assert [entry["id"] for entry in line["objects"]] == [1, 3, 200]
        for entry in line["objects"]:
            mask = decode(entry["segmentation"]["counts"], *entry["segmentation"]["size"])
            np.testing.assert_array_equal(mask, item.labels == entry["id"])
            assert entry["area"] == mask.sum()
    assert lines[0]["objects"][2]["confidence"] == 0.5123


def sinks_of(results: Results) -> dict[str, Sink]:
    return {
        "video": OverlayVideo(results, "overlay.mp4", 5),
        "rle": RleLines(results, "masks.jsonl"),
        "masks": PaletteMasks(results, "masks"),
    }


@pytest.mark.parametrize("name", ["video", "rle", "masks"])
def test_without_frames_nothing_appears(results: Results, tmp_path: Path, name: str) -> None:
    sinks_of(results)[name].close()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["video", "rle", "masks"])
def test_a_vanished_folder_is_one_clear_error(tmp_path: Path, name: str) -> None:
    sink = sinks_of(Results(tmp_path / "gone", "test", {}))[name]
    with pytest.raises(WorkError, match=r"gone.*: cannot be written \(No such file or directory\)"):
        sink.write(segmented(0, 0.0))
    with pytest.raises(WorkError, match=r"gone.*: cannot be written"):
        write_file(tmp_path / "gone" / "summary.json", "{}")


def test_a_full_disk_leaves_no_half_mask(results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: BinaryIO, data: bytes) -> None:
        file.write(data[:10])
        raise OSError(28, "No space left on device")

    PaletteMasks(results, "masks").write(segmented(0, 0.0))
    monkeypatch.setattr("vosrt._results.write_all", fail)
    with pytest.raises(WorkError, match=r"masks/00001.png: cannot be written .No space left on device"):
        PaletteMasks(results, "masks").write(segmented(1, 0.0))
    assert names_in(tmp_path) == ["masks/00000.png"]


class Recorder(Sink):
    def __init__(self, fails: bool = False) -> None:
        self.written = 0
        self.closed = False
        self.fails = fails

    def write(self, item: SegmentedFrame) -> None:
        self.written += 1

    def close(self) -> None:
        self.closed = True
        if self.fails:
            raise WorkError("full")


def test_every_sink_is_closed(results: Results) -> None:
    first, second = Recorder(fails=True), Recorder()
    folder = ResultFolder(results, {"first": first, "second": second})
    folder.write(segmented(0, 0.0))
    folder.write(segmented(1, 0.1))
    with pytest.raises(WorkError, match="full"):
        folder.close()
    assert (second.written, second.closed, folder.frames) == (2, True, 2)
