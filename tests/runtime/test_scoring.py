"""Scores of data sets: the official toolkit's figures, vos-benchmark's semantics, mIoU, stability, what is refused."""

from __future__ import annotations

import csv
import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from vosrt.errors import InputError, MaskError
from vosrt.evaluation.human_parts import PARTS, PartsScorer
from vosrt.evaluation.layouts import open_dataset
from vosrt.evaluation.pictures import worst_frames
from vosrt.evaluation.scoring import SequenceScore, SequenceScorer, score_dataset, score_sequence
from vosrt.evaluation.stability import instability
from vosrt.types import U8Array
from vosrt.video.palette import davis_palette

COLUMNS = {
    "J": "J",
    "J recall": "J_recall",
    "J decay": "J_decay",
    "F": "F",
    "F recall": "F_recall",
    "F decay": "F_decay",
    "J&F": "J&F",
}


@pytest.mark.parametrize("name", ["car-shadow", "drift-straight"])
def test_a_published_methods_masks_score_as_in_the_official_toolkit(name: str, shared_data: Path) -> None:
    """Every figure agrees to 1e-3 percent. test_metrics.py holds J and F to it on all eight sequences."""
    golden = shared_data / "golden" / "osvos_davis16_dev"
    with (golden / "expected.tsv").open() as table:
        row = next(row for row in csv.DictReader(table, delimiter="\t") if row["sequence"] == name)
    dataset = open_dataset("davis16", shared_data / "data" / "davis16-dev", [name])
    score = score_sequence(dataset, dataset.sequences[0], golden / name)
    assert isinstance(score, SequenceScore)
    assert len(score.frames) == int(row["frames_scored"])
    for figure, column in COLUMNS.items():
        value = score.figures[figure]
        assert value is not None
        assert 100 * value == pytest.approx(float(row[column]), abs=1e-3), figure


@pytest.fixture(scope="module")
def vos_benchmark() -> Any:
    """The evaluator of vos-benchmark. It needs a disk of scikit-image and nothing else of it."""
    reason = "vos-benchmark is not installed: pip install --no-deps vos-benchmark==0.1.0"
    pytest.importorskip("vos_benchmark", reason=reason)
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("skimage") is None:
            morphology = types.ModuleType("skimage.morphology")
            morphology.disk = disk  # type: ignore[attr-defined]
            patch.setitem(sys.modules, "skimage", types.ModuleType("skimage"))
            patch.setitem(sys.modules, "skimage.morphology", morphology)
        yield importlib.import_module("vos_benchmark.evaluator")


def disk(radius: float) -> U8Array:
    x = np.arange(-radius, radius + 1)
    return (x[:, None] ** 2 + x**2 <= radius**2).astype(np.uint8)


@given(
    masks=hnp.arrays(
        np.uint8,
        st.tuples(st.integers(1, 5), st.just(2), st.integers(2, 14), st.integers(2, 14)),
        elements=st.sampled_from([0, 0, 1, 3]),
    )
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equals_vos_benchmark(vos_benchmark: Any, masks: U8Array) -> None:
    """They agree where objects appear late, vanish, or are predicted before they are there or without being there."""
    theirs, ours = vos_benchmark.Evaluator(), SequenceScorer("any")
    for index, (prediction, annotation) in enumerate(masks):
        theirs.feed_frame(prediction, annotation)
        ours.feed(f"{index:05d}", prediction, annotation)
    expected_j, expected_f = theirs.conclude()
    score = ours.conclude()
    assert {item.object_id for item in score.objects} == set(expected_j)
    for item in score.objects:
        assert 100 * (item.figures["J"] or 0) == pytest.approx(expected_j[item.object_id], abs=1e-9)
        assert 100 * (item.figures["F"] or 0) == pytest.approx(expected_f[item.object_id], abs=1e-9)


def test_parts_are_scored_over_all_frames_at_once() -> None:
    """One confusion matrix leaves out classes that never occur and labels beyond the classes."""
    scorer = PartsScorer("walk")
    scorer.feed("0", np.array([[0, 0, 1, 1]], np.uint8), np.array([[0, 0, 1, 1]], np.uint8))
    scorer.feed("1", np.array([[0, 0, 0, 2]], np.uint8), np.array([[0, 1, 1, 255]], np.uint8))
    score = scorer.conclude()
    iou = {"background": 3 / 5, "hat": 2 / 4}
    assert {name: value for name, value in score.iou.items() if value is not None} == pytest.approx(iou)
    assert score.figures == pytest.approx({"mIoU": (3 / 5 + 2 / 4) / 2, "accuracy": 5 / 7})
    assert score.frames == pytest.approx({"0": 1.0, "1": (1 / 3 + 0) / 2})
    with pytest.raises(MaskError, match="frame 2 holds 20; expected classes 0 to 19"):
        scorer.feed("2", np.full((1, 4), len(PARTS), np.uint8), np.zeros((1, 4), np.uint8))


def test_stability_ignores_motion_and_sees_change_of_shape() -> None:
    """T is 0 for a moved outline, more the more it deforms, at most 1, and nothing without an outline."""
    still = np.zeros((120, 160), bool)
    still[30:80, 30:110] = True
    dented, torn = still.copy(), still.copy()
    dented[30:45, 60:75] = False
    torn[30:70, 40:100] = False
    assert instability(still, np.roll(still, (9, 14), (0, 1))) == pytest.approx(0, abs=1e-9)
    small, large = instability(still, dented), instability(still, torn)
    assert small is not None
    assert large is not None
    assert 0.01 < small < large <= 1
    assert instability(still, np.zeros_like(still)) is None


def test_the_worst_frames_are_not_neighbours() -> None:
    values = [0.9] * 20
    values[7:10] = [0.2, 0.1, 0.3]
    values[15] = 0.4
    assert worst_frames(values, 3) == [8, 15, 0]
    assert worst_frames([0.5], 3) == [0]


def save_masks(folder: Path, masks: list[U8Array]) -> None:
    folder.mkdir(parents=True)
    for index, mask in enumerate(masks):
        image = Image.fromarray(mask)
        image.putpalette(davis_palette().tobytes())
        image.save(folder / f"{index:05d}.png")


def davis(root: Path, **sequences: list[U8Array]) -> Path:
    """A data set of annotations only, which is all that scoring reads."""
    for name, masks in sequences.items():
        save_masks(root / "Annotations" / "480p" / name, masks)
        (root / "JPEGImages" / "480p" / name).mkdir(parents=True)
    return root


def two_objects_with_void() -> U8Array:
    mask = np.zeros((60, 80), np.uint8)
    mask[8:32, 8:32], mask[8:32, 48:72] = 255, 255
    mask[10:30, 10:30], mask[10:30, 50:70] = 1, 2
    return mask


def test_void_is_background_and_no_object(tmp_path: Path) -> None:
    """The DAVIS toolkit reads 255 so: a perfect result scores 100, and one that fills the void loses by it."""
    truth = two_objects_with_void()
    last = np.where(truth == 255, 255, 0).astype(np.uint8)  # what is left of objects that are gone
    dataset = open_dataset("davis17", davis(tmp_path / "davis", pair=[truth] * 4 + [last, last]))
    perfect = np.where(truth == 255, 0, truth).astype(np.uint8)
    save_masks(tmp_path / "perfect" / "pair", [perfect] * 4 + [0 * truth] * 2)
    score = score_dataset(dataset, tmp_path / "perfect").sequences[0]
    assert isinstance(score, SequenceScore)
    assert [item.object_id for item in score.objects] == [1, 2]
    assert (score.figures["J&F"], score.figures["J"]) == (1, 1)
    wide = np.zeros_like(truth)
    wide[8:32, 8:32], wide[8:32, 48:72] = 1, 2
    save_masks(tmp_path / "wide" / "pair", [wide] * 4 + [0 * truth] * 2)
    filled = score_dataset(dataset, tmp_path / "wide").sequences[0]
    assert filled.figures["J"] == pytest.approx((3 * 20 * 20 / 24**2 + 1) / 4)


def test_black_and_white_annotations_are_one_object(tmp_path: Path) -> None:
    white = np.where(two_objects_with_void() > 0, 255, 0).astype(np.uint8)
    dataset = open_dataset("davis17", davis(tmp_path / "davis", one=[white] * 4))
    save_masks(tmp_path / "masks" / "one", [white // 255] * 4)
    score = score_dataset(dataset, tmp_path / "masks").sequences[0]
    assert isinstance(score, SequenceScore)
    assert [item.object_id for item in score.objects] == [1]
    assert score.figures["J&F"] == 1


def test_void_marks_no_object_to_follow(tmp_path: Path) -> None:
    truth = two_objects_with_void()
    only_void = np.where(truth == 255, 255, 0).astype(np.uint8)
    dataset = open_dataset("davis17", davis(tmp_path / "davis", pair=[truth, only_void]))
    starts = dataset.starts(dataset.sequences[0], ("00000", "00001"), 80, 60)
    assert {index: set(np.unique(mask)) for index, mask in starts.items()} == {0: {0, 1, 2}}


def test_partial_scores_what_can_be_scored_and_names_the_rest(tmp_path: Path) -> None:
    mask = np.where(two_objects_with_void() == 1, 1, 0).astype(np.uint8)
    root = davis(
        tmp_path / "davis", five=[mask] * 5, gaps=[mask] * 5, none=[mask] * 5, small=[mask] * 5, two=[mask] * 2
    )
    dataset, masks = open_dataset("davis17", root), tmp_path / "masks"
    for name, count in {"five": 5, "gaps": 3, "two": 2}.items():
        save_masks(masks / name, [mask] * count)
    save_masks(masks / "small", [mask[:30]] * 5)
    score = score_dataset(dataset, masks, partial=True)
    assert [sequence.name for sequence in score.sequences] == ["five"]
    assert score.figures["J&F"] == 1
    assert score.missing["none"] == "has no masks"
    assert "00003.png: no such mask" in score.missing["gaps"]
    assert "the mask is 80×30" in score.missing["small"]
    assert score.missing["two"].startswith("has 2 annotations, of which none counts")
    with pytest.raises(InputError, match=r"has no masks of 1 of 5 sequences \(none\).*--partial"):
        score_dataset(dataset, masks)
    (masks / "none").mkdir()
    with pytest.raises(MaskError, match=r"no such mask.*--partial leaves out what cannot be scored"):
        score_dataset(dataset, masks)
    with pytest.raises(InputError, match="two: has 2 annotations"):
        score_dataset(open_dataset("davis17", root, ["two"]), masks, partial=True)
