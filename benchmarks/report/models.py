"""Tables about the networks: how well they follow, how they were trained, what a training step costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from benchmarks.report.tables import MISSING, Row, crossed, distinct, listing, part, table

# Networks and working sizes of the main table, and names of the columns.
SHOWN = {
    ("untrained-res3", 480): "untrained-res3",
    ("second", 480): "second",
    ("fast", 480): "fast",
    ("default", 480): "default at 480",
    ("default, without motion", 576): "default, without motion",
    ("default", 576): "default",
    ("fine", 720): "fine",
}
SETTING = ("top_k", "sharpness", "object_bias", "centring", "guided")  # what propagation.py varies


class Choice(NamedTuple):
    """One sequence: its J&F in percent with the first setting, and with the one that is best on all others."""

    sequence: str
    first: float
    chosen: float
    setting: tuple[float, ...]


def leave_one_out(rows: Sequence[Row]) -> list[Choice]:
    """Choose, for each sequence, among the settings that all sequences have, by the mean J&F of the others.

    Args:
        rows: of one model at one size, the first setting first; it wins where means are equal.
    """
    cells = {(row["sequence"], tuple(row[name] for name in SETTING)): row["j_and_f"] for row in rows}
    sequences = distinct(rows, "sequence")
    settings = list(dict.fromkeys(setting for _, setting in cells))
    settings = [each for each in settings if all((sequence, each) in cells for sequence in sequences)]
    choices = []
    for sequence in sequences if len(sequences) > 1 and settings else []:
        others = [each for each in sequences if each != sequence]
        best = max(settings, key=lambda each: statistics.fmean(cells[other, each] for other in others))
        choices.append(Choice(sequence, cells[sequence, settings[0]], cells[sequence, best], best))
    return choices


@part("models")
def accuracy_part(machine: str, rows: list[Row]) -> str:
    """J&F per sequence of the packaged networks at their working sizes and of untrained ones, on 480p."""
    order = list(SHOWN.values())
    rows = [row | {"model": SHOWN[row["model"], row["size"]]} for row in rows if (row["model"], row["size"]) in SHOWN]
    runs = sorted(distinct(rows, "model", "precision"), key=lambda run: (order.index(run[0]), run[1]))

    def figure(row: Row | None) -> str:
        return _figure(row, bold=row is not None and row["sequence"] == "mean")

    cells = crossed("J&F on 480p, %", rows, "sequence", runs, figure, key=_run, name=", ".join)
    return f"{machine}\n\n{cells}"


@part("models")
def ablation_part(_: str, rows: list[Row]) -> str:
    """Mean J&F of every network that was measured, over the working size."""
    means = [row for row in rows if row["sequence"] == "mean"]
    sizes = sorted(set(distinct(means, "size")))
    cells = {(*_run(row), row["size"]): row for row in means}
    body = []
    for run in distinct(means, "model", "precision"):
        found = [cells.get((*run, size)) for size in sizes]
        channels = next(row["channels"] for row in found if row)
        body.append([", ".join(run), channels, *map(_figure, found)])
    return table(["mean J&F, %", "K", *(f"short side {size}" for size in sizes)], body)


@part("runs")
def runs_part(_: str, rows: list[Row]) -> str:
    """Return the settings and the cost of each training."""
    columns: dict[str, Callable[[Row], object]] = {
        "run": "{run}".format_map,
        "layer4": lambda row: "yes" if row["settings"]["encoder"]["layer4"] else "no",
        "steps": "{steps}".format_map,
        "batch": lambda row: "{batch} clips of {frames} frames, {crop}²".format_map(row["settings"]["clips"]),
        "peak rate": lambda row: f"{row['settings']['optimiser']['learning_rate']:g}",
        "weight of L_CV": lambda row: f"{row['settings']['loss']['cross_view']:g}",
        "minutes": lambda row: f"{row['training_s'] / 60:.0f}",
        "waiting for clips, %": _waiting,
    }
    return listing([row for row in rows if "settings" in row], columns)


@part("training")
def training_part(machine: str, rows: list[Row]) -> str:
    """A training step against the same step written plainly."""
    plain = {row["network"]: row["frames_per_s"] for row in rows if row["step"] == "plain"}
    names = {"this": "this project", "plain": "plain PyTorch, fp32"}
    columns: dict[str, Callable[[Row], object]] = {
        "one training step": lambda row: f"{row['network']}, {names[row['step']]}",
        "seconds": "{step_p50_s:.2f}".format_map,
        "frames/s": "{frames_per_s:.1f}".format_map,
        "× plain": lambda row: f"{row['frames_per_s'] / plain[row['network']]:.1f}",
        "waiting for clips, %": _waiting,
    }
    return f"{machine}\n\n{listing(rows, columns)}"


@part("alignment")
def alignment_part(machine: str, rows: list[Row]) -> str:
    """Mean J&F over the offset at which masks are sampled."""
    scales = {2: "half size", 1: "480p"}
    means = [row | {"of": scales[row["scale"]]} for row in rows if row["sequence"] == "mean"]
    means.sort(key=lambda row: -row["scale"])

    def name(sampled: Any) -> str:
        return sampled if isinstance(sampled, str) else f"offset {sampled}"

    ways = distinct(rows, "sampled")
    cells = crossed("mean J&F, %", means, "of", ways, _figure, key=lambda row: row["sampled"], name=name)
    return f"{machine}\n\n{cells}"


@part("propagation")
def propagation_part(machine: str, rows: list[Row]) -> str:
    """Options of propagation against the published ones, each sequence with the setting that is best on the others."""
    parts = [machine]
    for model, size in distinct(rows, "model", "size"):
        choices = leave_one_out([row for row in rows if (row["model"], row["size"]) == (model, size)])
        body: list[list[object]] = [
            [each.sequence, f"{each.first:.1f}", f"{each.chosen:.1f}", *(f"{value:g}" for value in each.setting)]
            for each in choices
        ]
        if not choices:
            continue
        means = [statistics.fmean(values) for values in ((c.first for c in choices), (c.chosen for c in choices))]
        body.append(["mean", *(f"**{mean:.1f}**" for mean in means), *[""] * len(SETTING)])
        head = [f"{model}, short side {size}: J&F, %", "published", "chosen on the others"]
        parts.append(table([*head, *(name.replace("_", "-") for name in SETTING)], body))
    return "\n\n".join(parts)


@part("composites")
def composite_part(machine: str, rows: list[Row]) -> str:
    """Two objects on composites with exact labels, by what the pasted one does."""
    means = [row for row in rows if row["composite"] == "mean"]
    columns: dict[str, Callable[[Row], object]] = {
        "bundle, short side, frames, pasted object": _composite,
        "J&F of the object, %": "{host:.1f}".format_map,
        "J&F of the pasted one, %": "{guest:.1f}".format_map,
        "ghosts, % of the frame": lambda row: _ghosts(row["ghost"]),
    }
    return f"{machine}\n\n{listing(means, columns)}\n\n{_event_table(means)}"


@part("reliability")
def reliability_part(machine: str, rows: list[Row]) -> str:
    """The IoU that an object's confidence promises beside the one it has, before and after the map."""
    (head,) = (row for row in rows if row["what"] == "map")
    body: list[list[object]] = []
    for number in distinct([row for row in rows if row["what"] != "map"], "bin"):
        line: list[object] = [f"{number / 5:.1f} to {(number + 1) / 5:.1f}"]
        for name in ("confidence", "state_confidence"):
            (row,) = (row for row in rows if row["what"] == name and row["bin"] == number)
            line += [row["frames"], *(f"{row[key]:.2f}" if row["frames"] else "" for key in ("promised", "iou"))]
        body.append(line)
    names = ("mean confidence", "state_confidence")
    title = ["promised", *(f"{name}: {column}" for name in names for column in ("frames", "promised", "IoU"))]
    errors = "; ".join(
        f"{name} {before:.1f} and {after:.1f}" for name, (before, after) in head["calibration_error"].items()
    )
    wrong = ", ".join(f"{name} {count}" for name, count in head["lost_wrong_of"].items())
    return (
        f"Bundle `{head['bundle']}`, {head['frames']} objects in frames. {machine}\n\n{table(title, body)}\n\n"
        f"Expected calibration error in percent points, before and after: {errors}. "
        f"Of {head['lost']} lost ones {head['lost_right']} are out of view; objects of the others: {wrong}."
    )


def _event_table(means: list[Row]) -> str:
    """Losses and returns that were found, by the states of objects and by pixels alone."""
    rules = (("events", "states", "ghost_not_lost"), ("events_by_pixel", "any pixel", "ghost"))
    body: list[list[object]] = []
    for row in means:
        for rule, name, ghost in rules if "events" in row else ():
            kinds = [row[rule][kind] for kind in ("lost", "back")]
            figures = [f"{matched} of {true}, {found} found" for true, found, matched in kinds]
            body.append([_composite(row), name, *figures, _ghosts(row[ghost])])
    head = ["bundle, short side, frames, pasted object", "rule", "losses", "returns", "ghosts, % of the frame"]
    return table(head, body) if body else f"({MISSING})"


def _composite(row: Row) -> str:
    return "{bundle}, {size}, {frames}, {kind}".format_map(row)


def _ghosts(share: float | None) -> str:
    return "–" if share is None else f"{share:.3f}"


@part("objectives")
def objective_part(machine: str, rows: list[Row]) -> str:
    """Objectives of correspondence at one small budget, alone and with L_seg."""

    def figure(row: Row | None) -> str:
        return _figure(row) or MISSING

    ways = {False: "alone", True: "with L_seg"}
    title = f"{rows[0]['steps']} steps from random weights: J&F at 240, %"
    key, name = (lambda row: row["segmentation"]), ways.__getitem__
    return f"{machine}\n\n{crossed(title, rows, 'objective', [*ways], figure, key=key, name=name)}"


@part("cycle")
def cycle_part(machine: str, rows: list[Row]) -> str:
    """Return how well cycle consistency ranks models as J&F does."""
    *measured, summary = rows
    bundles, sizes = ({row[key] for row in measured} for key in ("bundle", "size"))
    head = ["Spearman's correlation of C with J&F", "", "over"]
    body: list[list[object]] = [
        ["all pairs", _rho(summary["spearman"]), f"{summary['pairs']} pairs"],
        ["settings and bundles, within a sequence", _rho(summary["spearman_within_sequences"]), summary["sequences"]],
        ["sequences, within a setting", _rho(summary["spearman_within_settings"]), summary["settings"]],
    ]
    what = f"{', '.join(sorted(bundles))}; short side {', '.join(map(str, sorted(sizes)))}. {machine}"
    return f"{what}\n\n{table(head, body)}"


@part("clicks")
def clicks_part(machine: str, rows: list[Row]) -> str:
    """Masks from clicks and boxes beside GrabCut's."""
    measured = [row for row in rows if "ms" in row]
    more = next((row for row in rows if "frames" in row), None)
    held = next((row for row in rows if row["sequence"] == "leave-one-out"), None)
    counts = (1, 3, 5)

    def mean(key: str) -> list[float]:
        return [statistics.fmean(row[key][count - 1] for row in measured) for count in counts]

    def box(key: str) -> list[float]:
        return [statistics.fmean(row[f"box_{name}{key}"] for row in measured) for name in ("tight", "loose")]

    def line(name: str, values: list[float], took: str = "") -> list[object]:
        spent = f"{statistics.median(each for row in measured for each in row[took]):.0f}" if took else ""
        return [name, *(f"{value:.1f}" for value in values), *[""] * (5 - len(values)), spent]

    body = [
        line("vosrt", [*mean("clicks"), *box("")], "ms"),
        line("GrabCut", [*mean("clicks_grabcut"), *box("_grabcut")], "ms_grabcut"),
    ]
    if held:
        body.insert(1, line("vosrt, constants chosen on the others", [held["clicks"][count - 1] for count in counts]))
    if more:
        scores = [more["clicks"][count - 1] for count in counts]
        body.insert(1, line(f"vosrt, {more['frames']} frames: {more['sequence']}", scores))
    head = ["IoU, %", "1 click", "3 clicks", "5 clicks", "tight box", "box 20 px wider", "processor ms a click, p50"]
    each = ", ".join(f"{row['sequence']} {row['clicks'][-1]:.0f}" for row in measured)
    sets = f" The constants are the best of {held['sets']} sets." if held else ""
    lost, where = max((a - b, row["sequence"]) for row in measured for a, b in pairwise(row["clicks"]))
    return (
        f"First frames of {len(measured)} sequences of DAVIS-2016 val. {machine}{sets}\n\n"
        f"{table(head, body)}\n\nAfter five clicks: {each}. "
        f"The most that a further click lost: {max(lost, 0.0):.1f} on {where}."
    )


@part("directions")
def directions_part(machine: str, rows: list[Row]) -> str:
    """Return J&F by where the marks are."""
    what = f"Bundle `{rows[0]['bundle']}`, short side {rows[0]['size']}; frames that no row marks. {machine}"
    sequences = distinct(rows, "sequence")
    cells = crossed("marked: J&F, %", rows, "marks", sequences, _figure, key=lambda row: row["sequence"])
    return f"{what}\n\n{cells}"


@part("quantised")
def quantised_part(machine: str, rows: list[Row]) -> str:
    """int8 encoders beside fp32 and bf16 on the same engine, and what they cost in J&F."""

    def gained(row: Row) -> str:
        return f"{row['j_and_f_after'] - row['j_and_f_before']:+.2f}" if "j_and_f_after" in row else ""

    columns: dict[str, Callable[[Row], object]] = {
        "engine, precision": lambda row: (
            f"{row['engine']}, {row['precision'].replace('int8 + fp32', 'int8').replace('+', 'and')}"
        ),
        "p50 / p95, ms": lambda row: f"{row['p50_ms']:.1f} / {row['p95_ms']:.1f}",
        "fp32 / this": "{fp32_over_this:.2f}".format_map,
        "J&F, points": gained,
    }
    foreign = max(row["foreign_cores"] for row in rows)
    title = f"One frame through the encoder, {rows[0]['width']} × {rows[0]['height']}, in turns. {machine}"
    return f"{title} Other processes took {foreign:.2f} cores.\n\n{listing(rows, columns)}"


def _rho(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _run(row: Row) -> tuple[str, str]:
    return row["model"], row["precision"]


def _waiting(row: Row) -> str:
    return f"{100 * row['waiting_share']:.1f}"


def _figure(row: Row | None, *, bold: bool = False) -> str:
    text = f"{row['j_and_f']:.1f}" if row else ""
    return f"**{text}**" if bold and text else text
