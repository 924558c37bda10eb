"""J&F by where the marks are: first frame, middle frame followed both ways, first and last that meet in between.

    python -m benchmarks.accuracy.directions PATH/TO/davis --sequences car-shadow dog

All objects of an annotation count as one. The same frames count for every row: all but the first, the middle and the
last. The two ways that meet are fused by confidence with and without the distance to the mark.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.machine import parser_of, write
from vosrt import Model
from vosrt.directions import Direction, Fused
from vosrt.metrics import score_sequence
from vosrt.types import F32Array, U8Array
from vosrt.video.images import ImageFolderSource
from vosrt_train.validate import DavisSequence, find_sequences, read_annotations

ONLY = "first and last, confidence alone"


class _ByConfidence(Fused):
    """Fuses without regard to distance."""

    def _trust(self, index: int) -> tuple[F32Array, F32Array]:
        near = tuple(np.asarray(trust > 0, np.float32) for trust in super()._trust(index))
        return near[0], near[1]


def measure(model: Model, sequence: DavisSequence, size: int) -> dict[str, float]:
    """J&F in percent by the marks."""
    truth = [(each > 0).astype(np.uint8) for each in read_annotations(sequence, ImageFolderSource(sequence.frames))]
    last = len(truth) - 1
    middle = last // 2
    ways: dict[str, tuple[Direction, tuple[int, ...]]] = {
        "first, forward": ("forward", (0,)),
        "middle, both ways": ("both", (middle,)),
        "first and last, both ways": ("both", (0, last)),
        ONLY: ("both", (0, last)),
    }
    figures = {}
    for name, (direction, marked) in ways.items():
        labels = _follow(model, sequence.frames, {t: truth[t] for t in marked}, direction, size, name == ONLY)
        counted = [0, *(t for t in range(1, last) if t != middle), last]  # the score leaves the first and last out
        score = score_sequence([labels[t] for t in counted], [truth[t] for t in counted])[1]
        figures[name] = round(100 * score.j_and_f, 2)
    return figures


def _follow(
    model: Model, frames: Path, marks: dict[int, U8Array], direction: Direction, size: int, by_confidence: bool
) -> list[U8Array]:
    with mock.patch("vosrt.directions.Fused", _ByConfidence if by_confidence else Fused):
        return [item.labels for item in model.propagate(frames, marks, direction=direction, size=size)]


def main() -> None:
    """Parse options, run, write results/directions.jsonl."""
    parser = parser_of(__doc__, toy=False)
    parser.add_argument("root", type=Path)
    parser.add_argument("--bundle", default="fast")
    parser.add_argument("--size", type=int, default=240, help="short side of the working frame, pixels")
    parser.add_argument("--sequences", nargs="+", default=[])
    options = parser.parse_args()
    model = Model.load(options.bundle)
    rows: list[dict[str, Any]] = []
    for sequence in find_sequences(options.root, options.sequences):
        figures = measure(model, sequence, options.size)
        rows += [
            {"bundle": options.bundle, "size": options.size, "sequence": sequence.name, "marks": name, "j_and_f": value}
            for name, value in figures.items()
        ]
        print(sequence.name, figures, flush=True)
        write("directions", rows)


if __name__ == "__main__":
    main()
