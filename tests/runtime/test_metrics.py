"""J, F and J&F against the official DAVIS toolkit, a naive twin, and the corner cases that it decides."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vosrt.errors import InputError
from vosrt.metrics import BoolArray, Score, boundary_accuracy, region_similarity, score_sequence
from vosrt.types import U8Array
from vosrt.video.images import list_images
from vosrt.video.masks import read_mask

SEQUENCES = (
    "blackswan",
    "bmx-trees",
    "camel",
    "car-shadow",
    "dance-twirl",
    "dog",
    "drift-straight",
    "horsejump-high",
)


def read_folder(folder: Path) -> list[U8Array]:
    return [read_mask(path, width=854, height=480) for path in list_images(folder, frozenset({".png"}))]


@pytest.mark.parametrize("name", SEQUENCES)
def test_equals_the_official_toolkit(name: str, shared_data: Path) -> None:
    """Masks of a published method give every digit of the published table (percent, three decimals)."""
    golden = shared_data / "golden" / "osvos_davis16_dev"
    with (golden / "expected.tsv").open() as table:
        row = next(row for row in csv.DictReader(table, delimiter="\t") if row["sequence"] == name)
    predictions = read_folder(golden / name)
    annotations = read_folder(shared_data / "data" / "davis16-dev" / "Annotations" / "480p" / name)
    assert len(annotations) - 2 == int(row["frames_scored"])
    (score,) = score_sequence(predictions, annotations).values()
    for value, column in ((score.j, "J"), (score.f, "F"), (score.j_and_f, "J&F")):
        assert 100 * value == pytest.approx(float(row[column]), abs=1e-3), column


def naive_boundary(mask: BoolArray) -> list[tuple[int, int]]:
    """The toolkit's definition pixel by pixel: neighbours outside the frame do not count."""
    height, width = mask.shape
    found = []
    for y in range(height):
        for x in range(width):
            others = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            if any(b < height and a < width and mask[b, a] != mask[y, x] for b, a in others):
                found.append((y, x))
    return found


def naive_f(prediction: BoolArray, annotation: BoolArray) -> float:
    radius = math.ceil(0.008 * math.hypot(*prediction.shape))
    found, wanted = naive_boundary(prediction), naive_boundary(annotation)
    if not found or not wanted:
        return float(len(found) == len(wanted))

    def share(these: list[tuple[int, int]], those: list[tuple[int, int]]) -> float:
        near = [any((y - b) ** 2 + (x - a) ** 2 <= radius**2 for b, a in those) for y, x in these]
        return sum(near) / len(near)

    precision, recall = share(found, wanted), share(wanted, found)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0


@given(hnp.arrays(bool, st.tuples(st.just(2), st.integers(1, 9), st.integers(1, 9))))
def test_boundary_accuracy_equals_its_naive_twin(masks: BoolArray) -> None:
    """They agree for any two small masks, also at borders and for empty ones."""
    assert boundary_accuracy(masks[0], masks[1]) == pytest.approx(naive_f(masks[0], masks[1]), abs=1e-12)


def test_tolerance_grows_with_the_frame() -> None:
    """A boundary two pixels off is right in a frame of 160 x 160 (tolerance 2) and wrong in one of 80 x 80 (1)."""
    for side, expected in ((160, 1.0), (80, 0.0)):
        columns = np.arange(side)
        one, other = (np.broadcast_to(columns < edge, (side, side)) for edge in (side // 2, side // 2 + 2))
        assert boundary_accuracy(one, other) == expected


def test_empty_masks() -> None:
    """Two empty masks are right; one empty mask is wrong."""
    empty, full = np.zeros((4, 4), bool), np.eye(4, dtype=bool)
    assert region_similarity(empty, empty) == boundary_accuracy(empty, empty) == 1
    assert region_similarity(empty, full) == boundary_accuracy(empty, full) == 0
    assert region_similarity(full, full) == boundary_accuracy(full, full) == 1


def test_first_and_last_frame_do_not_count() -> None:
    """The figure of an object is the mean over the frames between."""
    truth = np.zeros((4, 20, 20), np.uint8)
    truth[:, 2:8, 2:8] = 1
    truth[:, 12:18, 12:18] = 7
    predicted = truth.copy()
    predicted[[0, 3]] = 0
    predicted[1][truth[1] == 7] = 0
    scores = score_sequence(list(predicted), list(truth))
    assert scores == {1: Score(1.0, 1.0), 7: Score(0.5, 0.5)}
    assert scores[7].j_and_f == 0.5


def test_what_cannot_be_scored_is_refused() -> None:
    frame = np.ones((4, 4), np.uint8)
    with pytest.raises(InputError, match="3 predictions for 4 annotations"):
        score_sequence([frame] * 3, [frame] * 4)
    with pytest.raises(InputError, match="2 predictions for 2 annotations; expected as many, three or more"):
        score_sequence([frame] * 2, [frame] * 2)
    with pytest.raises(InputError, match="marks no object"):
        score_sequence([frame] * 3, [frame * 0] * 3)
    with pytest.raises(InputError, match=r"prediction is \[4, 4\], the annotation \[4, 5\]"):
        score_sequence([frame] * 3, [np.ones((4, 5), np.uint8)] * 3)
