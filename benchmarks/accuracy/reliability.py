"""Is the confidence of an object the IoU of its mask? Fits the map from one to the other, by leave-one-sequence-out.

    python -m benchmarks.accuracy.reliability --davis PATH              # half an hour; --rows FILE keeps what was seen
    python -m benchmarks.accuracy.reliability --davis PATH --rows FILE  # fits again what FILE has
    python -m benchmarks.accuracy.reliability --toy                     # seconds, two drawn sequences, nothing written

The sequences run at the bundle's own size, composites (`benchmarks.accuracy.composites`) at 240. In every frame where
an object is shown, the odds of its IoU are taken as a power of the odds of its mean confidence, times a factor: two
constants, by maximum likelihood. Each object is judged by constants that no row with its sequence had a part in.
``iou_factor`` and ``iou_power`` of `vosrt.PropagationOptions` are by default those of all rows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.composites import Sequence, composites, drawn, read
from benchmarks.machine import parser_of, write
from vosrt import Model

F64Array = NDArray[np.float64]
Seen = dict[str, Any]  # an object in a frame

BINS = 5  # of the table
FINE_BINS = 10  # of the expected calibration error
SIZE = 240  # of composites
COMPOSITE_FRAMES = 50
ROUNDS = 50  # of Newton's method
ALMOST = 1e-6  # keeps odds finite


def watch(model: Model, sequence: Sequence, origins: list[str], size: int | None) -> list[Seen]:
    """Segment a sequence; a row per object and frame after the first.

    Args:
        model: runs it.
        sequence: object i is the one of sequence ``origins[i - 1]``.
        origins: names of the sequences that it was made from.
        size: short side of the working frame; None is the bundle's.
    """
    rows: list[Seen] = []
    with model.stream(size=size) as stream:
        for t, (frame, truth) in enumerate(zip(sequence.frames, sequence.masks, strict=True)):
            result = stream.step(frame) if t else stream.start(frame, truth)
            for number, origin in enumerate(origins, 1):
                if t == 0 or number not in result.objects:
                    continue
                seen, found, true = result.objects[number], result.labels == number, truth == number
                rows.append(
                    {
                        "composite": len(origins) > 1,
                        "origin": origin,
                        "sequences": origins,
                        "state": seen.state,
                        "confidence": float(seen.confidence),
                        "iou": float((found & true).sum() / max((found | true).sum(), 1)),
                        "visible": bool(true.any()),
                    }
                )
    return rows


def sigmoid(values: F64Array) -> F64Array:
    """1 / (1 + exp(-x))."""
    return np.asarray(1.0 / (1.0 + np.exp(-values)))


def log_odds(confidence: F64Array) -> F64Array:
    """The input of the map: f64 [n, 2], a one and the logarithm of the odds."""
    inside = np.clip(confidence, ALMOST, 1 - ALMOST)
    return np.stack([np.ones_like(inside), np.log(inside / (1 - inside))], axis=1)


def fit(inputs: F64Array, iou: F64Array) -> F64Array:
    """Return the logarithm of the factor, and the power, that are likeliest: logistic regression."""
    weights = np.zeros(2)
    for _ in range(ROUNDS):
        expected = sigmoid(inputs @ weights)
        slope = inputs.T @ (expected - iou) + ALMOST * weights
        curve = (inputs * (expected * (1 - expected))[:, None]).T @ inputs + ALMOST * np.eye(2)
        weights = weights - np.linalg.solve(curve, slope)
    return weights


def held_out(rows: list[Seen]) -> F64Array:
    """Return the IoU to expect of each row by constants that its object's sequence had no part in."""
    inputs, iou = log_odds(np.array([row["confidence"] for row in rows])), np.array([row["iou"] for row in rows])
    expected = np.zeros(len(rows))
    for origin in {row["origin"] for row in rows}:
        own = np.array([row["origin"] == origin for row in rows])
        others = np.array([origin not in row["sequences"] for row in rows])
        expected[own] = sigmoid(inputs[own] @ fit(inputs[others], iou[others])) if others.any() else 0.5
    return expected


def bins(promised: F64Array, iou: F64Array, count: int) -> list[tuple[int, float, float]]:
    """Frames, mean promise and mean IoU of those that promise about the same, worst first."""
    number = np.minimum((promised * count).astype(int), count - 1)
    return [
        (int(own.sum()), *(float(each[own].mean()) if own.any() else 0.0 for each in (promised, iou)))
        for own in (number == each for each in range(count))
    ]


def calibration_error(promised: F64Array, iou: F64Array) -> float:
    """The mean distance of promise and IoU over bins, by their frames, in percent points."""
    return 100 * sum(n * abs(p - found) for n, p, found in bins(promised, iou, FINE_BINS)) / len(iou)


def summarise(rows: list[Seen], bundle: str) -> list[dict[str, Any]]:
    """Rows of the results: the constants and errors with what is right of lost objects, then a line per bin."""
    shown = [row for row in rows if row["state"] != "lost" and row["confidence"] > 0]
    lost = [row for row in rows if row["state"] == "lost"]
    raw, iou = np.array([row["confidence"] for row in shown]), np.array([row["iou"] for row in shown])
    expected = held_out(shown)
    factor, power = fit(log_odds(raw), iou)
    one_object = np.array([not row["composite"] for row in shown])
    parts = {"all": np.ones(len(shown), bool), "sequences": one_object, "composites": ~one_object}
    errors = {
        name: [round(calibration_error(each[own], iou[own]), 2) for each in (raw, expected)]
        for name, own in parts.items()
        if own.any()
    }
    head = {
        "what": "map",
        "bundle": bundle,
        "factor": round(float(np.exp(factor)), 3),
        "power": round(float(power), 3),
        "frames": len(shown),
        "calibration_error": errors,
        "lost": len(lost),
        "lost_right": sum(not row["visible"] for row in lost),
        "lost_wrong_of": {
            origin: wrong
            for origin in sorted({row["origin"] for row in lost})
            if (wrong := sum(row["visible"] for row in lost if row["origin"] == origin))
        },
    }
    lines = [
        {"what": name, "bin": number, "frames": n, "promised": round(promised, 3), "iou": round(found, 3)}
        for name, each in (("confidence", raw), ("state_confidence", expected))
        for number, (n, promised, found) in enumerate(bins(each, iou, BINS))
    ]
    return [head, *lines]


def collect(model: Model, sequences: list[Sequence], *, own_size: bool = True) -> list[Seen]:
    """Watch every sequence and every composite."""
    rows: list[Seen] = []
    for each in sequences:
        rows += watch(model, each, [each.name], None if own_size else SIZE)
    cut = [Sequence(s.name, s.frames[:COMPOSITE_FRAMES], s.masks[:COMPOSITE_FRAMES]) for s in sequences]
    for each in composites(cut):
        rows += watch(model, each, each.name.rsplit("-", 1)[0].split("+"), SIZE)
        print(each.name, len(rows), flush=True)
    return rows


def main() -> None:
    """Collect, fit, write results/reliability.jsonl."""
    parser = parser_of(__doc__)
    parser.add_argument("--davis", type=Path, help="sequences with one object in the layout of DAVIS")
    parser.add_argument("--bundle", default="default")
    parser.add_argument("--rows", type=Path, help="JSON file of what was seen; read if it is there, else written")
    arguments = parser.parse_args()
    if arguments.rows is not None and arguments.rows.exists():
        rows = json.loads(arguments.rows.read_text())
    elif arguments.toy:
        rows = collect(Model.load(arguments.bundle), drawn(), own_size=False)
    elif arguments.davis is None:
        parser.error("--davis PATH is missing")
    else:
        rows = collect(Model.load(arguments.bundle), read(arguments.davis, 1000))
    if arguments.rows is not None and not arguments.rows.exists():
        arguments.rows.write_text(json.dumps(rows))
    write("reliability", summarise(rows, arguments.bundle), toy=arguments.toy, show=True)


if __name__ == "__main__":
    main()
