"""Report of a batch: a table on the terminal, ``report.csv`` and ``report.html`` with a picture per clip."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vosrt._results import Results
from vosrt.cli.clip_worker import Outcome
from vosrt.console import Cell, Column, say_json, show, styled, table
from vosrt.text import counted

CSV, HTML = "report.csv", "report.html"
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>vosrt: {title}</title><style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }}
body {{ margin: 2rem auto; max-width: 70rem; padding: 0 1rem }}
article {{ border-top: 1px solid #8886; padding: 1rem 0 }}
h2 {{ font-size: 1rem; margin: 0 }} p {{ margin: .2rem 0; overflow-wrap: anywhere }}
img {{ display: block; height: 120px; max-width: 100%; object-fit: contain; object-position: left }}
.failed h2 {{ color: #c33 }}
</style></head><body><h1>{title}</h1><p><a href="report.csv">report.csv</a></p>
{clips}
</body></html>
"""


@dataclass
class Row:
    """One clip in the report.

    Attributes:
        folder: of its results, below that of the batch.
        state: ``"waiting"``, ``"done"`` or ``"failed"``.
        attempts: how often it was begun in this run.
        objects: how many are followed.
        seconds: of the run that wrote the results.
    """

    name: str
    source: str
    folder: str
    state: str = "waiting"
    attempts: int = 0
    frames: int = 0
    objects: int = 0
    fps: float = 0.0
    seconds: float = 0.0
    warnings: int = 0
    error: str = ""

    def take(self, outcome: Outcome, attempt: int) -> None:
        """Take over what became of the clip."""
        self.state, self.attempts, self.error = "failed" if outcome.code else "done", attempt, outcome.error
        if summary := outcome.summary:
            self.frames, self.objects = summary["frames"], len(summary["object_ids"])
            self.fps, self.seconds, self.warnings = summary["fps"], summary["wall_s"], len(summary["warnings"])

    @property
    def picture_name(self) -> str:
        """Name of the picture."""
        return f"pictures/{self.name}.jpg"

    @property
    def said(self) -> str:
        """The results in few words."""
        if self.state != "done":
            return self.error or "not done"
        warned = f", {counted(self.warnings, 'warning')}" if self.warnings else ""
        return f"{counted(self.frames, 'frame')}, {counted(self.objects, 'object')}, {self.fps:.1f} FPS{warned}"


def write_report(results: Results, rows: list[Row]) -> None:
    """Write both files.

    Raises:
        WorkError: the system refused.
    """
    text = io.StringIO(newline="")
    lines = csv.DictWriter(text, [*asdict(rows[0])], lineterminator="\n")
    lines.writeheader()
    lines.writerows(asdict(row) for row in rows)
    results.write(CSV, text.getvalue().encode())
    results.write(HTML, _PAGE.format(title=_title(rows), clips="\n".join(map(_article, rows))).encode())


def _title(rows: list[Row]) -> str:
    count = {state: sum(row.state == state for row in rows) for state in ("done", "failed", "waiting")}
    return ", ".join(f"{number} clip{'s' * (number != 1)} {state}" for state, number in count.items() if number)


def _article(row: Row) -> str:
    folder = quote(row.folder)
    picture = f'<img src="{quote(row.picture_name)}" loading="lazy" alt="">' if row.state == "done" else ""
    linked = f'<a href="{folder}/">{escape(row.name)}</a>' if row.state == "done" else escape(row.name)
    return (
        f'<article class="{row.state}"><h2>{linked}</h2>{picture}<p>{escape(row.said)}</p>'
        f"<p><small>{escape(row.source)}</small></p></article>"
    )


def print_rows(out: Path, rows: list[Row], *, as_json: bool, quiet: bool) -> None:
    """Print the report: one JSON object, a table of failures and totals, or nothing."""
    if as_json:
        document: dict[str, Any] = {"schema": 1, "out": str(out), "files": [CSV, HTML]}
        say_json(document | {"clips": [asdict(row) for row in rows]})
        return
    if quiet:
        return
    failed: list[list[Cell]] = [[styled(row.name, "red"), row.error] for row in rows if row.state == "failed"]
    frames = sum(row.frames for row in rows)
    lines: list[list[Cell]] = [
        ["clips", f"{_title(rows)}; {counted(frames, 'frame')}"],
        *failed,
        ["report", f"{out / HTML}, {out / CSV}"],
    ]
    columns = [Column(style="bold", no_wrap=True), Column(overflow="fold")]
    show(table(columns, lines, head=False, gap=2))
