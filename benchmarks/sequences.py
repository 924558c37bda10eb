"""`vos-run` on annotated sequences in the DAVIS layout: does it work on each, how well, and what does bf16 change?

    python benchmarks/sequences.py PATH/TO/davis        # with JPEGImages/480p and Annotations/480p
    python benchmarks/sequences.py PATH --frames 10     # quicker, nothing written

Each sequence runs three times from its first annotation: as `vos-run` chooses by itself; with an fp32 encoder and bf16
matching; in fp32 throughout. J&F is that of the DAVIS protocol. `differing_pixels` counts labels unlike those of
fp32, over the whole sequence, errors that add up from frame to frame included.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from machine import write
from PIL import Image

from vosrt.cli.run import main as vos_run
from vosrt.metrics import score_sequence
from vosrt.types import U8Array

RUNS = {
    "fp32": ["--engine", "cpu", "--precision", "fp32"],
    "bf16 matching": ["--engine", "cpu", "--precision", "auto"],
    "as chosen": [],
}


def read_masks(files: list[Path]) -> list[U8Array]:
    """Object ids, u8 [H, W]; binary masks hold 255 for object 1."""
    masks = [np.array(Image.open(file)) for file in files]
    return [np.where(mask == 255, 1, mask).astype(np.uint8) for mask in masks]


def segment(frames: Path, first: Path, out: Path, options: list[str]) -> tuple[list[U8Array], dict[str, Any]]:
    """Masks and summary of one `vos-run`, through its command line."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = vos_run([str(frames), "--mask", str(first), "-o", str(out), "--no-rle", "--json", *options])
    if code:
        raise SystemExit(f"vos-run failed with exit code {code}: {printed.getvalue()}")
    return read_masks(sorted((out / "masks").glob("*.png"))), json.loads(printed.getvalue())


def run_sequence(root: Path, name: str, bundle: str, limit: int | None) -> list[dict[str, Any]]:
    """All runs of one sequence."""
    frames = root / "JPEGImages" / "480p" / name
    annotations = sorted((root / "Annotations" / "480p" / name).glob("*.png"))[:limit]
    truth = read_masks(annotations)
    end = [] if limit is None else ["--end", str(limit)]
    rows: list[dict[str, Any]] = []
    exact: list[U8Array] = []
    with tempfile.TemporaryDirectory() as folder:
        for label, options in RUNS.items():
            out = Path(folder) / label.replace(" ", "-")
            masks, summary = segment(frames, annotations[0], out, [*options, *end, "--bundle", bundle])
            exact = exact or masks
            score = score_sequence(masks, truth)[1]
            different = np.mean([(a != b).mean() for a, b in zip(masks, exact, strict=True)])
            rows.append(
                {
                    "sequence": name,
                    "run": label,
                    "frames": len(masks),
                    "j": round(100 * score.j, 2),
                    "f": round(100 * score.f, 2),
                    "j_and_f": round(100 * score.j_and_f, 2),
                    "differing_pixels_percent": round(100 * float(different), 4),
                    "bundle": summary["model"]["bundle"],
                    "engine": "{name} {precision}".format(**summary["model"]["engines"]["encoder"]),
                    "core": summary["model"]["core"],
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
    names = sorted(path.name for path in (options.root / "Annotations" / "480p").iterdir() if path.is_dir())
    rows = [row for name in names for row in run_sequence(options.root, name, options.bundle, options.frames)]
    for label in RUNS:
        chosen = [row for row in rows if row["run"] == label]
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
