"""What became of an object: present, lost, back or unsure, from its area and confidence in frame after frame."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vosrt import Model
from vosrt._results import open_results
from vosrt.bundle import EncoderSpec, GraphFile, Manifest, write_manifest
from vosrt.core.native import Presence, libvosrt
from vosrt.engines.fake import FakeEngine
from vosrt.errors import BundleError, OptionError
from vosrt.types import ObjectResult, PropagationOptions, U8Array
from vosrt.video.base import Frame, SegmentedFrame
from vosrt.video.sinks import ResultFolder, RleLines
from vosrt.video.tables import Absence, ObjectTable

GRAPH = GraphFile(file="encoder.onnx", sha256="0" * 64, bytes=1, precision="fp32")
SPEC = EncoderSpec(channels=32, feature="res4", min_side=16, max_side=256)
LETTERS = {"present": "P", "lost": "L", "back": "B", "unsure": "U"}


@pytest.fixture
def model() -> Model:
    """Tells cells apart by their colour."""
    manifest = Manifest(name="fake", trained=False, summary="", encoder=SPEC, graphs={})
    return Model(manifest, {"encoder": FakeEngine(SPEC)})


def letters(objects: Sequence[ObjectResult]) -> str:
    return "".join(LETTERS[each.state] for each in objects)


def follow(areas: Sequence[int], confidences: Sequence[float] | None = None, **thresholds: float) -> list[ObjectResult]:
    """What is said of one object with these areas."""
    presence = Presence(PropagationOptions(**thresholds))  # type: ignore[arg-type]
    return [
        presence.follow(t, {7: ObjectResult(7, area, confidence=confidences[t] if confidences else 0.8)})[7]
        for t, area in enumerate(areas)
    ]


@pytest.mark.parametrize(
    ("areas", "expected"),
    [
        ([1000] * 4 + [0, 0] + [900] * 7, "PPPPLLBBBBBPP"),
        ([1000] * 4 + [0, 20, 0, 30], "PPPPLLLL"),  # ghosts bring nothing back
        ([1000] * 4 + [20, 20, 20, 800], "PPPPUULB"),  # it leaves ghosts behind
        ([1000] * 4 + [20, 1000, 20, 1000], "PPPPUPUP"),  # one bad frame is no event
        ([1000] * 4 + [200] * 3 + [900], "PPPPUUUP"),  # partly covered
        ([1000] * 4 + [0, 0] + [200] * 4 + [210] * 4, "PPPPLLLLBBBBBP"),  # smaller after its return
        ([round(1000 * 0.9**t) for t in range(40)], "P" * 40),  # it walks away and stays in the picture
        ([round(100 * 1.2**t) for t in range(30)], "P" * 30),
        ([0, 0, 0, 500, 500], "LLLPP"),  # never seen before: it does not come back
        ([1000] * 4 + [0, 0, 0], "PPPPLLL"),
    ],
)
def test_states_follow_the_area(areas: list[int], expected: str) -> None:
    objects = follow(areas)
    assert letters(objects) == expected
    assert all(0 <= each.state_confidence <= 1 for each in objects)


@pytest.mark.parametrize(
    ("thresholds", "areas", "expected"),
    [
        ({"lost_share": 0.01}, [1000] * 4 + [20, 20, 20, 800], "PPPPUUUP"),
        ({"lost_after": 1}, [1000] * 4 + [20, 800], "PPPPLB"),
        ({"lost_after": 5}, [1000] * 4 + [20] * 5, "PPPPUUUUL"),
        ({"clear_share": 0.2}, [1000] * 4 + [210, 210], "PPPPPP"),
        ({"back_after": 1}, [1000, 0, 200], "PLB"),
        ({"back_for": 2}, [1000, 0] + [900] * 3, "PLBBP"),
        ({"back_confidence": 0.9}, [1000, 0, 900, 900], "PLLL"),
        ({"back_confidence": 0.8}, [1000, 0, 900, 900], "PLBB"),
    ],
)
def test_thresholds_are_options(thresholds: dict[str, float], areas: list[int], expected: str) -> None:
    assert letters(follow(areas, [0.85] * len(areas), **thresholds)) == expected
    assert letters(follow(areas, [0.85] * len(areas))) != expected or thresholds == {"back_confidence": 0.8}


def test_the_map_to_the_iou_is_an_option() -> None:
    same = follow([1000, 900], [1.0, 0.7], iou_factor=1.0, iou_power=1.0)[1].state_confidence
    assert same == pytest.approx(0.7)
    with pytest.raises(OptionError, match=r"iou_factor is 0; expected 0\.001 to 1000"):
        follow([1000], iou_factor=0)
    with pytest.raises(OptionError, match=r"lost_after is 2\.5; expected 1 to 1024 frames"):
        follow([1000], lost_after=2.5)


def test_what_is_unsure_brings_no_lost_object_back() -> None:
    """A ghost may be as large as the object."""
    assert letters(follow([1000, 0, 900, 900, 900, 900], [1.0, 0.0, 0.5, 0.5, 0.5, 0.7])) == "PLLLLB"
    assert letters(follow([1000, 900, 900], [1.0, 0.5, 0.5])) == "PPP"  # it was never lost


def test_the_confidence_of_a_state_is_the_iou_to_expect() -> None:
    """The mean confidence of a mask promises too much; what is fitted to it rises with it and ends at 0 and at 1."""
    sure, faint, annotated, gone = (
        follow([1000, area], [1.0, confidence])[1].state_confidence
        for area, confidence in ((900, 0.9), (900, 0.5), (900, 1.0), (0, 0.0))
    )
    assert sure == pytest.approx(0.31 * 9**1.38 / (1 + 0.31 * 9**1.38))
    assert faint == pytest.approx(0.31 / 1.31)
    assert annotated == gone == 1
    curve = [follow([1000, 900], [1.0, step / 100])[1].state_confidence for step in range(1, 101)]
    assert curve == sorted(curve)
    assert curve[0] < 0.01


def test_of_a_small_rest_less_is_expected() -> None:
    whole, rest = (follow([1000, area], [1.0, 0.9])[1] for area in (900, 200))
    assert rest.state == "unsure"
    assert rest.state_confidence == pytest.approx(whole.state_confidence * 0.2 / 0.25)


def test_an_annotation_says_how_large_the_object_is() -> None:
    """It is marked smaller than it was followed, and after it was lost; annotated pixels have confidence 1."""
    assert letters(follow([1000] * 4 + [30, 30, 30], [0.8] * 4 + [1.0, 0.8, 0.8])) == "PPPPPPP"
    assert letters(follow([1000, 0, 30, 30], [0.8, 0.0, 1.0, 0.8])) == "PLBB"


def test_the_newest_frame_may_come_again_and_older_ones_may_not() -> None:
    """A correction after the fact is judged as if it had come first."""
    presence = Presence()
    for t in range(3):
        presence.follow(t, {1: ObjectResult(1, 100, confidence=0.8)})
    assert presence.follow(3, {1: ObjectResult(1)})[1].state == "lost"
    assert presence.follow(3, {1: ObjectResult(1, 100, confidence=0.8)})[1].state == "present"
    with pytest.raises(OptionError, match="frame is 2; expected one from 3"):
        presence.follow(2, {1: ObjectResult(1)})


def test_what_is_remembered_can_be_kept_and_forgotten() -> None:
    presence, other = Presence(), Presence()
    presence.follow(0, {1: ObjectResult(1, 100, confidence=0.8), 2: ObjectResult(2, 100, confidence=0.8)})
    presence.follow(1, {1: ObjectResult(1)})
    other.restore(json.loads(json.dumps(presence.keep())))
    both = [each.follow(2, {i: ObjectResult(i, 90, confidence=0.8) for i in (1, 2)}) for each in (presence, other)]
    assert both[0] == both[1]
    assert letters(list(both[0].values())) == "BP"  # 2 was removed, and is another object
    other.restore({"1": "00" * 160})
    with pytest.raises(OptionError, match=r"presence.struct_size is 0; expected 160"):
        other.follow(0, {1: ObjectResult(1)})


def picture(place: int | None, side: int = 24) -> U8Array:
    """A grey frame [64, 96, 3] with a red square at this column, or covered."""
    image = np.full((64, 96, 3), 90, np.uint8)
    if place is not None:
        image[16 : 16 + side, place : place + side] = (20, 20, 240)
    return image


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([24] * 3 + [None] * 3 + [24] * 3, "PPPLLLBBB"),
        ([24, 40, 56, 72, 88, 96, 96, 88, 72, 56], None),
    ],
)
def test_streams_tell_that_a_square_left_and_came_back(
    model: Model, places: list[int | None], expected: str | None
) -> None:
    """One square is covered, and one moves out of the picture and in again."""
    with model.stream() as stream:
        assert stream.step(picture(None)).objects == {}
        assert stream.step(picture(None)).objects == {}
        mask = np.where(picture(places[0])[..., 2] == 240, 1, 0).astype(np.uint8)
        steps = [stream.step(picture(place), mask if not t else None) for t, place in enumerate(places)]
    found = letters([step.objects[1] for step in steps])
    assert all((step.objects[1].state == "lost") >= (step.objects[1].area_px == 0) for step in steps)
    if expected:
        assert found == expected
    else:
        assert found.strip("PU").startswith("L"), found
        assert "B" in found.split("L")[-1], found


def test_a_bundle_has_thresholds_and_sessions_keep_them(model: Model, tmp_path: Path) -> None:
    """They pass through the manifest, a stream in C++, a saved session and the tables of a result."""
    chosen = PropagationOptions(back_for=1, iou_factor=0.5)
    write_manifest(
        replace(model.manifest, summary="fake", graphs={"encoder": GRAPH}, inference=chosen), tmp_path / "manifest.json"
    )
    document = json.loads((tmp_path / "manifest.json").read_text())
    read = document["inference"]
    assert (read["back_for"], read["iou_factor"], read["iou_power"]) == (1, 0.5, 1.38)
    read["lost_after"] = 0
    text = json.dumps(document).encode()
    with pytest.raises(BundleError, match=r"'inference.lost_after' is 0; expected an integer, 1 to 1024 frames"):
        libvosrt().call("vosrt_manifest_check", text, len(text), b"manifest.json")
    mask = np.where(picture(24)[..., 2] == 240, 1, 0).astype(np.uint8)
    with model.stream(options=chosen) as stream, model.stream() as other:
        stream.start(picture(24), mask)
        other.load(stream.save())
        for each in (stream, other):
            steps = [each.step(picture(place)) for place in (24, None, 24, 24)]
            assert letters([step.objects[1] for step in steps]) == "PLBP"
    table = write(tmp_path / "a", [1000, 0, 900, 900], options=chosen)
    assert table.absences() == [Absence(4, 1, 0.25, 2, 0.5)]
    rows = csv.DictReader((tmp_path / "a/objects.csv").read_text().splitlines())
    assert "".join(LETTERS[row["state"]] for row in rows) == "PLBP"


def test_a_shrinking_square_stays_present(model: Model) -> None:
    with model.stream() as stream:
        mask = np.where(picture(24)[..., 2] == 240, 1, 0).astype(np.uint8)
        steps = [stream.start(picture(24), mask), *(stream.step(picture(24, side)) for side in (22, 20, 18, 17, 16))]
    assert letters([step.objects[1] for step in steps]) == "PPPPPP"


def write(
    path: Path, areas: Sequence[int], restart: int | None = None, options: PropagationOptions | None = None
) -> ObjectTable:
    """Results of an object with these areas in frames of 40 x 50; at ``restart`` the run is killed and resumed."""
    path.mkdir()
    frames = []
    for t, area in enumerate(areas):
        labels = np.zeros(2000, np.uint8)
        labels[:area] = 4
        picture = Frame(np.zeros((40, 50, 3), np.uint8), t, t / 4, f"{t}")
        frames.append(SegmentedFrame(picture, labels.reshape(40, 50), (4,), {4: 0.75 * (area > 0)}))
    begin = 0
    while True:
        with open_results(path, "test", {}, resume=begin > 0) as results:
            table = ObjectTable(results, "objects.csv")
            folder = ResultFolder(results, {"table": table, "rle": RleLines(results, "masks.jsonl")}, options)
            if begin:
                folder.restore()
            for frame in frames[begin : restart if not begin else None]:
                folder.write(frame)
            if restart is not None and not begin:
                begin = restart
                folder.keep(begin - 1, b"")
                continue
            folder.close()
            return table


def test_results_say_what_became_of_objects(tmp_path: Path) -> None:
    """Table, lines and summary agree; ghosts are no return; a run that was killed says the same."""
    areas = [1000] * 4 + [20, 20, 20, 0, 20, 900, 900]
    table = write(tmp_path / "a", areas)
    rows = list(csv.DictReader((tmp_path / "a/objects.csv").read_text().splitlines()))
    assert list(rows[0])[-3:] == ["present", "state", "state_confidence"]
    assert "".join(LETTERS[row["state"]] for row in rows) == "PPPPUULLLBB"
    lines = [json.loads(line)["objects"][0] for line in (tmp_path / "a/masks.jsonl").read_text().splitlines()]
    for row, line in zip(rows, lines, strict=True):
        assert (line["state"], f"{line['state_confidence']:.4f}") == (row["state"], row["state_confidence"])
    assert table.absences() == [Absence(4, 6, 1.5, 9, 2.25)]
    for restart in (4, 5, 8):
        again = write(tmp_path / f"b{restart}", areas, restart)
        assert again.absences() == table.absences()
        for name in ("objects.csv", "masks.jsonl"):
            assert (tmp_path / f"b{restart}" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
