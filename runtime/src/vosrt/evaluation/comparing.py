"""Runs side by side: per sequence, and whether their differences are more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vosrt._reading import read_json
from vosrt.errors import InputError
from vosrt.evaluation.statistics import PairedTest, holm, paired_test
from vosrt.evaluation.tables import SCHEMA, Cell, Table


@dataclass(frozen=True)
class ScoredRun:
    """One ``scores.json``.

    Attributes:
        sequences: the headline figure per sequence, 0 to 1.
        settings: what the masks were made with.
        figures: of the data set as a whole.
    """

    name: str
    dataset: str
    figure: str
    sequences: dict[str, float]
    settings: dict[str, Any]
    figures: dict[str, float | None]


@dataclass(frozen=True)
class Comparison:
    """Runs on the sequences that all of them have.

    Attributes:
        runs: the baseline first.
        left_out: sequences that some run lacks.
        tests: of each other run against the baseline.
        adjusted_p: p of those tests, adjusted for their number (Holm).
    """

    runs: list[ScoredRun]
    names: list[str]
    left_out: list[str]
    tests: list[PairedTest]
    adjusted_p: list[float]

    def words(self) -> list[str]:
        """Return the remarks below the tables."""
        test = self.tests[0]
        how = f"all {2**test.n} sign patterns" if test.exact else "100 000 random sign patterns"
        lines = [
            f"Differences are to {self.runs[0].name}, over n = {test.n} sequences. p: two-sided sign-flip permutation "
            f"test of the mean difference ({how}; no p below {test.least_p:.2g} is possible with this n)"
            + (", adjusted for the number of runs (Holm)." if len(self.tests) > 1 else ".")
            + " 95 %: bootstrap interval of the mean difference."
        ]
        if self.left_out:
            lines.append(f"Left out, since not every run has them: {', '.join(self.left_out)}.")
        unknown = [run.name for run in self.runs if not run.settings]
        if unknown:
            lines.append(f"Of unknown settings, since made by another program: {', '.join(unknown)}.")
        for run in self.runs[1:] if self.runs[0].settings else []:
            if not run.settings:
                continue
            differing = _differences(self.runs[0].settings, run.settings)
            lines.append(f"{run.name} differs in: {', '.join(differing) or 'no setting'}.")
        return lines

    def to_document(self) -> dict[str, Any]:
        """Return plain values, scores 0 to 1."""
        return {
            "figure": self.runs[0].figure,
            "runs": [{"name": run.name, "figures": run.figures, "settings": run.settings} for run in self.runs],
            "sequences": {name: [run.sequences[name] for run in self.runs] for name in self.names},
            "left_out": self.left_out,
            "tests": [
                {"run": run.name, **asdict(test), "adjusted_p": p}
                for run, test, p in zip(self.runs[1:], self.tests, self.adjusted_p, strict=True)
            ],
        }


def read_scores(path: Path) -> ScoredRun:
    """Read what ``vos-eval score`` wrote.

    Raises:
        InputError: the file is missing or of another kind.
    """
    try:
        document = read_json(path)
        if document["schema"] != SCHEMA:
            raise InputError(
                f"{path}: has schema {document['schema']}; this vosrt reads {SCHEMA}; score the masks again"
            )
        figure = "mIoU" if document["dataset"] == "vip" else "J&F"
        sequences = {name: float(entry["figures"][figure]) for name, entry in document["sequences"].items()}
        return ScoredRun(
            path.parent.name or str(path),
            document["dataset"],
            figure,
            sequences,
            document["settings"] or {},
            document["figures"],
        )
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; make it with: vos-eval score {path.parent} …") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: is not what vos-eval score writes ({type(error).__name__}: {error}); score the masks again"
        ) from error


def compare(runs: Sequence[ScoredRun]) -> Comparison:
    """Compare every run with the first.

    Raises:
        InputError: fewer than two runs, other data sets, or no sequence in common.
    """
    if len(runs) < 2:
        raise InputError(f"{len(runs)} run to compare; expected two or more")
    if other := [run for run in runs if run.dataset != runs[0].dataset]:
        raise InputError(
            f"{runs[0].name} is of {runs[0].dataset} and {other[0].name} of {other[0].dataset}; "
            "expected runs on one data set"
        )
    runs = _with_distinct_names(runs)
    everything = sorted({name for run in runs for name in run.sequences})
    names = [name for name in everything if all(name in run.sequences for run in runs)]
    tests = [paired_test([run.sequences[name] - runs[0].sequences[name] for name in names]) for run in runs[1:]]
    left_out = [name for name in everything if name not in names]
    return Comparison(runs, names, left_out, tests, holm([test.p for test in tests]))


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Per sequence, and the tests; in percent."""
    runs, base = comparison.runs, comparison.runs[0]
    head = [
        f"{base.figure} per sequence",
        *(run.name for run in runs),
        *(f"{run.name} − {base.name}" for run in runs[1:]),
    ]
    values = [[run.sequences[name] for run in runs] for name in comparison.names]
    means = [sum(column) / len(values) for column in zip(*values, strict=True)]
    rows: list[list[Cell]] = []
    for name, row in zip([*comparison.names, "mean over sequences"], [*values, means], strict=True):
        rows.append([name, *(100 * value for value in row), *(_signed(value - row[0]) for value in row[1:])])
    tests: list[list[Cell]] = [
        [
            run.name,
            _signed(test.mean),
            f"{_signed(test.low)} … {_signed(test.high)}",
            f"{test.wins} / {test.losses} / {test.n - test.wins - test.losses}",
            f"{p:.2g}",
        ]
        for run, test, p in zip(runs[1:], comparison.tests, comparison.adjusted_p, strict=True)
    ]
    return [
        Table("", head, rows, mean=True),
        Table("", [f"against {base.name}", "mean difference", "95 %", "better / worse / equal", "p"], tests),
    ]


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def _with_distinct_names(runs: Sequence[ScoredRun]) -> list[ScoredRun]:
    """Number runs that share a name."""
    names = [run.name for run in runs]
    return [
        ScoredRun(
            f"{run.name} ({names[: i + 1].count(run.name)})" if names.count(run.name) > 1 else run.name,
            *(run.dataset, run.figure, run.sequences, run.settings, run.figures),
        )
        for i, run in enumerate(runs)
    ]


def _differences(base: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ, each as ``name 1 → 2``."""
    found = []
    for name in {**base, **other}:
        then, now = base.get(name), other.get(name)
        if isinstance(then, dict) and isinstance(now, dict):
            found += _differences(then, now, f"{name}.")
        elif then != now and name != "encoder_sha256":
            found.append(f"{prefix}{name} {then} → {now}")
    return found
