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

from vosrt.errors import MaskError
from vosrt.evaluation.layouts import open_dataset
from vosrt.evaluation.parsing import PARTS, PartsScorer
from vosrt.evaluation.pictures import worst_frames
from vosrt.evaluation.scoring import SequenceScore, SequenceScorer, score_sequence
from vosrt.evaluation.stability import instability
from vosrt.types import U8Array

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
    """Every figure of its table to 1e-3 percent. test_metrics.py holds J and F to it on all eight sequences."""
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
    """Any masks: objects that appear late, vanish, or are predicted before they are there or without being there."""
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
    """One confusion matrix, classes that never occur left out, labels beyond the classes not counted."""
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
