"""From clicks and boxes to masks, with the fake encoder, whose cells tell colours apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from vosrt import Embedding, MaskError, Model, OptionError
from vosrt.cli.demo import CLIP, POLYGON
from vosrt.prompt.points import BoolArray, Point
from vosrt.types import U8Array, WorkingSize
from vosrt.video.base import Frame, SourceInfo
from vosrt.video.prompts import Prompts, load_annotations

HEIGHT, WIDTH = 200, 300


@pytest.fixture
def model(fake_bundle: Path) -> Model:
    """A model whose embeddings tell colours apart."""
    return Model.load(fake_bundle, engine="fake", threads=1)


def scene(*, noise: int = 10) -> tuple[U8Array, BoolArray, BoolArray]:
    """Two discs of two colours before a third; picture u8 [H, W, 3] and a mask bool [H, W] of each."""
    left, right = np.zeros((HEIGHT, WIDTH), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.circle(left, (90, 100), 45, 1, -1)
    cv2.circle(right, (220, 100), 35, 1, -1)
    image = np.full((HEIGHT, WIDTH, 3), (170, 190, 180), np.int64)
    image[left > 0], image[right > 0] = (40, 60, 200), (200, 80, 40)
    image += np.random.default_rng(0).integers(-noise, noise + 1, image.shape)
    return image.clip(0, 255).astype(np.uint8), left > 0, right > 0


def iou(a: BoolArray, b: BoolArray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_one_click_selects_what_looks_alike(model: Model) -> None:
    image, left, right = scene()
    assert iou(model.segment(image, [(90, 100)]), left) > 0.9
    assert iou(model.segment(image, [(220, 100)]), right) > 0.9


def test_further_clicks_add_and_remove(model: Model) -> None:
    """A part that was added goes as a whole, however many clicks there were before."""
    image, left, right = scene()
    both = model.segment(image, [(90, 100), (220, 100)])
    assert iou(both, left | right) > 0.9
    assert iou(model.segment(image, [(90, 100), (80, 90), (220, 100, False)], mask=both), left) > 0.9


@pytest.mark.parametrize("point", [(90, 150, True), (90, 52, True), (48, 100, False), (90, 140, False)])
def test_a_click_beside_the_outline_changes_little(model: Model, point: tuple[float, float, bool]) -> None:
    """Some pixels from what was found, nothing large can be wrong: the rest of the picture stays as it was."""
    image, left, _ = scene()
    found = model.segment(image, [(90, 100), point])
    assert found[int(point[1]), int(point[0])] == point[2]
    assert iou(found, left) > 0.95


def test_further_clicks_keep_what_others_found() -> None:
    """The demo clip with the packaged network: a click in the middle of an error loses at most a few points."""
    model, (image, balloons) = Model.load("default", threads=1), demo_frame()
    for truth in balloons.values():
        points: list[Point] = []
        found, scores = np.zeros_like(truth), []
        for _ in range(5):
            points.append(middle_of_the_largest_error(found, truth))
            found = model.segment(image, points)
            scores.append(iou(found, truth))
        assert min(np.diff(scores)) > -0.05, scores
        assert scores[-1] > 0.9


def test_a_click_beside_a_balloon_leaves_it_as_it_is() -> None:
    """A click four pixels outside the outline adds little of what lies there."""
    model, (image, balloons) = Model.load("default", threads=1), demo_frame()
    assert iou(model.segment(image, [(128, 155)]), balloons["red balloon"]) > 0.95
    assert iou(model.segment(image, [(128, 155), (176, 203)]), balloons["red balloon"]) > 0.8


def demo_frame() -> tuple[U8Array, dict[str, BoolArray]]:
    """The first frame of the demo clip, u8 [H, W, 3], and the mask of each balloon, bool [H, W]."""
    image = cv2.VideoCapture(str(CLIP)).read()[1]
    masks = {}
    for balloon in json.loads(POLYGON.read_text())["objects"]:
        mask = np.zeros(image.shape[:2], np.uint8)
        for polygon in balloon["polygons"]:
            cv2.fillPoly(mask, [np.array(polygon).round().astype(np.int32)], 1)
        masks[balloon["name"]] = mask > 0
    return np.asarray(image, np.uint8), masks


def middle_of_the_largest_error(found: BoolArray, truth: BoolArray) -> Point:
    """The point that is farthest from the border of an error: what a user clicks next."""
    parts = [(truth & ~found, True), (found & ~truth, False)]
    inner = [cv2.distanceTransform(np.pad(part.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1] for part, _ in parts]
    deepest = max((0, 1), key=lambda each: inner[each].max())
    y, x = np.unravel_index(int(inner[deepest].argmax()), truth.shape)
    return Point(float(x), float(y), parts[deepest][1])


def test_a_mask_is_corrected(model: Model) -> None:
    image, left, right = scene()
    assert iou(model.segment(image, [(220, 100, False)], mask=left | right), left) > 0.85
    assert iou(model.segment(image, [(220, 100)], mask=left), left | right) > 0.85


def test_a_mask_that_is_corrected_stays_where_nobody_clicked(model: Model) -> None:
    """A mask of half an object is not completed, and one click elsewhere leaves that half as it is."""
    image, left, right = scene()
    half = left.copy()
    half[:, :90] = False
    assert iou(model.segment(image, mask=half), half) > 0.9
    both = model.segment(image, [(220, 100)], mask=half)
    assert iou(both[:, :150], half[:, :150]) > 0.85
    assert iou(both[:, 150:], right[:, 150:]) > 0.85


def test_a_box_holds_the_object_in_it(model: Model) -> None:
    image, _, right = scene()
    assert iou(model.segment(image, box=(170, 50, 100, 100)), right) > 0.85


@pytest.mark.parametrize(("height", "width"), [(97, 131), (72, 100), (241, 323)])
def test_frames_that_are_no_whole_number_of_cells(model: Model, height: int, width: int) -> None:
    image = cv2.resize(scene()[0], (width, height), interpolation=cv2.INTER_AREA)
    wanted = cv2.resize(scene()[1].astype(np.uint8), (width, height), interpolation=cv2.INTER_AREA) > 0
    found = model.segment(np.asarray(image, np.uint8), [(0.3 * width, 0.5 * height)])
    assert found.shape == (height, width)
    assert found.dtype == np.bool_
    assert iou(found, wanted) > 0.7


def test_the_frame_that_came_last_is_encoded_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    image, _, _ = scene()
    encoded: list[Any] = []
    encode = model.encode

    def counted(frame: U8Array, size: WorkingSize = None) -> Embedding:
        encoded.append(size)
        return encode(frame, size)

    monkeypatch.setattr(model, "encode", counted)
    first = model.segment(image, [(90, 100)])
    model.segment(image, [(90, 100), (220, 100)])
    assert np.array_equal(model.segment(image.copy(), [(90, 100)]), first)
    assert len(encoded) == 1
    model.segment(image[::-1], [(90, 100)])
    assert len(encoded) == 2


def test_a_click_counts_where_it_was_made(model: Model) -> None:
    """The clicked pixel is in the mask or out of it, also in a picture without contrast."""
    image = np.full((64, 64, 3), 90, np.uint8)
    found = model.segment(image, [(10, 12), (40, 40, False)])
    assert found[12, 10]
    assert not found[40, 40]


def test_wrong_marks_are_refused(model: Model) -> None:
    image, left, _ = scene()
    with pytest.raises(OptionError, match="nothing is marked; give a positive point, a box or a mask"):
        model.segment(image, [(5, 5, False)])
    with pytest.raises(MaskError, match=r"the point \(300, 5\) is outside the frame; expected x below 300"):
        model.segment(image, [(300, 5)])
    with pytest.raises(MaskError, match=r"the point \(nan, 5\)"):
        model.segment(image, [(float("nan"), 5)])
    with pytest.raises(OptionError, match=r"a point is \(1,\); expected \(x, y\) or"):
        model.segment(image, [(1,)])
    with pytest.raises(MaskError, match="the box 5, 5, 0, 9 is empty or outside"):
        model.segment(image, box=(5, 5, 0, 9))
    with pytest.raises(MaskError, match=r"the mask has shape \[199, 300\]; expected \[200, 300\]"):
        model.segment(image, mask=left[1:])


class Clip:
    """A source whose first frame is the scene."""

    info = SourceInfo("clip", WIDTH, HEIGHT, 25.0, 50)
    first = Frame(scene()[0], 0, 0.0, "00000")
    warnings = ()


def _marks(model: Model, **prompts: tuple[str, ...]) -> dict[int, U8Array]:
    def read(index: int) -> U8Array:
        assert index == 37
        return np.ascontiguousarray(scene()[0][:, ::-1])

    return load_annotations(Prompts(**prompts), Clip(), find=model.segment, frame_at=read).masks  # type: ignore[arg-type]


def test_points_and_boxes_of_the_command_line(model: Model) -> None:
    """Points of a frame are one object unless they are numbered; a frame's number stands in front."""
    _, left, right = scene()
    marks = _marks(model, points=("90,100", "80.5,90,+", "220.5,90,-"))
    assert iou(marks[0] == 1, left) > 0.9
    marks = _marks(model, points=("1=90,100,+", "4=220,100"))
    assert iou(marks[0] == 4, right) > 0.85
    assert iou(marks[0] == 1, left) > 0.85
    marks = _marks(model, points=("37:90,100",), boxes=("37:180,40,110,120",))
    assert list(marks) == [37]
    assert set(np.unique(marks[37])) == {0, 1, 2}


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (("90;100",), "--points 90;100: expected x,y in pixels"),
        (("9.0.0,100",), "--points 9.0.0,100: expected x,y"),
        (("300,100",), "--points 300,100: is outside the frame; expected x below 300, y below 200"),
        (("90,100,-",), "those of frame 0 only say where the object is not"),
        (("1=90,100", "2=220,100,-"), "those of object 2 on frame 0 only say"),
        (("256=90,100",), "the object is 256; expected 1 to 255"),
        (("50:90,100",), "frame 50 is not among the frames that are read; expected 0 to 49"),
    ],
)
def test_wrong_points_of_the_command_line(model: Model, points: tuple[str, ...], message: str) -> None:
    with pytest.raises((OptionError, MaskError), match=message.replace("(", r"\(")):
        _marks(model, points=points)


def test_points_need_a_network_and_later_frames_a_file() -> None:
    with pytest.raises(OptionError, match="--points needs a network"):
        load_annotations(Prompts(points=("90,100",)), Clip())  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="only the first frame, 0, can be looked at here"):
        load_annotations(Prompts(boxes=("37:4,4,20,20",)), Clip())  # type: ignore[arg-type]


def test_points_are_a_sequence(model: Model) -> None:
    image, left, _ = scene()
    assert iou(model.segment(image, [Point(90, 100, True)]), left) > 0.9
    assert iou(model.segment(image, np.array([[90.0, 100.0]])), left) > 0.9  # type: ignore[arg-type]
