"""Does cycle consistency, which needs no annotation, rank models and sequences as J&F does?

    python -m benchmarks.accuracy.cycle PATH/TO/davis  # with JPEGImages/480p and Annotations/480p
    python -m benchmarks.accuracy.cycle PATH --bundle NET --bundle default --size 240
    python -m benchmarks.accuracy.cycle --toy          # a rendered scene, nothing written

Every bundle follows every sequence with several settings of propagation, forward (J&F against the annotations) and back
(cycle consistency). Spearman's rank correlation of the two is reported in three ways: over sequences and settings
together; over the settings of one sequence, mean of the sequences, which is what a person does who compares models on
a clip; over the sequences with one setting, mean of the settings.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.machine import parser_of, write
from benchmarks.scenes.picture import render
from tests.fakes.media import save_davis
from vosrt.evaluation.cycle import cycle_consistency
from vosrt.evaluation.layouts import AnnotatedSequence, Dataset, open_dataset
from vosrt.evaluation.scoring import SequenceScorer, counted_frames
from vosrt.evaluation.statistics import spearman
from vosrt.model import Model
from vosrt.types import U8Array
from vosrt.video.images import ImageFolderSource

SETTINGS: dict[str, dict[str, Any]] = {
    "as the bundle says": {},
    "context 5": {"context": 5},
    "reference only": {"context": 0},
    "radius 4": {"radius": 4.0},
    "top-k 1": {"top_k": 1},
    "temperature 1": {"temperature": 1.0},
}
TOY = ("as the bundle says", "reference only")


def measure(
    model: Model, dataset: Dataset, sequence: AnnotatedSequence, settings: dict[str, Any], size: int | None
) -> dict[str, Any]:
    """J&F and cycle consistency of one sequence, in percent."""
    source = ImageFolderSource(sequence.frames)
    stems, width, height = source.info.stems or (), source.info.width, source.info.height
    counted = set(counted_frames(dataset, sequence))
    scorer = SequenceScorer(sequence.name, stability=False)

    def forward(index: int, labels: U8Array) -> None:
        if stems[index] in counted:
            scorer.feed(stems[index], labels, dataset.read(sequence.annotations[stems[index]], width, height))

    cycle = cycle_consistency(
        model,
        source,
        dataset.starts(sequence, stems, width, height),
        size=size,
        options=replace(model.manifest.inference, **settings),
        on_forward=forward,
    )
    accuracy = scorer.conclude().figures["J&F"] or 0.0
    return {"sequence": sequence.name, "j_and_f": round(100 * accuracy, 2), "cycle": round(100 * cycle.score, 2)}


def correlations(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Spearman's correlation of both columns: all together, within sequences, within settings."""

    def within(key: str) -> tuple[float | None, int]:
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            groups.setdefault(row[key], []).append(row)
        values = [rho for group in groups.values() if not math.isnan(rho := of(group))]
        return (round(float(np.mean(values)), 3) if values else None), len(values)

    def of(group: list[dict[str, Any]]) -> float:
        return spearman([row["j_and_f"] for row in group], [row["cycle"] for row in group])

    (by_sequence, sequences), (by_setting, settings) = within("sequence"), within("run")
    together = of(rows)
    return {
        "spearman": None if math.isnan(together) else round(together, 3),
        "pairs": len(rows),
        "spearman_within_sequences": by_sequence,
        "sequences": sequences,
        "spearman_within_settings": by_setting,
        "settings": settings,
    }


def render_toy(root: Path) -> None:
    """Two short sequences of the rendered scene in the layout of DAVIS: the ball, then the box."""
    for object_id, name in ((1, "ball"), (2, "box")):
        scenes, size = [render(4 * t) for t in range(5)], (214, 120)
        frames = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image, _ in scenes]
        masks = [((labels == object_id) * 255).astype(np.uint8) for _, labels in scenes]
        save_davis(root, name, frames, [cv2.resize(each, size, interpolation=cv2.INTER_NEAREST) for each in masks])


def run(root: Path, bundles: list[str], size: int | None, names: list[str], *, engine: str) -> list[dict[str, Any]]:
    """All rows, and the correlations of each bundle and of all together."""
    dataset = open_dataset("davis16", root)
    rows: list[dict[str, Any]] = []
    for bundle in bundles:
        model = Model.load(bundle, engine=engine)
        what = {"bundle": model.manifest.name, "weights": model.describe()["weights"], "size": size}
        for sequence in dataset.sequences:
            for name in names:
                row = measure(model, dataset, sequence, SETTINGS[name], size)
                rows.append({**what, "run": f"{model.manifest.name}, {name}", "setting": name, **row})
                print(rows[-1], flush=True)
    return [*rows, {"bundle": "all", **correlations(rows)}]


def main() -> None:
    """Parse options, run, write results/cycle.jsonl."""
    parser = parser_of(__doc__)
    parser.add_argument("root", type=Path, nargs="?")
    parser.add_argument("--bundle", action="append", help="repeatable; default: the packaged one")
    parser.add_argument("--size", type=int, default=240, help="short side of the working frame, pixels")
    parser.add_argument("--engine", default="auto")
    options = parser.parse_args()
    bundles = options.bundle or ["default"]
    if options.toy:
        with tempfile.TemporaryDirectory() as folder:
            render_toy(Path(folder))
            print(run(Path(folder), bundles, None, list(TOY), engine=options.engine)[-1])
        return
    if options.root is None:
        parser.error("give the path of annotated sequences in the layout of DAVIS, or --toy")
    rows = run(options.root, bundles, options.size, list(SETTINGS), engine=options.engine)
    print(rows[-1])
    write("cycle", rows)


if __name__ == "__main__":
    main()
