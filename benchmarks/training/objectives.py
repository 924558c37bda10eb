"""What each objective teaches in the same few steps: the paper's losses, a random walk, colours; each also with L_seg.

    python -m benchmarks.training.objectives VIDEOS DAVIS --work FOLDER  # an hour or two; goes on where it stopped

Table S2 of Li et al. (2023) compares objectives of correspondence, alone and with the segmentation loss. This does so
at a small budget: a narrow network, a few hundred steps from random weights, the same clips in the same order. J&F are
those of the encoder by propagation alone, so that they say what the segmentation loss does to correspondence.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.machine import parser_of, write
from vosrt_train.cli import main as vos_train

BUDGET = """
[encoder]
layer4 = false
width = 32

[cache]
short_side = 288

[clips]
workers = 1
batch = 8
crop = 112
resize = 1.6
order = "time"

[optimiser]
learning_rate = 5e-4
mask_rate = 0.5
betas = [0.9, 0.999]
clip_gradient = 1.0

[schedule]
epochs = 0
warmup = 20
decay = "cosine"

[segmentation]
start = 0.5
updates = 1
clips = 4

[masks]
width = 32
value_channels = 64

[pseudo]
max_frames = 8
short_side = 112

[validation]
every = 0
size = 240

[compute]
threads = 1

[log]
every = 1
checkpoint = 20
pictures = 0
"""
OBJECTIVES = {
    "space-time and cross-view": (),
    "random walk (CRW)": ("loss.space_time=0", "loss.cross_view=0", "loss.walk=1"),
    "reconstruction (MAST)": ("loss.space_time=0", "loss.cross_view=0", "loss.reconstruction=1"),
    "space-time, cross-view and random walk": ("loss.walk=0.3",),
}


def train(run: Path, changes: tuple[str, ...], arguments: argparse.Namespace) -> dict[str, Any]:
    """Train a run, or what is left of it, and return its last validation and its hours."""
    preset = arguments.work / "budget.toml"
    preset.write_text(BUDGET)
    command = [str(arguments.videos), "-o", str(run), "--cache", str(arguments.work / "cache"), "--quiet"]
    if arguments.cache:
        command[4] = str(arguments.cache)
    command += ["--validate", str(arguments.davis), "--preset", str(preset), "--licence", "research only"]
    for change in (f"schedule.steps={arguments.steps}", *changes):
        command += ["--set", change]
    if vos_train([*command, "--resume"] if (run / "state.pt").exists() else command):
        raise SystemExit(f"{run}: the training failed or was interrupted; call again to go on")
    lines = [json.loads(line) for line in (run / "scalars.jsonl").read_text().splitlines()]
    scores = [line for line in lines if "validation/j_and_f" in line][-1]
    seconds = max(line.get("speed/training_s", 0.0) for line in lines)
    names = ("validation/j_and_f", "validation/j", "validation/f")
    return {name.split("/")[1]: round(100 * scores[name], 2) for name in names if name in scores} | {
        "steps": scores["step"],
        "hours": round(seconds / 3600, 2),
    }


def main() -> None:
    """Train all, and write their scores."""
    parser = parser_of(__doc__, toy=False)
    parser.add_argument("videos", type=Path, help="videos to learn from")
    parser.add_argument("davis", type=Path, help="annotated sequences in the layout of DAVIS")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--cache", type=Path, help="decoded frames of other trainings")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for weight in (0, 1):
        for name, changes in OBJECTIVES.items():
            run = arguments.work / f"{len(rows)}"
            scores = train(run, (*changes, f"segmentation.weight={weight}"), arguments)
            rows.append({"objective": name, "segmentation": bool(weight), **scores})
            write("objectives", rows, steps=arguments.steps)
            print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
