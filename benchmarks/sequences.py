"""`vos-eval` on annotated sequences in the DAVIS layout: does each work, how well, and what does bf16 change?

    python benchmarks/sequences.py PATH/TO/davis        # with JPEGImages/480p and Annotations/480p
    python benchmarks/sequences.py PATH --frames 10     # quicker, nothing written

Each sequence runs three times from its first annotation: as `vos-run` chooses by itself; with an fp32 encoder and bf16
matching; in fp32 throughout. J&F is that of the DAVIS protocol. `differing_pixels` counts labels unlike those of
fp32, over the whole sequence, errors that add up from frame to frame included.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import write

from vosrt.evaluation.layouts import Dataset, open_dataset
from vosrt.evaluation.running import RunRequest, run_dataset
from vosrt.evaluation.scoring import score_dataset
from vosrt.types import U8Array
from vosrt.video.images import list_images

RUNS: dict[str, dict[str, Any]] = {
    "fp32": {"engine": "cpu", "precision": "fp32"},
    "bf16 matching": {"engine": "cpu", "precision": "auto"},
    "as chosen": {},
}


def shorten(dataset: Dataset, count: int, folder: Path) -> Dataset:
    """The same data set with the first frames of each sequence, as links in a folder."""
    sequences = []
    for sequence in dataset.sequences:
        frames = folder / sequence.name
        frames.mkdir(parents=True)
        files = list_images(sequence.frames)[:count]
        for file in files:
            (frames / file.name).symlink_to(file.resolve())
        kept = {stem: path for stem, path in sequence.annotations.items() if stem in {file.stem for file in files}}
        sequences.append(replace(sequence, frames=frames, annotations=kept))
    return replace(dataset, sequences=tuple(sequences))


def read_masks(dataset: Dataset, out: Path, name: str, width: int, height: int) -> list[U8Array]:
    """The masks of one sequence, u8 [H, W] each."""
    return [dataset.read(path, width, height) for path in list_images(dataset.mask_folder(out, name))]


def run(dataset: Dataset, bundle: str, out: Path, label: str) -> list[dict[str, Any]]:
    """One of `RUNS` over all sequences; its masks stay in out/LABEL, and those of fp32 must be there already."""
    figures: dict[str, dict[str, Any]] = {}
    report = run_dataset(
        RunRequest(dataset=dataset, out=out / label, bundle=bundle, **RUNS[label]), on_sequence=figures.__setitem__
    )
    if report.interrupted or report.failed:
        raise SystemExit("; ".join(map(str, report.failed.values())) or "interrupted")
    rows = []
    for score in score_dataset(dataset, out / label).sequences:
        size = figures[score.name]["width"], figures[score.name]["height"]
        masks, exact = (read_masks(dataset, out / run_name, score.name, *size) for run_name in (label, "fp32"))
        different = float(np.mean([(a != b).mean() for a, b in zip(masks, exact, strict=True)]))
        percent = {name: 100 * (score.figures[name] or 0) for name in ("J", "F", "J&F")}
        rows.append(
            {
                "sequence": score.name,
                "run": label,
                "frames": len(masks),
                "j": round(percent["J"], 2),
                "f": round(percent["F"], 2),
                "j_and_f": round(percent["J&F"], 2),
                "differing_pixels_percent": round(100 * different, 4),
                **{name: report.settings[name] for name in ("bundle", "engine", "core")},
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Parse options, run, write results/sequences.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--bundle", default="default")
    parser.add_argument("--frames", type=int, help="of each sequence; nothing is written")
    options = parser.parse_args()
    dataset = open_dataset("davis16", options.root)
    with tempfile.TemporaryDirectory() as folder:
        if options.frames is not None:
            dataset = shorten(dataset, options.frames, Path(folder) / "frames")
        by_run = {label: run(dataset, options.bundle, Path(folder), label) for label in RUNS}
    rows = [row for of_one_sequence in zip(*by_run.values(), strict=True) for row in of_one_sequence]
    for label, chosen in by_run.items():
        mean = {
            key: round(float(np.mean([row[key] for row in chosen])), 4)
            for key in ("j", "f", "j_and_f", "differing_pixels_percent")
        }
        rows.append({"sequence": "mean", "run": label, "frames": sum(row["frames"] for row in chosen), **mean})
        print(rows[-1])
    if options.frames is None:
        print(write("sequences", rows))


if __name__ == "__main__":
    main()
