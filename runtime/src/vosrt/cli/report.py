"""What a run shows: the progress bar on stderr, the summary on stdout."""

from __future__ import annotations

import json
import sys
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table

from vosrt.video.base import SegmentedFrame

_PIPELINE_STAGES = ("decode", "encode", "track", "write")


class Progress:
    """A progress bar with frames per second and remaining time; nothing where stderr is not a terminal.

    Args:
        total: expected frames, None where unknown.
        shown: False keeps quiet.
    """

    def __init__(self, total: int | None, *, shown: bool) -> None:
        console = Console(stderr=True)
        self._bar = RichProgress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[cyan]{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._bar.add_task("loading", total=total, rate="")

    def __enter__(self) -> Progress:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self._bar.stop()

    def advance(self, result: SegmentedFrame) -> None:
        """Count one result."""
        self.step()

    def step(self) -> None:
        """Count one frame."""
        speed = self._bar.tasks[self._task].speed
        rate = f"{speed:.1f} FPS" if speed else ""
        self._bar.update(self._task, advance=1, description="segmenting", rate=rate)


class Steps:
    """A progress bar of named steps; nothing where stderr is not a terminal.

    Args:
        total: how many.
        shown: False keeps quiet.
    """

    def __init__(self, total: int, *, shown: bool) -> None:
        console = Console(stderr=True)
        self._bar = RichProgress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Steps:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self._bar.stop()

    def advance(self, name: str) -> None:
        """Count one step."""
        self._bar.update(self._task, advance=1, description=escape(name))


def print_summary(summary: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    """Print the summary of a run: one JSON object, a table, or nothing; warnings go to stderr."""
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))
        return
    for warning in summary["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    if quiet or not summary["frames"]:
        return
    console = Console()
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(summary):
        table.add_row(name, escape(value))
    console.print(table)


def _rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    of = f" of {summary['frame_count']}" if summary["frame_count"] and not summary["complete"] else ""
    dropped = f", {summary['dropped']} dropped to keep up" if summary["dropped"] else ""
    ids = summary["object_ids"]
    objects = ", ".join(map(str, ids)) if len(ids) <= 12 else f"{ids[0]} … {ids[-1]}"
    rows = [
        ("frames", f"{summary['frames']}{of} at {summary['width']}×{summary['height']}{dropped}"),
        ("objects", f"{len(ids)} (id {objects})"),
        ("speed", f"{summary['fps']:.2f} FPS, {summary['wall_s']:.1f} s in all"),
    ]
    stages = summary["stages_ms"]
    rows.extend(
        (name, f"{stages[name]['p50']:.1f} ms p50, {stages[name]['p95']:.1f} ms p95")
        for name in _PIPELINE_STAGES
        if name in stages
    )
    if summary["peak_memory_mb"] is not None:
        rows.append(("peak memory", f"{summary['peak_memory_mb']:.0f} MB"))
    rows.extend(describe_rows(summary["model"]))
    rows.append(("results", f"{summary['out']}  ({', '.join(summary['files'])})"))
    return rows


def describe_rows(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Turn ``Model.describe()`` into rows of a table."""
    untrained = " (random weights: expect rough masks)" if model["weights"] == "untrained" else ""
    rows = [("model", f"{model['bundle']}, {model['weights']}{untrained}")]
    rows.extend(
        ("engine", f"{engine['name']} {engine['precision']}: {engine['reason']}")
        for engine in model["engines"].values()
    )
    return [*rows, ("core", model["core"])]
