"""Keep what a training showed: its curve and its settings, from the folder that `vos-train` left.

    python -m benchmarks.training.runs fast=RUN whole=RUN2  # replaces these in runs.jsonl, draws training.svg
    python -m benchmarks.training.runs                      # draws again

Losses are means over 50 steps; J&F are the validations of the run, through the runtime.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import RESULTS, write

NAME = "runs"
MEAN_OVER = 50
SETTINGS = {
    "encoder": ("layer4",),
    "clips": ("batch", "frames", "crop", "resize", "gap"),
    "optimiser": ("learning_rate", "weight_decay", "betas"),
    "schedule": ("steps", "warmup", "decay"),
    "loss": ("cross_view", "temperature"),
    "validation": ("sequences", "size"),
    "compute": ("precision",),
}


def condense(name: str, run: Path) -> Iterator[dict[str, Any]]:
    """Rows of one run: its settings, then its curve."""
    lines = [json.loads(line) for line in (run / "scalars.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss/total" in line]
    config = tomllib.loads((run / "config.toml").read_text())
    waited = sum(line["speed/waiting_share"] / line["speed/frames_per_s"] for line in losses)
    yield {
        "run": name,
        "settings": {table: {key: config[table][key] for key in keys} for table, keys in SETTINGS.items()},
        "steps": losses[-1]["step"],
        "training_s": round(losses[-1]["speed/training_s"]),
        "waiting_share": round(waited / sum(1 / line["speed/frames_per_s"] for line in losses), 4),
        "licence": config["licence"],
    }
    for first in range(0, len(losses), MEAN_OVER // 10):
        chunk = losses[first : first + MEAN_OVER // 10]
        means = {part: round(float(np.mean([line[f"loss/{part}"] for line in chunk])), 4) for part in PARTS}
        yield {"run": name, "step": chunk[-1]["step"], "minute": round(chunk[-1]["speed/training_s"] / 60, 2), **means}
    for line in lines:
        if "validation/j_and_f" in line:
            scores = {
                key.removeprefix("validation/"): round(100 * value, 2) for key, value in line.items() if "/" in key
            }
            yield {"run": name, "step": line["step"], **scores}


PARTS = ("total", "space_time", "cross_view")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Loss and J&F over the minutes of training, one column a run."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = NAME  # the same rows, the same file
    runs = list(dict.fromkeys(row["run"] for row in rows))
    figure, axes = plt.subplots(2, len(runs), figsize=(5 * len(runs), 5), sharey="row", squeeze=False)
    for column, run in enumerate(runs):
        curve = [row for row in rows if row["run"] == run and "total" in row]
        checks = [row for row in rows if row["run"] == run and "j_and_f" in row]
        minute = {row["step"]: row["minute"] for row in curve}
        upper, lower = axes[0][column], axes[1][column]
        upper.plot([row["minute"] for row in curve], [row["space_time"] for row in curve], label="space-time")
        upper.plot([row["minute"] for row in curve], [row["cross_view"] for row in curve], label="cross-view")
        upper.set_title(f"{run}: {curve[-1]['step']} steps")
        steps = np.array(sorted(minute))
        when = np.interp([row["step"] for row in checks], steps, [minute[step] for step in steps])
        for sequence in [key for key in checks[0] if key not in ("run", "step", "j_and_f")] if checks else []:
            lower.plot(when, [row[sequence] for row in checks], ".-", linewidth=0.8, alpha=0.6, label=sequence)
        lower.plot(when, [row["j_and_f"] for row in checks], "k.-", label="mean")
        lower.set_xlabel("minutes of training")
    axes[0][0].set_ylabel("loss")
    axes[1][0].set_ylabel("J&F, %")
    for row in axes:
        row[0].legend(frameon=False, fontsize=8)
        for axis in row:
            axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Read the named runs, keep the others, draw."""
    path = RESULTS / f"{NAME}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]] if path.exists() else []
    for argument in sys.argv[1:]:
        name, separator, folder = argument.partition("=")
        if not separator or not (Path(folder) / "scalars.jsonl").is_file():
            sys.exit(f"{argument}: expected NAME=FOLDER, a folder in which vos-train left scalars.jsonl")
        rows = [row for row in rows if row["run"] != name] + list(condense(name, Path(folder)))
    if not rows:
        sys.exit("no runs yet; give NAME=FOLDER")
    if sys.argv[1:]:
        write(NAME, rows)
    draw(rows, RESULTS / "training.svg")
    print(RESULTS / "training.svg")


if __name__ == "__main__":
    main()
