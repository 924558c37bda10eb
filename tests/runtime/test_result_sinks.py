"""Tables, cut-outs and polygons hold what the masks hold, in the words of the programs that read them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools.coco import COCO  # type: ignore[import-untyped]

from vosrt._results import Results, open_results
from vosrt.core.native import measure_objects
from vosrt.types import StepResult, U8Array
from vosrt.video.base import Frame, SegmentedFrame
from vosrt.video.cleaning import Cleaned, Cleaning
from vosrt.video.cutout import CODINGS, CutOutPictures, CutOutVideo
from vosrt.video.outlines import outlines
from vosrt.video.polygon_files import CocoInstances, LabelMeFiles
from vosrt.video.polygons import read_polygons
from vosrt.video.sinks import ResultFolder, Sink
from vosrt.video.tables import Absence, ObjectTable

WIDTH, HEIGHT, FPS = 128, 96, 4  # whole macroblocks, beyond which the ProRes encoder reads uninitialised memory
MakeSink = Callable[[Results], Sink]


def scene(t: int, *, height: int = HEIGHT, width: int = WIDTH) -> SegmentedFrame:
    """A ring in motion, and two blobs of one object that are away in frames 3 and 4."""
    image = np.random.default_rng(3).integers(60, 90, (height, width, 3), dtype=np.uint8)
    labels = np.zeros((height, width), np.uint8)
    cv2.circle(labels, (30 + 2 * t, 45), 22, 7, -1)
    cv2.circle(labels, (30 + 2 * t, 45), 9, 0, -1)
    if t not in (3, 4):
        labels[10:20, 90:110], labels[60:80, 95:100] = 2, 2
    image[labels > 0] = (20, 40, 230)
    return SegmentedFrame(Frame(image, t, t / FPS, f"{t:05d}"), labels, (2, 7), {2: 0.75, 7: 0.87654})


FRAMES = [scene(t) for t in range(8)]
SINKS: dict[str, MakeSink] = {
    "table": lambda results: ObjectTable(results, "objects.csv"),
    "coco": lambda results: CocoInstances(results, "coco.json", (2, 7), lambda index: f"{index:05d}.jpg"),
    "labelme": lambda results: LabelMeFiles(results, "labelme"),
    "png": lambda results: CutOutPictures(results, "cutout"),
    "mov": lambda results: CutOutVideo(results, "cutout.mov", FPS, CODINGS["mov"]),
    "webm": lambda results: CutOutVideo(results, "cutout.webm", FPS, CODINGS["webm"]),
}


def write(path: Path, make: MakeSink, frames: list[SegmentedFrame] = FRAMES) -> Sink:
    path.mkdir(exist_ok=True)
    with open_results(path, "test", {}) as results:
        sink = make(results)
        folder = ResultFolder(results, {"sink": sink})
        for frame in frames:
            folder.write(frame)
        folder.close()
        return sink


def content(folder: Path) -> dict[str, bytes]:
    """What a user sees."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def overlap(a: U8Array, b: U8Array) -> float:
    return float(((a > 0) & (b > 0)).sum() / ((a > 0) | (b > 0)).sum())


@pytest.mark.parametrize("kind", SINKS)
@pytest.mark.parametrize("further", [0, 3])
def test_a_resumed_run_writes_the_same_files(tmp_path: Path, kind: str, further: int) -> None:
    """It is killed some frames after a checkpoint; only whole files have their final names before the end."""
    write(tmp_path / "whole", SINKS[kind])
    cut = tmp_path / "cut"
    cut.mkdir()
    with open_results(cut, "test", {}) as results:
        folder = ResultFolder(results, {kind: SINKS[kind](results)})
        for frame in FRAMES[:FPS]:
            folder.write(frame)
        folder.keep(FPS - 1, b"")
        for frame in FRAMES[FPS : FPS + further]:
            folder.write(frame)
    assert kind in ("labelme", "png") or not content(cut)
    with open_results(cut, "test", {}, resume=True) as results:
        folder = ResultFolder(results, {kind: SINKS[kind](results)})
        assert folder.restore() == (FPS - 1, b"")
        for frame in FRAMES[FPS:]:
            folder.write(frame)
        folder.close()
    assert content(cut) == content(tmp_path / "whole")


@pytest.mark.parametrize("kind", SINKS)
def test_nothing_is_left_of_no_frames(tmp_path: Path, kind: str) -> None:
    write(tmp_path, SINKS[kind], [])
    assert not content(tmp_path)


def test_the_table_measures_every_object_in_every_frame(tmp_path: Path) -> None:
    write(tmp_path, SINKS["table"])
    rows = list(csv.DictReader(io.StringIO((tmp_path / "objects.csv").read_text())))
    assert [(int(row["frame"]), int(row["object"])) for row in rows] == [(t, i) for t in range(8) for i in (2, 7)]
    for row in rows:
        item, object_id = FRAMES[int(row["frame"])], int(row["object"])
        y, x = np.nonzero(item.labels == object_id)
        assert float(row["time_s"]) == item.frame.time_s
        assert int(row["area_px"]) == y.size
        assert int(row["present"]) == (y.size > 0)
        assert float(row["confidence"]) == round(item.object_confidence[object_id], 4)
        place = [row[name] for name in ("x", "y", "w", "h", "centroid_x", "centroid_y")]
        if not y.size:
            assert place == [""] * 6
            continue
        assert list(map(int, place[:4])) == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
        assert list(map(float, place[4:])) == pytest.approx([x.mean(), y.mean()], abs=0.006)


def test_every_file_gives_the_confidence_of_the_clean_mask(tmp_path: Path) -> None:
    """What is removed does not count, and what is filled does; the table and the annotations agree."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[10:40, 10:40], labels[20, 20], labels[80, 100] = 2, 0, 2
    confidence = np.full(labels.shape, 0.75, np.float32)
    confidence[20, 20], confidence[80, 100] = 0.25, 0.0
    step = StepResult(0, labels, confidence, (2,), objects=measure_objects(labels, (2,), confidence))
    frame = SegmentedFrame.of(FRAMES[0].frame, step)
    expected = (899 * 0.75 + 0.25) / 900
    for kind in ("table", "coco"):

        def make(results: Results, kind: str = kind) -> Sink:
            return cast(Sink, Cleaned(SINKS[kind](results), Cleaning(min_area_px=2, fill_holes_px=1)))

        write(tmp_path, make, [frame])
    (row,) = csv.DictReader(io.StringIO((tmp_path / "objects.csv").read_text()))
    (annotation,) = json.loads((tmp_path / "coco.json").read_text())["annotations"]
    assert (int(row["area_px"]), annotation["area"]) == (900, 900)
    assert float(row["confidence"]) == annotation["score"] == pytest.approx(expected, abs=6e-5)


def test_the_table_knows_when_objects_left_and_came_back(tmp_path: Path) -> None:
    """It also knows of one that does not come back and of one that flickers a hundred times."""
    table = write(tmp_path / "a", SINKS["table"])
    assert isinstance(table, ObjectTable)
    assert table.absences() == [Absence(2, 3, 0.75, 5, 1.25)]
    table = write(tmp_path / "b", SINKS["table"], FRAMES[:5])
    assert isinstance(table, ObjectTable)
    assert table.absences() == [Absence(2, 3, 0.75)]
    frames = [
        SegmentedFrame(Frame(s.frame.image, t, t / 4, ""), s.labels, (2,), {})
        for t in range(250)
        for s in [FRAMES[t % 2 * 3]]
    ]
    table = write(tmp_path / "c", SINKS["table"], frames)
    assert isinstance(table, ObjectTable)
    assert len(table.absences()) == 100
    assert table.absences()[-1] == Absence(2, 199, 49.75, 200, 50.0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with NumPy 2
def test_pycocotools_reads_the_polygons(tmp_path: Path) -> None:
    """It reads every object of every frame with holes and parts, and nothing where it is away."""
    write(tmp_path, SINKS["coco"])
    coco = COCO(str(tmp_path / "coco.json"))
    assert sorted(coco.getCatIds()) == [2, 7]
    images = coco.loadImgs(coco.getImgIds())
    assert [(image["id"], image["file_name"]) for image in images] == [(t, f"{t:05d}.jpg") for t in range(8)]
    assert {(image["width"], image["height"]) for image in images} == {(WIDTH, HEIGHT)}
    for t, item in enumerate(FRAMES):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[t]))
        assert {each["category_id"] for each in annotations} == set(np.unique(item.labels)) - {0}
        for each in annotations:
            mask = (item.labels == each["category_id"]).astype(np.uint8)
            assert each["area"] == mask.sum()
            assert tuple(each["bbox"]) == cv2.boundingRect(mask)
            assert overlap(coco.annToMask(each), mask) > 0.95
    assert len({each["id"] for each in coco.dataset["annotations"]}) == 14


def as_labelme_draws(document: dict[str, object], group: int) -> U8Array:
    """``labelme.utils.shape_to_mask`` for polygons, parts of a group united."""
    image = Image.new("L", (WIDTH, HEIGHT))
    for shape in document["shapes"]:  # type: ignore[attr-defined]
        assert shape["shape_type"] == "polygon"
        if shape["group_id"] == group:
            ImageDraw.Draw(image).polygon([tuple(point) for point in shape["points"]], outline=1, fill=1)
    return np.asarray(image, np.uint8)


def test_labelme_opens_the_folder(tmp_path: Path) -> None:
    """Each file names a picture that lies beside it, and draws the objects."""
    write(tmp_path, SINKS["labelme"])
    for item in FRAMES:
        document = json.loads((tmp_path / "labelme" / f"{item.frame.name}.json").read_text())
        assert set(document) == {"version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"}
        with Image.open(tmp_path / "labelme" / document["imagePath"]) as picture:
            assert picture.size == (document["imageWidth"], document["imageHeight"]) == (WIDTH, HEIGHT)
            assert np.abs(np.asarray(picture)[..., ::-1].astype(int) - item.frame.image).mean() < 12
        assert {shape["group_id"] for shape in document["shapes"]} == set(np.unique(item.labels)) - {0}
        for object_id in np.unique(item.labels[item.labels > 0]):
            drawn = as_labelme_draws(document, int(object_id))
            assert overlap(drawn, (item.labels == object_id).astype(np.uint8)) > 0.95


@pytest.mark.parametrize("kind", ["coco", "labelme"])
def test_what_is_written_can_be_given_as_polygons(tmp_path: Path, kind: str) -> None:
    write(tmp_path, SINKS[kind])
    path = tmp_path / "coco.json" if kind == "coco" else tmp_path / "labelme/00001.json"
    drawing = read_polygons(path, WIDTH, HEIGHT, frame=1)
    for number, object_id in enumerate((2, 7), start=1):
        given = (drawing.labels == number).astype(np.uint8)
        assert overlap(given, (FRAMES[1].labels == object_id).astype(np.uint8)) > (0.95 if kind == "labelme" else 0.8)


@pytest.mark.parametrize("zoom", [1, 20])
def test_outlines_of_small_and_large_objects(zoom: int) -> None:
    """A single pixel has an outline; large frames do not have more points than small ones by much."""
    labels = np.kron(FRAMES[0].labels, np.ones((zoom, zoom), np.uint8))
    labels[0, 0] = 9
    objects = measure_objects(labels, (2, 7, 8, 9))
    (pixel,) = outlines(labels, 9, objects[9].box)
    assert cv2.contourArea(pixel.astype(np.float32)) > 0.2
    assert ((pixel >= 0) & (pixel <= 1)).all()
    assert len(outlines(labels, 2, objects[2].box)) == 2
    (ring,) = outlines(labels, 7, objects[7].box)
    assert 20 < len(ring) < 200
    assert outlines(labels, 8, objects[8].box) == []


def read_video(path: Path, codec: str) -> tuple[list[U8Array], list[float]]:
    with av.open(str(path)) as container:
        decoder = cast(av.VideoCodecContext, av.CodecContext.create(codec, "r"))
        stream = container.streams.video[0]
        if codec == "prores":
            decoder.extradata = stream.codec_context.extradata
            decoder.codec_tag = stream.codec_context.codec_tag  # says that it is 4444
        frames = [frame for packet in container.demux(stream) for frame in decoder.decode(packet)]
        return [np.asarray(frame.to_ndarray(format="bgra"), np.uint8) for frame in frames], [
            f.time or 0.0 for f in frames
        ]


@pytest.mark.parametrize("kind", ["png", "mov", "webm"])
def test_a_cut_out_has_the_objects_and_nothing_else(tmp_path: Path, kind: str) -> None:
    """Alpha is that of the masks, and the objects have their colours."""
    write(tmp_path, SINKS[kind])
    if kind == "png":
        pictures: list[Any] = [
            cv2.imread(str(tmp_path / f"cutout/{t:05d}.png"), cv2.IMREAD_UNCHANGED) for t in range(8)
        ]
    else:
        pictures, times = read_video(tmp_path / f"cutout.{kind}", "prores" if kind == "mov" else "libvpx-vp9")
        assert times == pytest.approx([t / FPS for t in range(8)], abs=1e-3)
    assert len(pictures) == 8
    for picture, item in zip(pictures, FRAMES, strict=True):
        assert picture is not None
        assert picture.shape == (HEIGHT, WIDTH, 4)
        assert np.mean((picture[..., 3] > 127) == (item.labels > 0)) > (0.999 if kind == "png" else 0.99)
        inside = cv2.erode((item.labels > 0).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        assert picture[inside][:, :3].mean(axis=0) == pytest.approx((20, 40, 230), abs=15)
        far = cv2.dilate((item.labels > 0).astype(np.uint8), np.ones((41, 41), np.uint8)) == 0
        assert picture[far][:, :3].mean() < 5
    if kind == "webm":
        with av.open(str(tmp_path / "cutout.webm")) as container:
            assert container.streams.video[0].metadata["ALPHA_MODE"] == "1"


@pytest.mark.parametrize("kind", ["mov", "webm"])
def test_odd_sizes_and_times_that_stand_still(tmp_path: Path, kind: str) -> None:
    """A frame grows by a pixel; every frame has a time of its own."""
    frames = [scene(t, height=81, width=121) for t in range(3)]
    frames.append(
        SegmentedFrame(Frame(frames[2].frame.image, 3, frames[2].frame.time_s, "3"), frames[2].labels, (2, 7), {})
    )
    write(tmp_path, SINKS[kind], frames)
    pictures, times = read_video(tmp_path / f"cutout.{kind}", "prores" if kind == "mov" else "libvpx-vp9")
    assert [picture.shape for picture in pictures] == [(82, 122, 4)] * 4
    assert times == sorted(set(times))
