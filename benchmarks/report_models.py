"""Tables about the networks: how well they follow, how they were trained, what a training step costs."""

from __future__ import annotations

from typing import Any

from report_tables import MISSING, on, read, table

SIZE = 480
SHOWN = ("untrained-res3", "untrained-res4", "fast", "default")


def accuracy_part() -> str:
    """J&F per sequence of the packaged networks and of untrained ones, at 480p."""
    machine, rows = read("models")
    rows = [row for row in rows if row["size"] == SIZE and row["model"] in SHOWN]
    runs = sorted({(row["model"], row["precision"]) for row in rows}, key=lambda run: (SHOWN.index(run[0]), run[1]))
    cells = {(row["sequence"], row["model"], row["precision"]): row for row in rows}
    body = [
        [sequence, *(_figure(cells.get((sequence, *run)), bold=sequence == "mean") for run in runs)]
        for sequence in dict.fromkeys(row["sequence"] for row in rows)
    ]
    return (
        f"{on(machine)}\n\n{table(['J&F at 480p, %', *(f'{model}, {precision}' for model, precision in runs)], body)}"
    )


def ablation_part() -> str:
    """Mean J&F of every network that was measured, over the working size."""
    _, rows = read("models")
    means = [row for row in rows if row["sequence"] == "mean"]
    sizes = sorted({row["size"] for row in means})
    cells = {(row["model"], row["precision"], row["size"]): row for row in means}
    body = []
    for model, precision in dict.fromkeys((row["model"], row["precision"]) for row in means):
        found = [cells.get((model, precision, size)) for size in sizes]
        channels = next(row["channels"] for row in found if row)
        body.append([f"{model}, {precision}", channels, *(_figure(row) for row in found)])
    return table(["mean J&F, %", "K", *(f"short side {size}" for size in sizes)], body)


def runs_part() -> str:
    """What each training was, and took."""
    _, rows = read("runs")
    body: list[list[object]] = []
    for row in rows:
        if "settings" in row:
            clips, rate = row["settings"]["clips"], row["settings"]["optimiser"]["learning_rate"]
            body.append(
                [
                    row["run"],
                    "yes" if row["settings"]["encoder"]["layer4"] else "no",
                    row["steps"],
                    f"{clips['batch']} clips of {clips['frames']} frames, {clips['crop']}²",
                    f"{rate:g}",
                    f"{row['settings']['loss']['cross_view']:g}",
                    f"{row['training_s'] / 60:.0f}",
                    f"{100 * row['waiting_share']:.1f}",
                ]
            )
    head = ["run", "layer4", "steps", "batch", "peak rate", "weight of L_CV", "minutes", "waiting for clips, %"]
    return table(head, body)


def training_part() -> str:
    """A training step against the same step written plainly."""
    machine, rows = read("training")
    plain = {row["network"]: row["frames_per_s"] for row in rows if row["step"] == "plain"}
    body: list[list[object]] = [
        [
            f"{row['network']}, {'this project' if row['step'] == 'this' else 'plain PyTorch, fp32'}",
            f"{row['step_p50_s']:.2f}",
            f"{row['frames_per_s']:.1f}",
            f"{row['frames_per_s'] / plain[row['network']]:.1f}",
            f"{100 * row['waiting_share']:.1f}",
        ]
        for row in rows
    ]
    head = ["one training step", "seconds", "frames/s", "× plain", "waiting for clips, %"]
    return f"{on(machine)}\n\n{table(head, body)}"


def alignment_part() -> str:
    """Mean J&F over the offset at which masks are sampled."""
    machine, rows = read("alignment")
    if not rows:
        return f"({MISSING})"
    means = {(row["scale"], row["sampled"]): row for row in rows if row["sequence"] == "mean"}
    ways = list(dict.fromkeys(row["sampled"] for row in rows))
    body = [
        [title, *(_figure(means.get((scale, sampled))) for sampled in ways)]
        for scale, title in ((2, "half size"), (1, "480p"))
    ]
    titles = [sampled if isinstance(sampled, str) else f"offset {sampled}" for sampled in ways]
    return f"{on(machine)}\n\n{table(['mean J&F, %', *titles], body)}"


def cycle_part() -> str:
    """How well cycle consistency ranks as J&F does."""
    machine, rows = read("cycle")
    if not rows:
        return f"({MISSING})"
    *measured, summary = rows
    bundles, sizes = ({row[key] for row in measured} for key in ("bundle", "size"))
    head = ["Spearman's correlation of C with J&F", "", "over"]
    body: list[list[object]] = [
        ["all pairs", _rho(summary["spearman"]), f"{summary['pairs']} pairs"],
        ["settings and bundles, within a sequence", _rho(summary["spearman_within_sequences"]), summary["sequences"]],
        ["sequences, within a setting", _rho(summary["spearman_within_settings"]), summary["settings"]],
    ]
    what = f"{', '.join(sorted(bundles))}; short side {', '.join(map(str, sorted(sizes)))}. {on(machine)}"
    return f"{what}\n\n{table(head, body)}"


def quantised_part() -> str:
    """int8 encoders beside fp32 and bf16 on the same engine, and what they cost in J&F."""
    machine, rows = read("quantised")
    if not rows:
        return f"({MISSING})"
    body: list[list[object]] = [
        [
            f"{row['engine']}, {row['precision'].replace('int8 + fp32', 'int8').replace('+', 'and')}",
            f"{row['p50_ms']:.1f} / {row['p95_ms']:.1f}",
            f"{row['fp32_over_this']:.2f}",
            f"{row['j_and_f_after'] - row['j_and_f_before']:+.2f}" if "j_and_f_after" in row else "",
        ]
        for row in rows
    ]
    foreign = max(row["foreign_cores"] for row in rows)
    title = f"One frame through the encoder, {rows[0]['width']} × {rows[0]['height']}, in turns. {on(machine)}"
    head = ["engine, precision", "p50 / p95, ms", "fp32 / this", "J&F, points"]
    return f"{title} Other processes took {foreign:.2f} cores.\n\n{table(head, body)}"


def _rho(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _figure(row: dict[str, Any] | None, *, bold: bool = False) -> str:
    text = f"{row['j_and_f']:.1f}" if row else ""
    return f"**{text}**" if bold and text else text
