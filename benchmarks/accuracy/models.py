"""J&F of networks per sequence of a data set in the layout of DAVIS-2016.

    python -m benchmarks.accuracy.models PATH/TO/davis  # the packaged bundles and untrained ones
    python -m benchmarks.accuracy.models PATH trial=BUNDLE --sizes 240 360 480  # your bundle at several sizes
    python -m benchmarks.accuracy.models PATH --precision fp32 --engine cpu
    python -m benchmarks.accuracy.models PATH before=default --set calibration=0  # not the bundle's option
    python -m benchmarks.accuracy.models --toy  # seconds, renders its own sequence

A network is NAME=BUNDLE, the name of a packaged bundle, or untrained-res3 / untrained-res4 (seed 0, made on the spot).
Every run replaces its own rows in results/models.jsonl, keeps the others and draws models.svg: an ablation grows
network by network.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.machine import RESULTS, merged, parser_of, write
from benchmarks.untrained import export_untrained
from tests.fakes.media import save_davis
from vosrt import Model, load_bundle
from vosrt.bundle import Bundle, Feature
from vosrt_train.validate import find_sequences, validate

NAME = "models"
UNTRAINED: dict[str, Feature] = {"untrained-res3": "res3", "untrained-res4": "res4"}
KEY = ("model", "size", "engine", "precision")


def find_bundle(model: str, folder: Path) -> tuple[str, str]:
    """Name and bundle of a network of the command line."""
    name, _, bundle = model.partition("=")
    if name in UNTRAINED and not bundle:
        return name, str(export_untrained(UNTRAINED[name], folder))
    return name, bundle or name


def with_options(path: str, options: list[str]) -> Bundle:
    """The bundle with other options of propagation, each OPTION=VALUE."""
    bundle = load_bundle(path)
    values = {name: json.loads(value) for name, _, value in (option.partition("=") for option in options)}
    manifest = replace(bundle.manifest, inference=replace(bundle.manifest.inference, **values))
    return replace(bundle, manifest=manifest)


def measure(root: Path, name: str, model: Model, size: int, names: list[str]) -> list[dict[str, Any]]:
    """Rows of one network at one size: each sequence, then the mean."""
    sequences = find_sequences(root, names)
    began = time.perf_counter()
    result = validate(model, sequences, size)
    seconds = time.perf_counter() - began
    about = model.describe()
    encoder = about["engines"]["encoder"]
    common = {
        "model": name,
        "size": size,
        "engine": encoder["name"],
        "precision": encoder["precision"],
        "bundle": about["bundle"],
        "channels": model.manifest.encoder.channels,
        "core": about.get("core"),
    }
    rows = [
        {**common, "sequence": sequence, "j": round(100 * score.j, 2), "f": round(100 * score.f, 2)}
        | {"j_and_f": round(100 * score.j_and_f, 2)}
        for sequence, score in result.scores.items()
    ]
    mean = {key: round(math.fsum(row[key] for row in rows) / len(rows), 2) for key in ("j", "f", "j_and_f")}
    rows.append({**common, "sequence": "mean", **mean, "seconds": round(seconds, 1)})
    print(f"{name} at {size}: " + " ".join(f"{row['sequence']} {row['j_and_f']:.1f}" for row in rows), flush=True)
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Mean J&F over the short side, a line a trained network: in int8 where it was measured so, else in bf16."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = NAME  # the same rows, the same file
    each = {
        precision: {
            (row["model"], row["size"]): row
            for row in rows
            if row["sequence"] == "mean" and row["precision"] == precision
        }
        for precision in ("bf16", "int8")
    }
    means = [*(each["bf16"] | each["int8"]).values()]
    figure, axis = plt.subplots(figsize=(5, 3.4))
    for model in dict.fromkeys(row["model"] for row in means):
        points = sorted((row["size"], row["j_and_f"]) for row in means if row["model"] == model)
        channels = next(row["channels"] for row in means if row["model"] == model)
        if len(points) > 1:
            axis.plot(*zip(*points, strict=True), ".-", label=f"{model}, K = {channels}")
    axis.set_xlabel("short side of the working frame, pixels")
    axis.set_ylabel("mean J&F, %")
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def render_sequence(root: Path) -> None:
    """A bright disc that crosses a field of noise."""
    noise = np.random.default_rng(0).integers(0, 120, (64, 96, 3), dtype=np.uint8)
    discs = [cv2.circle(np.zeros((64, 96), np.uint8), (30 + 6 * number, 32), 14, 255, -1) for number in range(4)]
    save_davis(root, "disc", [np.where(disc[..., None] > 0, np.uint8(230), noise) for disc in discs], discs, "jpg")


def main() -> None:
    """Parse options, run, write results/models.jsonl."""
    parser = parser_of(__doc__)
    parser.add_argument("root", type=Path, nargs="?")
    parser.add_argument("models", nargs="*", help="NAME=BUNDLE, a packaged name, untrained-res3, untrained-res4")
    parser.add_argument("--sizes", type=int, nargs="+", default=[480])
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--sequences", nargs="+", default=[])
    parser.add_argument("--set", nargs="+", default=[], metavar="OPTION=VALUE", help="of propagation")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    options = parser.parse_args()
    if options.root is None and not options.toy:
        sys.exit("give a folder of annotated sequences in the layout of DAVIS, or --toy")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.toy:
            render_sequence(folder / "davis")
            options.root, options.sizes, options.models = folder / "davis", [64], ["default"]
        for model in options.models or ["untrained-res4", "untrained-res3", "default", "fast"]:
            name, bundle = find_bundle(model, folder)
            loaded = Model.load(with_options(bundle, options.set), engine=options.engine, precision=options.precision)
            for size in options.sizes:
                rows += measure(options.root, name, loaded, size, options.sequences)
    if not (options.toy or options.dry or options.sequences):
        kept = merged(NAME, rows, *KEY)
        write(NAME, kept)
        draw(kept, RESULTS / "models.svg")


if __name__ == "__main__":
    main()
