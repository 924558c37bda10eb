"""Tables about the mask embedding: what rounds of refinement gain and cost, and what pseudo-masks are."""

from __future__ import annotations

import statistics
from typing import Any

from report_tables import MISSING, on, read, table


def refinement_part() -> str:
    """J&F per sequence over the rounds, and the rounds' cost."""
    machine, rows = read("refinement")
    scored = [row for row in rows if row["part"] == "accuracy"]
    timed = [row for row in rows if row["part"] == "cost"]
    if not scored and not timed:
        return f"({MISSING})"
    parts = [on(machine)]
    sizes = dict.fromkeys(row["size"] for row in scored)
    parts += [_accuracy([row for row in scored if row["size"] == size]) for size in sizes]
    if timed:
        rounds = list(dict.fromkeys(row["rounds"] for row in timed))
        times = {(row["objects"], row["rounds"]): row for row in timed}
        counts = sorted({row["objects"] for row in timed})
        body = [[f"{count} object{'s' * (count > 1)}"] for count in counts]
        for line, count in zip(body, counts, strict=True):
            line += [f"{times[count, each]['frame_p50_ms']:.0f}" for each in rounds]
        few, many = counts[0], counts[-1]
        ratio = [times[many, each]["frame_p50_ms"] / times[few, each]["frame_p50_ms"] for each in rounds]
        body.append([f"{many} / {few}", *(f"{each:.2f}" for each in ratio)])
        size = f"{timed[0]['width']} × {timed[0]['height']}"
        parts.append(table([f"{size}, ms a frame, median", *map(_title, rounds)], body))
        parts.append(f"Other processes took up to {max(row['foreign_cores'] for row in timed):.1f} cores meanwhile.")
    return "\n\n".join(parts)


def _accuracy(rows: list[dict[str, Any]]) -> str:
    """J&F at one size: a line per sequence, a column per number of rounds, shown alone or remembered."""
    columns = list(dict.fromkeys((row["feedback"], row["rounds"]) for row in rows))
    cells = {(row["sequence"], row["feedback"], row["rounds"]): row["j_and_f"] for row in rows}
    body: list[list[object]] = [
        [sequence, *(f"{cells[sequence, *column]:.1f}" for column in columns)]
        for sequence in dict.fromkeys(row["sequence"] for row in rows)
    ]
    titles = [f"{_title(rounds)}, remembered" if feedback else _title(rounds) for feedback, rounds in columns]
    return table([f"J&F, short side {rows[0]['size']}, %", *titles], body)


def mask_training_part() -> str:
    """What the segmentation loss adds to a training."""
    machine, rows = read("mask_training")
    if not rows:
        return f"({MISSING})"
    (row,) = rows
    step = f"{row['without_p50_s']:.2f} s, with L_seg on {row['clips_with_masks']} of them {row['with_p50_s']:.2f} s"
    share, longer = f"{100 * row['share_of_steps']:.0f} %", f"{row['training_longer_percent']:.0f} %"
    return (
        f"{on(machine)} A step of {row['clips']} clips at {row['crop']}² takes {step}, {row['step_ratio']:.2f} ×. "
        f"L_seg is part of the last {share} of the steps: a training takes {longer} longer without making masks."
    )


def pseudo_mask_part() -> str:
    """How well clusters fit annotated objects, per method."""
    _, rows = read("pseudo_masks")
    if not rows:
        return f"({MISSING})"
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cells = {(row["sequence"], row["method"]): row for row in rows}
    sequences = list(dict.fromkeys(row["sequence"] for row in rows))
    keys = ("best_j", "largest_share", "parts")
    body: list[list[object]] = [
        [sequence, *(_figure(key, cells[sequence, method][key]) for method in methods for key in keys)]
        for sequence in sequences
    ]
    means = [
        _figure(key, statistics.mean(cells[sequence, method][key] for sequence in sequences))
        for method in methods
        for key in keys
    ]
    titles = [f"{method}: {title}" for method in methods for title in ("best J, %", "largest share, %", "parts")]
    return table([f"{rows[0]['clusters']} clusters", *titles], [*body, ["mean", *means]])


def _title(rounds: int | str) -> str:
    return "propagated alone" if rounds == "off" else f"R = {rounds}"


def _figure(key: str, value: float) -> str:
    return f"{value:.1f}" if key == "parts" else f"{value:.0f}"
