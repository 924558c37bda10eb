"""What is written can be read back exactly, is whole, and appears under its name only when it is."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vosrt.errors import WorkError
from vosrt.types import U8Array
from vosrt.video.base import Frame, FrameSink, SegmentedFrame
from vosrt.video.palette import davis_palette
from vosrt.video.rle import decode
from vosrt.video.sinks import OverlayVideo, PaletteMasks, ResultFolder, RleLines, write_json


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


def write_video(path: Path, times: list[float], height: int = 48, width: int = 64) -> None:
    sink = OverlayVideo(path, fps=25)
    for index, time_s in enumerate(times):
        sink.write(segmented(index, time_s, height=height, width=width))
        assert not path.exists()
    sink.close()


def test_the_video_is_what_browsers_play(tmp_path: Path) -> None:
    """H.264 in 4:2:0, tagged colours, and the index in front of the data."""
    path = tmp_path / "overlay.mp4"
    write_video(path, [t / 25 for t in range(30)])
    images, times, stream = read_video(path)
    assert len(images) == 30
    assert times == pytest.approx([t / 25 for t in range(30)], abs=1e-4)
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert stream.average_rate == Fraction(25)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert [file.name for file in tmp_path.iterdir()] == ["overlay.mp4"]


def test_colours_survive(tmp_path: Path) -> None:
    path = tmp_path / "overlay.mp4"
    write_video(path, [0.0, 0.1], height=256, width=256)
    image = read_video(path)[0][0]
    assert image[128:, 128:].reshape(-1, 3).mean(axis=0) == pytest.approx((40, 90, 160), abs=12)


def test_variable_timestamps_are_kept_from_the_first_frame_on(tmp_path: Path) -> None:
    path = tmp_path / "overlay.mp4"
    write_video(path, [3.0, 3.1, 3.15, 3.9, 3.9, 5.0])
    assert read_video(path)[1] == pytest.approx([0.0, 0.1, 0.15, 0.9, 0.9, 2.0], abs=1e-3)


@pytest.mark.parametrize(("height", "width"), [(47, 63), (48, 63), (47, 64)])
def test_odd_sizes_grow_by_one_pixel(tmp_path: Path, height: int, width: int) -> None:
    path = tmp_path / "overlay.mp4"
    write_video(path, [0.0], height=height, width=width)
    assert read_video(path)[0][0].shape == (48, 64, 3)


def test_masks_have_the_davis_palette_and_the_name_of_their_frame(tmp_path: Path) -> None:
    sink = PaletteMasks(tmp_path / "masks")
    item = segmented(3, 0.0, name="frame_0003")
    sink.write(item)
    sink.close()
    assert [file.name for file in (tmp_path / "masks").iterdir()] == ["frame_0003.png"]
    with Image.open(tmp_path / "masks" / "frame_0003.png") as image:
        assert image.mode == "P"
        assert image.getpalette() == davis_palette().reshape(-1).tolist()
        np.testing.assert_array_equal(np.asarray(image), item.labels)


def test_lines_hold_every_tracked_object(tmp_path: Path) -> None:
    path = tmp_path / "masks.jsonl"
    sink = RleLines(path)
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


@pytest.mark.parametrize("sink", [OverlayVideo(Path("v.mp4"), 25), PaletteMasks(Path("m")), RleLines(Path("l.jsonl"))])
def test_without_frames_nothing_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: FrameSink) -> None:
    monkeypatch.chdir(tmp_path)
    sink.close()
    assert not any(tmp_path.iterdir())


def write_one(sink: FrameSink) -> None:
    sink.write(segmented(0, 0.0))
    sink.close()  # a video encoder holds its first frames back


def test_a_vanished_folder_is_one_clear_error(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    sinks: list[FrameSink] = [OverlayVideo(gone / "v.mp4", 25), PaletteMasks(gone / "m"), RleLines(gone / "l.jsonl")]
    for sink in sinks:
        with pytest.raises(WorkError, match=r"gone.*: cannot be written \(No such file or directory\)"):
            write_one(sink)
    with pytest.raises(WorkError, match=r"gone.*: cannot be written"):
        write_json(gone / "summary.json", {})


def test_a_full_disk_leaves_no_half_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(self: Image.Image, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(WorkError, match="No space left on device"):
        PaletteMasks(tmp_path / "masks").write(segmented(0, 0.0))
    assert not any((tmp_path / "masks").iterdir())


class Recorder:
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


def test_the_folder_is_made_with_the_first_result_and_every_sink_is_closed() -> None:
    prepared: list[bool] = []
    first, second = Recorder(fails=True), Recorder()
    folder = ResultFolder(lambda: prepared.append(True), [first, second])
    assert not prepared
    folder.write(segmented(0, 0.0))
    folder.write(segmented(1, 0.1))
    assert prepared == [True]
    with pytest.raises(WorkError, match="full"):
        folder.close()
    assert (second.written, second.closed) == (2, True)
