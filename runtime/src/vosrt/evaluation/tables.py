"""Scores as tables: for the terminal, CSV, and one JSON document."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vosrt.console import Column, RichTable, table
from vosrt.evaluation.human_parts import PARTS, PartsScore, total_of
from vosrt.evaluation.scoring import DatasetScore, SequenceScore

SCHEMA = 1

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows of names and figures; figures are percent; None stands for a missing one.

    Attributes:
        rows: cells in the order of the columns.
        mean: the last row sums up the others.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    mean: bool = False

    def to_rich(self) -> RichTable:
        """Return a table for the terminal."""
        columns = []
        for position, name in enumerate(self.head):
            # Heads may break between words and figures nowhere.
            words = [*name.split(), *(text_of(row[position]) for row in self.rows)]
            widest = max(map(len, words), default=0)
            columns.append(Column(name, justify="left" if position == 0 else "right", min_width=widest))
        rows = [list(map(text_of, row)) for row in self.rows]
        return table(columns, rows, title=self.title, bold_end=self.mean)

    def to_csv(self) -> str:
        """Return comma-separated values with a head, three decimals."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.head)
        writer.writerows([f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row] for row in self.rows)
        return out.getvalue()


def text_of(cell: Cell) -> str:
    """A cell for people: one decimal, a dash for nothing."""
    if cell is None:
        return "–"
    return f"{cell:.1f}" if isinstance(cell, float) else str(cell)


def sequence_table(score: DatasetScore) -> Table:
    """A row per sequence, and the figures of the data set."""
    names = list(score.figures)
    rows: list[list[Cell]] = [[s.name, len(s.frames), *percent(s.figures, names)] for s in score.sequences]
    total = sum(len(sequence.frames) for sequence in score.sequences)
    over = "all frames" if score.dataset.parts else "all objects"
    rows.append([over, total, *percent(score.figures, names)])
    return Table("Sequences", ["sequence", "frames", *names], rows, mean=True)


def object_table(score: DatasetScore) -> Table:
    """A row per object, or per part in VIP."""
    if score.dataset.parts:
        total = total_of([sequence for sequence in score.sequences if isinstance(sequence, PartsScore)])
        rows: list[list[Cell]] = [[part, _percent(total.iou[part])] for part in PARTS]
        return Table("Parts", ["part", "IoU"], rows)
    names = list(score.figures)
    rows = [
        [sequence.name, scored.object_id, len(scored.frames), *percent(scored.figures, names)]
        for sequence in score.sequences
        if isinstance(sequence, SequenceScore)
        for scored in sequence.objects
    ]
    return Table("Objects", ["sequence", "object", "frames", *names], rows)


def to_document(score: DatasetScore, settings: dict[str, Any] | None) -> dict[str, Any]:
    """Everything as plain values, scores 0 to 1; ``compare`` reads it.

    Args:
        settings: what the masks were made with, None where that is not known.
    """
    sequences: dict[str, dict[str, Any]] = {}
    for sequence in score.sequences:
        entry: dict[str, Any] = {"figures": sequence.figures, "frames": sequence.frames}
        if isinstance(sequence, SequenceScore):
            entry["objects"] = {
                str(item.object_id): {"figures": item.figures, "frames": item.frames, "j": item.j, "f": item.f}
                for item in sequence.objects
            }
        else:
            entry["iou"] = sequence.iou
        sequences[sequence.name] = entry
    return {
        "schema": SCHEMA,
        "dataset": score.dataset.kind,
        "settings": settings,
        "figures": score.figures,
        "sequences": sequences,
        "missing": score.missing,
    }


def percent(figures: dict[str, float | None], names: Sequence[str]) -> list[Cell]:
    """Figures by name, in percent."""
    return [_percent(figures[name]) for name in names]


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
