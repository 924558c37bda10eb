"""Plots of measured rows, as SVG. Needs matplotlib, which the extra ``bench`` brings."""

from __future__ import annotations

import hashlib
import importlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vosrt._files import write_file
from vosrt.errors import MissingExtraError

_SERIES = ("engine", "precision", "isa", "context", "objects", "size")
PLOTS = ("fps.svg", "objects.svg", "roofline.svg")
_WIDTH, _HEIGHT = 6.4, 4.0  # inches
_STYLE = {"svg.hashsalt": "vosrt", "svg.fonttype": "none", "axes.grid": True, "grid.alpha": 0.3}


def require_matplotlib() -> None:
    """Refuse to go on without matplotlib.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise MissingExtraError("matplotlib, which draws the plots,", "bench") from None


def write_plots(
    folder: Path,
    header: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    write: Callable[[Path, bytes], None] = write_file,
) -> list[Path]:
    """Write the plots that the rows have data for.

    ``fps.svg`` (frames per second over resolution) and ``objects.svg`` (milliseconds over objects) need two values
    on their axis; ``roofline.svg`` needs the machine's rates in the header.

    Args:
        header: as of `write_rows`.

    Returns:
        What was written.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    drawings: dict[str, Callable[[Any], None]] = {}
    digest = digest_of(header, rows)
    if len({row["size"] for row in rows}) > 1:
        drawings["fps.svg"] = lambda axes: _draw_fps(axes, rows)
    if len({row["objects"] for row in rows}) > 1:
        drawings["objects.svg"] = lambda axes: _draw_objects(axes, rows)
    if header.get("rates") and rows:
        drawings["roofline.svg"] = lambda axes: _draw_roofline(axes, header["rates"], rows)
    for name, draw in drawings.items():
        write(folder / name, _drawn(digest, draw))
    return [folder / name for name in drawings]


def digest_of(header: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """Names the data of a plot; written into it as its description."""
    return "data " + hashlib.sha256(repr((header, list(rows))).encode()).hexdigest()[:16]


def _drawn(digest: str, draw: Callable[[Any], None]) -> bytes:
    """A plot as SVG."""
    matplotlib: Any = importlib.import_module("matplotlib")
    figures: Any = importlib.import_module("matplotlib.figure")
    with matplotlib.rc_context(_STYLE):
        figure = figures.Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        draw(figure.add_subplot())
        data = io.BytesIO()
        figure.savefig(data, format="svg", metadata={"Date": None, "Description": digest})
    return data.getvalue()


def _series(rows: Sequence[dict[str, Any]], over: str) -> dict[str, list[dict[str, Any]]]:
    """Rows by all but the axis ``over``; the label names only what varies."""
    names = [name for name in _SERIES if name != over]
    varying = [name for name in names if len({row[name] for row in rows}) > 1]
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: int(row[over])):
        said = (f"{name} {row[name]}" if isinstance(row[name], int) else str(row[name]) for name in varying)
        lines.setdefault(", ".join(said), []).append(row)
    return lines


def _draw_fps(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    for label, line in _series(rows, "size").items():
        axes.plot([row["size"] for row in line], [row["fps"] for row in line], marker="o", label=label)
    axes.set_xticks(sorted({row["size"] for row in rows}))
    _finish(axes, "short side of the working frame, pixels", "frames per second (stage after stage)")


def _draw_objects(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    for label, line in _series(rows, "objects").items():
        times = [row["stages_ms"]["frame"]["p50"] for row in line]
        axes.plot([row["objects"] for row in line], times, marker="o", label=label)
    axes.set_xticks(sorted({row["objects"] for row in rows}))
    _finish(axes, "objects", "milliseconds per frame (median)")


def _draw_roofline(axes: Any, rates: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    points = [(row, row["match_gflop"] / row["match_gb"]) for row in rows]
    low = min(intensity for _, intensity in points) / 4
    high = max(intensity for _, intensity in points) * 2
    for precision, dashes in (("fp32", "-"), ("bf16", "--")):
        roof = rates[f"gemm_{precision}_gflop_s"]
        if roof is not None:
            ridge = roof / rates["copy_gb_s"]
            x = sorted({min(low, ridge / 4), ridge, max(high, ridge)})
            y = [min(roof, intensity * rates["copy_gb_s"]) for intensity in x]
            axes.plot(x, y, dashes, color="0.3", label=f"copy, then GEMM in {precision}: {roof:.0f} GFLOP/s")
    for label, line in _series(rows, "size").items():
        x = [row["match_gflop"] / row["match_gb"] for row in line]
        y = [1e3 * row["match_gflop"] / row["stages_ms"]["match"]["p50"] for row in line]
        axes.plot(x, y, "o", label=f"match {label}".strip())
    axes.set_xscale("log")
    axes.set_yscale("log")
    _finish(axes, "FLOP per byte that must be moved", "GFLOP/s", from_zero=False)


def _finish(axes: Any, x: str, y: str, *, from_zero: bool = True) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if from_zero:
        axes.set_ylim(bottom=0)
    if any(text for text in axes.get_legend_handles_labels()[1]):
        axes.legend(fontsize="small")
