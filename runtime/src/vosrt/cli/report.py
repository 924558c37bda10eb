"""Display of a run: the progress bar on stderr, the summary on stdout."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Self

from vosrt.console import Column, progress_bar, say_json, show, table, warn
from vosrt.video.base import SegmentedFrame

CELL = 8  # pixels of the working frame
_ABSENCES_SHOWN = 6
_PIPELINE_STAGES = ("decode", "encode", "track", "write", "latency")


class Steps:
    """A progress bar of named steps; nothing where stderr is not a terminal.

    Args:
        total: expected steps, None where unknown.
        visible: False shows nothing.
        first: name of what comes before the first step.
    """

    def __init__(self, total: int | None, *, visible: bool, first: str = "") -> None:
        self._bar = progress_bar(visible=visible)
        self._task = self._bar.add_task(first, total=total, figures="")

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Take the bar away."""
        self._bar.stop()

    def advance(self, name: str, figures: str = "") -> None:
        """Count one step."""
        self._bar.update(self._task, advance=1, description=name, figures=figures)


class FrameProgress(Steps):
    """A progress bar of frames, with frames per second and remaining time."""

    def __init__(self, total: int | None, *, visible: bool) -> None:
        super().__init__(total, visible=visible, first="loading")

    def step(self, result: SegmentedFrame | None = None) -> None:
        """Count one frame."""
        speed = self._bar.tasks[self._task].speed
        self.advance("segmenting", f"{speed:.1f} FPS" if speed else "")


def print_summary(summary: dict[str, Any], *, as_json: bool, quiet: bool, told: Collection[str] = ()) -> None:
    """Print the summary of a run: one JSON object, a table, or nothing; warnings not in ``told`` go to stderr."""
    if as_json:
        say_json(summary)
        return
    for warning in summary["warnings"]:
        if warning not in told:
            warn(warning)
    if quiet or not summary["frames"]:
        return
    columns = [Column(style="bold", no_wrap=True), Column(overflow="fold")]
    show(table(columns, _rows(summary), head=False, gap=2))


def _rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    of = f" of {summary['frame_count']}" if summary["frame_count"] and not summary["complete"] else ""
    dropped = f", {summary['dropped']} dropped to keep up" if summary["dropped"] else ""
    ids = summary["object_ids"]
    objects = ", ".join(map(str, ids)) if len(ids) <= 12 else f"{ids[0]} … {ids[-1]}"
    rows = [
        ("frames", f"{summary['frames']}{of} at {summary['width']}×{summary['height']}{_worked_at(summary)}{dropped}"),
        ("objects", f"{len(ids)} (id {objects})"),
        *(("" if place else "away", line) for place, line in enumerate(_away(summary["absences"]))),
        ("speed", f"{summary['fps']:.2f} FPS, {summary['wall_s']:.1f} s in all"),
        *([("budget", summary["budget"]["text"])] if "budget" in summary else []),
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


def _away(absences: list[dict[str, Any]]) -> list[str]:
    """When objects left and came back, a line each."""
    lines = []
    for absence in absences[:_ABSENCES_SHOWN]:
        left = f"object {absence['object_id']} left at frame {absence['left_frame']} ({absence['left_s']:.2f} s)"
        back = f", came back at frame {absence['back_frame']}" if absence["back_frame"] is not None else ", for good"
        seconds = f" ({absence['back_s']:.2f} s)" if absence["back_s"] is not None else ""
        lines.append(f"{left}{back}{seconds}")
    if len(absences) > _ABSENCES_SHOWN:
        lines.append(f"{len(absences) - _ABSENCES_SHOWN} more absences are in summary.json")
    return lines


def _worked_at(summary: dict[str, Any]) -> str:
    width, height = summary["working_width"], summary["working_height"]
    rounded = abs(min(width, height) - min(summary["width"], summary["height"])) < CELL  # to whole cells
    return "" if rounded else f", segmented at {width}×{height}"


def describe_rows(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Turn ``Model.describe()`` into rows of a table."""
    untrained = " (random weights: expect rough masks)" if model["weights"] == "untrained" else ""
    rows = [("model", f"{model['bundle']}, {model['weights']}{untrained}")]
    rows.extend(
        ("engine", f"{engine['name']} {engine['precision']}: {engine['reason']}")
        for engine in model["engines"].values()
    )
    return [*rows, ("core", model["core"])]
