"""The report: one HTML file with the figures, plots and pictures of the worst frames, the worst sequence first."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from vosrt.evaluation import svg
from vosrt.evaluation.human_parts import PARTS, PartsScore
from vosrt.evaluation.pictures import Pictures, worst_frames
from vosrt.evaluation.scoring import DatasetScore, SequenceScore
from vosrt.evaluation.tables import Table, object_table, sequence_table, text_of
from vosrt.text import counted

_TITLES = {"davis16": "DAVIS 2016", "davis17": "DAVIS 2017", "ytvos": "YouTube-VOS", "vip": "VIP"}
_PICTURES = 5  # a sequence
_ILLUSTRATED = 60  # sequences; more would make a file that no browser likes
_SHOWN_OPTIONS = ("context", "radius", "top_k")

_OBJECTS_DEFINED = """
<p>All figures in percent; means are over objects. <b>J</b>: intersection over union. <b>F</b>: harmonic mean of
precision and recall of boundary pixels, within 0.8 % of the diagonal. <b>Recall</b>: share of frames above 50.
<b>Decay</b>: first quarter of the frames minus the last. <b>T</b>: instability of the outline from frame to frame
(shape contexts, after Perazzi et al. 2016); lower is steadier; <b>T true</b> is that of the annotation.</p>
"""
_PARTS_DEFINED = f"""
<p>In percent. <b>mIoU</b>: intersection over union per class ({len(PARTS)} with the background) from one confusion
matrix over all annotated frames, the given first one included; the mean over the classes that occur.
<b>Accuracy</b>: share of right pixels.</p>
"""


def html_report(score: DatasetScore, results: Path, settings: dict[str, Any] | None) -> str:
    """Write the report.

    Args:
        results: the folder of its masks, for the pictures.
        settings: what the masks were made with, None where that is not known.

    Returns:
        A whole HTML document that loads nothing else.

    Raises:
        SourceError: a frame cannot be read.
        MaskError: a mask cannot be read.
    """
    headline = next(iter(score.figures))
    worst_first = sorted(score.sequences, key=lambda sequence: sequence.figures[headline] or 0)
    title = f"{_TITLES[score.dataset.kind]} · {settings['bundle'] if settings else results.name}"
    parts = [
        f"<header><h1>{escape(title)}</h1>{_settings(settings)}</header>",
        f'<section class="cards">{_cards(score)}</section>',
        _overview(score, worst_first),
        "<h2>Worst frames of each sequence, the worst sequence first</h2>",
        f'<p class="note">{_legend(score)}</p>',
        *_illustrated(score, worst_first[:_ILLUSTRATED], results, headline),
    ]
    if len(worst_first) > _ILLUSTRATED:
        parts.append(f'<p class="note">Pictures of the {_ILLUSTRATED} worst of {len(worst_first)} sequences.</p>')
    parts += ["<h2>Tables</h2>", _table(sequence_table(score)), _table(object_table(score))]
    parts.append(f"<footer>{_PARTS_DEFINED if score.dataset.parts else _OBJECTS_DEFINED}</footer>")
    return _document(title, "\n".join(parts))


def _document(title: str, body: str) -> str:
    style = Path(__file__).with_name("report.css").read_text("utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _settings(settings: dict[str, Any] | None) -> str:
    if settings is None:
        return "<p>Masks of unknown origin: the folder has no results.json.</p>"
    size = f"short side {settings['size']}" if settings["size"] else "full size"
    chips = [f"{settings['weights']} weights", size, settings["engine"], settings["core"]]
    chips += [f"{name.replace('_', '-')} {settings['propagation'][name]:g}" for name in _SHOWN_OPTIONS]
    return "<p>" + "".join(f'<span class="chip">{escape(str(chip))}</span>' for chip in chips) + "</p>"


def _cards(score: DatasetScore) -> str:
    cards = [
        f'<div class="card"><b>{text_of(None if value is None else 100 * value)}</b><span>{escape(name)}</span></div>'
        for name, value in score.figures.items()
    ]
    if score.missing:
        missing = f"{counted(len(score.missing), 'sequence')} left out: {', '.join(score.missing)}."
        cards.append(f'<p class="warning">{escape(missing)}</p>')
    return "".join(cards)


def _overview(score: DatasetScore, worst_first: Sequence[SequenceScore | PartsScore]) -> str:
    labels = ["mIoU"] if score.dataset.parts else ["J", "F"]
    rows = [(s.name, [100 * (s.figures[label] or 0) for label in labels]) for s in worst_first]
    plots = [("Per sequence", svg.bars(rows, labels, "Scores per sequence, in percent"))]
    if score.dataset.parts:
        parts = [(str(name), [value]) for name, value in object_table(score).rows if isinstance(value, float)]
        plots.append(("Per part", svg.bars(parts, ["IoU"], "IoU per part, in percent")))
    else:
        legend = '<p class="legend"><i class="s0"></i>J, region <i class="s1"></i>F, boundary</p>'
        plots = [(name, legend + plot) for name, plot in plots]
    columns = "".join(f"<div><h2>{name}</h2>{plot}</div>" for name, plot in plots)
    return f'<section class="plots">{columns}</section>'


def _legend(score: DatasetScore) -> str:
    counted = "" if score.dataset.parts else " The first and the last frame do not count."
    return f"Tinted: the prediction. White line: the annotation. Numbers in the plots mark the frames shown.{counted}"


def _illustrated(
    score: DatasetScore, sequences: Sequence[SequenceScore | PartsScore], results: Path, headline: str
) -> list[str]:
    sources = {sequence.name: sequence for sequence in score.dataset.sequences}
    sections = []
    for sequence in sequences:
        pictures = Pictures(score.dataset, sources[sequence.name], results / score.dataset.mask_folder(sequence.name))
        sections.append(_section(sequence, pictures, headline))
    return sections


def _section(sequence: SequenceScore | PartsScore, pictures: Pictures, headline: str) -> str:
    names, values = list(sequence.frames), [100 * value for value in sequence.frames.values()]
    shown = worst_frames(values, _PICTURES)
    figures = [
        f"<figure>{pictures.element(names[i])}"
        f"<figcaption><b>{rank}</b> frame {escape(names[i])} · {escape(headline)} {values[i]:.1f}</figcaption></figure>"
        for rank, i in enumerate(shown, start=1)
    ]
    plot = svg.line(values, names, shown, f"{headline} of {sequence.name} over its frames, in percent")
    score = text_of(100 * (sequence.figures[headline] or 0))
    return (
        f'<section class="sequence"><h3>{escape(sequence.name)} '
        f"<small>{escape(headline)} {score} · {len(names)} frames</small></h3>"
        f'<div class="strip">{"".join(figures)}</div>{plot}</section>'
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.head)
    rows = []
    for position, row in enumerate(table.rows):
        kind = ' class="mean"' if table.mean and position == len(table.rows) - 1 else ""
        rows.append(f"<tr{kind}>{''.join(f'<td>{escape(text_of(cell))}</td>' for cell in row)}</tr>")
    return (
        f"<details open><summary>{escape(table.title)}</summary>"
        f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div></details>'
    )
