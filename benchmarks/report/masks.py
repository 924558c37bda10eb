"""Tables about the mask embedding: what rounds of refinement gain and cost, and what pseudo-masks are."""

from __future__ import annotations

import statistics

from benchmarks.report.tables import Row, crossed, distinct, part, table


@part("refinement")
def refinement_part(machine: str, rows: list[Row]) -> str:
    """J&F per sequence over the rounds, and the rounds' cost."""
    scored = [row for row in rows if row["part"] == "accuracy"]
    timed = [row for row in rows if row["part"] == "cost"]
    parts = [machine]
    parts += [_accuracy([row for row in scored if row["size"] == size]) for size in distinct(scored, "size")]
    if timed:
        rounds = distinct(timed, "rounds")
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


def _accuracy(rows: list[Row]) -> str:
    """J&F at one size: a line per sequence, a column per number of rounds, shown alone or remembered."""
    title = f"J&F, short side {rows[0]['size']}, %"
    columns = distinct(rows, "feedback", "rounds")

    def name(column: tuple[bool, int | str]) -> str:
        return f"{_title(column[1])}{', remembered' if column[0] else ''}"

    key, show = (lambda row: (row["feedback"], row["rounds"])), "{0[j_and_f]:.1f}".format
    return crossed(title, rows, "sequence", columns, show, key=key, name=name)


@part("mask_training")
def mask_training_part(machine: str, rows: list[Row]) -> str:
    """Return what the segmentation loss adds to a training."""
    (row,) = rows
    step = f"{row['without_p50_s']:.2f} s, with L_seg on {row['clips_with_masks']} of them {row['with_p50_s']:.2f} s"
    share, longer = f"{100 * row['share_of_steps']:.0f} %", f"{row['training_longer_percent']:.0f} %"
    return (
        f"{machine} A step of {row['clips']} clips at {row['crop']}² takes {step}, {row['step_ratio']:.2f} ×. "
        f"L_seg is part of the last {share} of the steps: a training takes {longer} longer without making masks."
    )


@part("pseudo_masks")
def pseudo_mask_part(_: str, rows: list[Row]) -> str:
    """Return how well clusters fit annotated objects, per method."""
    methods, sequences = distinct(rows, "method"), distinct(rows, "sequence")
    cells = {(row["sequence"], row["method"]): row for row in rows}
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
