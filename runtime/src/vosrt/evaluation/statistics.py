"""Statistics of scores: recall and decay (Perazzi et al. 2016), paired tests over sequences, rank correlation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vosrt.errors import InputError

F64Array = NDArray[np.float64]

_RECALL_ABOVE = 0.5
_EXACT_UP_TO = 16  # 2^16 sign patterns
_DRAWS = 100_000
_CHUNK = 10_000


def recall(values: Sequence[float]) -> float:
    """Share of frames whose score is above 0.5."""
    return float(np.mean(np.asarray(values) > _RECALL_ABOVE))


def decay(values: Sequence[float]) -> float:
    """Mean of the first quarter of the frames minus that of the last: the loss along the sequence.

    The quarters are those of the DAVIS toolkit, which share their border frames.
    """
    edges = (np.round(np.linspace(1, len(values), 5) + 1e-10) - 1).astype(int)
    first, last = values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]
    return math.fsum(first) / len(first) - math.fsum(last) / len(last)


@dataclass(frozen=True)
class PairedTest:
    """Test of whether two runs differ by more than chance, over the sequences that both have.

    Attributes:
        mean: of the differences.
        low: lower end of the 95 % bootstrap interval of that mean.
        high: upper end.
        p: two-sided, of the sign-flip permutation test on the mean.
        exact: all 2^n sign patterns were taken, not a sample.
        wins: sequences with a positive difference.
        losses: sequences with a negative one.
    """

    n: int
    mean: float
    low: float
    high: float
    p: float
    exact: bool
    wins: int
    losses: int

    @property
    def least_p(self) -> float:
        """The smallest p that so few sequences can give."""
        return 2.0 ** (1 - self.n)


def paired_test(differences: Sequence[float]) -> PairedTest:
    """Test whether the mean of paired differences is 0.

    Under the null hypothesis a difference is as likely as its negative, so p is the share of sign patterns whose mean
    is at least as far from 0 as the observed one (Fisher's randomisation test). All patterns are taken for up to 16
    differences, else 100 000 random ones, the observed one among them. The interval is the percentile bootstrap.

    Args:
        differences: one per sequence.

    Raises:
        InputError: all differences are zero.
    """
    values = np.asarray(differences, np.float64)
    if not values.size:
        raise InputError("no sequence is in both runs; expected results of the same data set")
    n, observed = len(values), abs(float(values.mean()))
    rng = np.random.default_rng(0)
    reached = observed - 1e-12 * max(1.0, observed)  # sums in another order differ in the last digit
    exact = n <= _EXACT_UP_TO
    if exact:
        signs = np.array(list(itertools.product((1, -1), repeat=n)), np.int8)
        p = float(np.mean(np.abs(signs @ values / n) >= reached))
    else:
        as_far = 1
        for _ in range(_DRAWS // _CHUNK):
            signs = rng.choice(np.array([1, -1], np.int8), (_CHUNK, n))
            as_far += int(np.count_nonzero(np.abs(signs @ values / n) >= reached))
        p = as_far / (_DRAWS + 1)
    means = rng.choice(values, (_CHUNK, n)).mean(axis=1)
    low, high = (float(value) for value in np.percentile(means, (2.5, 97.5)))
    wins, losses = int(np.count_nonzero(values > 0)), int(np.count_nonzero(values < 0))
    return PairedTest(n, float(values.mean()), low, high, p, exact, wins, losses)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p of several tests so that the chance of any false alarm stays at the level (Holm 1979)."""
    adjusted = [0.0] * len(p_values)
    worst = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation: Pearson's of the ranks, equal values sharing their mean rank; NaN where one does not vary.

    Raises:
        InputError: they are not as many.
    """
    if len(first) != len(second):
        raise InputError(f"{len(first)} values for {len(second)}; expected pairs")
    a, b = (_ranks(np.asarray(values, np.float64)) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else math.nan


def _ranks(values: F64Array) -> F64Array:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    highest = np.cumsum(count)
    ranks: F64Array = (highest - (count - 1) / 2)[place]
    return ranks
