"""Results in the formats and types of other programs, read with their own packages where those are installed."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from vosrt import InputError, OptionError
from vosrt._files import locked
from vosrt._results import open_results
from vosrt.cli.results import Wanted
from vosrt.types import ObjectResult, StepResult, U8Array
from vosrt.video.base import Frame, SegmentedFrame, SourceInfo
from vosrt.video.interchange import FORMATS
from vosrt.video.sinks import ResultFolder

HEIGHT, WIDTH, COUNT = 60, 100, 3


def labels_of(t: int) -> U8Array:
    """Object 2 is a disc with a hole, object 7 two parts that leave after the first frame."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.circle(labels, (30 + 5 * t, 30), 20, 2, -1)
    cv2.circle(labels, (30 + 5 * t, 30), 6, 0, -1)
    if t == 0:
        labels[5:15, 70:80] = labels[40:55, 70:90] = 7
    return labels


def item_of(t: int) -> SegmentedFrame:
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    return SegmentedFrame(Frame(image, t, t / 25, f"{t:05d}"), labels_of(t), (2, 7), {2: 0.9, 7: 0.5})


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with all formats."""
    info = SourceInfo("clip.mp4", WIDTH, HEIGHT, 25.0, COUNT)
    wanted = Wanted(video=False, png=False, rle=False, polygons=tuple(FORMATS))
    with locked(tmp_path / "out"), open_results(tmp_path / "out", "test", {}) as results:
        sink = ResultFolder(results, wanted.sinks(results, info, (2, 7)))
        for t in range(COUNT):
            sink.write(item_of(t))
        sink.close()
        results.complete()
    assert {path.name for path in (tmp_path / "out").iterdir() if path.name[0] != "."} == {
        "objects.csv",
        *(each.file for each in FORMATS.values()),
    }
    return tmp_path / "out"


def filled(polygons: Any) -> U8Array:
    """Polygons in pixels as a mask, rasterised at eight times the size."""
    large = np.zeros((8 * HEIGHT, 8 * WIDTH), np.uint8)
    cv2.fillPoly(large, [np.round(np.asarray(each) * 8).astype(np.int32) for each in polygons], 1)
    return np.ascontiguousarray(large[4::8, 4::8])


def agrees(found: U8Array, truth: Any, least: float = 0.95) -> None:
    assert (found.astype(bool) & truth).sum() / (found.astype(bool) | truth).sum() > least


def test_yolo_is_read_by_supervision(written: Path) -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    data = supervision.DetectionDataset.from_yolo(
        images_directory_path=str(written / "yolo/images/train"),
        annotations_directory_path=str(written / "yolo/labels/train"),
        data_yaml_path=str(written / "yolo/data.yaml"),
        force_masks=True,
    )
    assert list(data.classes) == ["object 2", "object 7"]
    assert len(data) == COUNT
    for path, image, found in data:
        t = int(Path(path).stem)
        assert image.shape == (HEIGHT, WIDTH, 3)
        for at, object_id in enumerate((2, 7)):
            masks = found.mask[found.class_id == at]
            if (labels_of(t) == object_id).any():
                agrees(
                    masks.any(axis=0), labels_of(t) == object_id, 0.85
                )  # it fills all pixels that an outline touches
            else:
                assert not len(masks)


def test_coco_is_read_by_supervision(written: Path) -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    data = supervision.DetectionDataset.from_coco(str(written / "yolo/images/train"), str(written / "coco.json"))
    assert len(data) == COUNT
    assert sum(len(found) for _, _, found in data) == COUNT + 1


@pytest.mark.filterwarnings("ignore:Operation with tuple")  # within motmetrics, of pandas
def test_mot_is_read_by_motmetrics(written: Path) -> None:
    motmetrics = pytest.importorskip("motmetrics", reason="motmetrics is not installed")
    table = motmetrics.io.loadtxt(str(written / "mot.txt"), fmt="mot15-2D")
    assert list(table.index) == [(1, 2), (1, 7), (2, 2), (3, 2)]
    assert table.loc[(2, 2), ["X", "Y", "Width", "Height"]].tolist() == [15, 10, 41, 41]


def test_yolo_and_mot_count_as_their_formats_do(written: Path) -> None:
    assert (written / "mot.txt").read_text().splitlines()[2].split(",")[:6] == ["2", "2", "16", "11", "41", "41"]
    line = (written / "yolo/labels/train/00001.txt").read_text().splitlines()[0].split()
    agrees(filled([np.array(line[1:], float).reshape(-1, 2) * (WIDTH, HEIGHT)]), labels_of(1) == 2)
    assert line[0] == "0"


def test_cvat_and_label_studio_hold_the_outlines(written: Path) -> None:
    images = ET.parse(written / "cvat.xml").getroot().findall("image")
    assert [(each.get("id"), each.get("name")) for each in images] == [(str(t), f"{t:05d}.jpg") for t in range(COUNT)]
    tasks = json.loads((written / "label-studio.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [f"{t:05d}.jpg" for t in range(COUNT)]
    for t in range(COUNT):
        for object_id in (2, 7):
            name, truth = f"object {object_id}", labels_of(t) == object_id
            polygons = [
                [tuple(map(float, point.split(","))) for point in each.get("points", "").split(";")]
                for each in images[t].findall("polygon")
                if each.get("label") == name
            ]
            shapes = [
                np.array(each["value"]["points"]) * (WIDTH / 100, HEIGHT / 100)
                for each in tasks[t]["predictions"][0]["result"]
                if each["value"]["polygonlabels"] == [name]
            ]
            assert len(polygons) == len(shapes) == (0 if not truth.any() else 1 if object_id == 2 else 2)
            if truth.any():
                agrees(filled(polygons), truth)
                agrees(filled(shapes), truth)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(OptionError, match="'voc'; expected coco, labelme, yolo, mot, cvat or label-studio"):
        Wanted(polygons=("voc",))


def step() -> StepResult:
    item = item_of(0)
    return StepResult(0, item.labels, np.ones(item.labels.shape, np.float32), (2, 7), objects=item.objects)


def test_a_result_becomes_detections_of_supervision() -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    result = step()
    found = result.to_supervision()
    assert isinstance(found, supervision.Detections)
    assert found.tracker_id.tolist() == [2, 7]
    assert found["class_name"].tolist() == ["object 2", "object 7"]
    assert found.xyxy.tolist() == [[10, 10, 51, 51], [70, 5, 90, 55]]
    for mask, object_id in zip(found.mask, (2, 7), strict=True):
        np.testing.assert_array_equal(mask, result.labels == object_id)
    drawn = supervision.MaskAnnotator().annotate(item_of(0).frame.image.copy(), found)
    assert (drawn != 90).any()
    nothing = StepResult(0, np.zeros((HEIGHT, WIDTH), np.uint8), result.confidence, ())
    assert len(nothing.to_supervision()) == 0


def test_labels_on_a_gpu_are_refused_before_supervision_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", object())
    empty: dict[int, ObjectResult] = {}
    with pytest.raises(InputError, match="labels_on='host'"):
        StepResult(0, np.zeros((0, 0), np.uint8), np.zeros((0, 0), np.float32), (2,), objects=empty).to_supervision()
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(OptionError, match="pip install supervision"):
        step().to_supervision()


def test_a_result_becomes_detections_of_fiftyone() -> None:
    fiftyone = pytest.importorskip("fiftyone.core.labels", reason="fiftyone is not installed")
    result = step()
    found = result.to_fiftyone()
    assert isinstance(found, fiftyone.Detections)
    assert [(each.label, each.index) for each in found.detections] == [("object 2", 2), ("object 7", 7)]
    for each in found.detections:
        drawn = each.to_segmentation(frame_size=(WIDTH, HEIGHT), target=255).mask  # which rounds boxes anew
        agrees(drawn > 0, result.labels == each.index, 0.95)


def test_frames_become_layers_of_napari() -> None:
    layers = pytest.importorskip("napari.layers", reason="napari is not installed")
    from vosrt.interop import to_napari

    frames, objects = (layers.Layer.create(*each) for each in to_napari(map(item_of, range(COUNT))))
    assert isinstance(frames, layers.Image)
    assert frames.rgb
    assert frames.data.shape == (COUNT, HEIGHT, WIDTH, 3)
    assert isinstance(objects, layers.Labels)
    np.testing.assert_array_equal(np.asarray(objects.data), [labels_of(t) for t in range(COUNT)])
    np.testing.assert_allclose(objects.get_color(2)[:3], [0, 128 / 255, 0], atol=0.01)  # as DAVIS colours object 2


def test_results_become_a_recording_of_rerun(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="rerun is not installed")
    chunk = pytest.importorskip("rerun.chunk", reason="rerun is older than its reader of recordings")
    from vosrt.interop import RerunFile

    log = RerunFile(tmp_path / "out.rrd")
    for t in range(COUNT):
        log.write(item_of(t))
    log.close()
    rows: dict[str, dict[str, list[Any]]] = {}
    for each in chunk.RrdReader(tmp_path / "out.rrd").stream():
        batch = each.to_record_batch()
        for name in {"frame", "Scalars:scalars", "SegmentationImage:buffer"} & set(batch.schema.names):
            rows.setdefault(each.entity_path, {}).setdefault(name, []).extend(batch.column(name).to_pylist())
    assert {"/frame/picture", "/frame/objects", "/objects/7/confidence"} <= set(rows)
    areas = rows["/objects/2/area_px"]
    assert areas["frame"] == list(range(COUNT))
    assert [each[0] for each in areas["Scalars:scalars"]] == [int((labels_of(t) == 2).sum()) for t in range(COUNT)]
    buffers = rows["/frame/objects"]["SegmentationImage:buffer"]
    np.testing.assert_array_equal(np.array(buffers[1][0], np.uint8).reshape(HEIGHT, WIDTH), labels_of(1))


def test_masks_and_embeddings_are_shared_by_dlpack(fake_bundle: Path) -> None:
    """Without a copy, with what reads DLPack; NumPy does that itself."""
    from vosrt import Model

    model = Model.load(fake_bundle, engine="fake", threads=1)
    image = item_of(0).frame.image
    with model.stream() as stream:
        result = stream.start(image, labels_of(0))
        shared: list[Any] = [result.labels, result.confidence, stream.soft_masks(), model.encode(image).array]
    for array in shared:
        np.testing.assert_array_equal(np.from_dlpack(array), array)
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for array in shared:
        tensor = torch.from_dlpack(array)
        assert tensor.data_ptr() == array.ctypes.data
        np.testing.assert_array_equal(tensor.numpy(), array)
