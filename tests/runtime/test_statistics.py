"""Recall, decay, the paired test, adjusted p and rank correlation, against what they are defined as."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vosrt.errors import InputError
from vosrt.evaluation.statistics import decay, holm, paired_test, recall, spearman

SCORES = st.integers(-1000, 1000).map(lambda thousandths: thousandths / 1000)


def test_recall_and_decay() -> None:
    values = [1.0, 0.9, 0.8, 0.7, 0.5, 0.4, 0.3, 0.2]
    assert recall(values) == 4 / 8
    # Quarters share their borders: frames 1 to 3 and 6 to 8.
    assert decay(values) == pytest.approx(np.mean([1.0, 0.9, 0.8]) - np.mean([0.4, 0.3, 0.2]))
    assert decay([0.7]) == 0


def test_decay_of_long_sequences() -> None:
    """They have more frames than a byte can number; positions in the toolkit wrap at 256."""
    values = list(np.linspace(1, 0, 1001))
    assert decay(values) == pytest.approx(0.75)


@given(st.lists(SCORES, min_size=1, max_size=6))
def test_p_is_the_share_of_sign_patterns_as_extreme(differences: list[float]) -> None:
    observed = abs(math.fsum(differences))
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    sums = [abs(math.fsum(s * d for s, d in zip(signs, differences, strict=True))) for signs in patterns]
    test = paired_test(differences)
    assert test.exact
    assert test.p == pytest.approx(np.mean([value >= observed - 1e-9 for value in sums]))
    assert test.p >= test.least_p


def test_many_sequences_are_sampled() -> None:
    """No difference gives a p near 1 and a clear one a small p, the same at every call."""
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 1, 40)
    balanced, shifted = paired_test(list(noise - noise.mean())), paired_test(list(noise + 3))
    assert not balanced.exact
    assert balanced.p > 0.9
    assert shifted.p < 0.001
    assert shifted.low < shifted.mean < shifted.high
    assert (shifted.n, shifted.wins + shifted.losses) == (40, 40)
    assert paired_test(list(noise + 3)) == shifted


def test_nothing_to_test_is_refused() -> None:
    with pytest.raises(InputError, match="no sequence is in both runs"):
        paired_test([])


def test_holm() -> None:
    """In the textbook example p is multiplied by the tests that are left, never decreases and never exceeds 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]


@given(st.lists(st.tuples(SCORES, SCORES), min_size=2, max_size=20))
def test_spearman_equals_scipy(pairs: list[tuple[float, float]]) -> None:
    """It does so for ties and constant values too."""
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    first, second = zip(*pairs, strict=True)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert math.isnan(spearman(first, second))
    else:
        assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
