"""Small plots as SVG text, coloured by the CSS variables of the page that they stand in."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_NAME, _BAR, _ROW = 150, 360, 24  # pixels: names, longest bar, height of a row


def bars(rows: Sequence[tuple[str, Sequence[float]]], labels: Sequence[str], title: str) -> str:
    """Horizontal bars from 0 to 100, one group a row; the last of two labels is a tick on the bar.

    Args:
        rows: name, and a value in percent per label.
        labels: what the values are: one, or two that share a row.
        title: for those who hear the page.
    """
    row = _ROW * len(labels) + (8 if len(labels) > 1 else 0)
    height = row * len(rows) + 26
    width = _NAME + _BAR + 50
    parts = [
        f'<svg class="bars" viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{escape(title)}">'
    ]
    for percent in (0, 25, 50, 75, 100):
        x = _NAME + _BAR * percent / 100
        parts.append(f'<line class="grid" x1="{x}" y1="0" x2="{x}" y2="{height - 20}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{height - 6}" text-anchor="middle">{percent}</text>')
    for i, (name, values) in enumerate(rows):
        top = i * row + 4
        middle = top + _ROW * len(labels) / 2 + 1
        parts.append(f'<text class="name" x="{_NAME - 10}" y="{middle + 1}" text-anchor="end">{escape(name)}</text>')
        for k, value in enumerate(values):
            y = top + k * _ROW
            length = max(1.0, _BAR * min(max(value, 0), 100) / 100)
            parts.append(f'<rect class="s{k}" x="{_NAME}" y="{y}" width="{length:.1f}" height="{_ROW - 6}" rx="3"/>')
            parts.append(f'<text class="value" x="{_NAME + length + 6:.1f}" y="{y + 13}">{value:.1f}</text>')
    parts.append("</svg>")
    return "".join(parts)


def line(values: Sequence[float], names: Sequence[str], marked: Sequence[int], title: str) -> str:
    """A curve over the frames from 0 to 100, with a number where a frame is shown beside it.

    Args:
        values: in percent per frame.
        marked: positions of the frames that are shown, the first one's number being 1.
        title: for those who hear the page.
    """
    width, height, left, top, bottom = 1160, 150, 34, 20, 22
    inner_w, inner_h = width - left - 8, height - top - bottom
    last = len(names) - 1

    def x(i: int) -> float:
        return left + inner_w * i / max(last, 1)

    def y(value: float) -> float:
        return top + inner_h * (1 - min(max(value, 0), 100) / 100)

    parts = [f'<svg class="line" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    for percent in (0, 50, 100):
        parts.append(f'<line class="grid" x1="{left}" y1="{y(percent)}" x2="{width - 8}" y2="{y(percent)}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{y(percent) + 4}" text-anchor="end">{percent}</text>')
    for i in sorted({0, last // 2, last}):
        anchor = "start" if i == 0 else "end" if i == last else "middle"
        parts.append(f'<text class="tick" x="{x(i)}" y="{height - 6}" text-anchor="{anchor}">{escape(names[i])}</text>')
    for rank, i in enumerate(marked, start=1):
        parts.append(f'<line class="mark" x1="{x(i):.1f}" y1="{top}" x2="{x(i):.1f}" y2="{top + inner_h}"/>')
        parts.append(f'<text class="rank" x="{x(i):.1f}" y="{top - 6}" text-anchor="middle">{rank}</text>')
    points = " ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in enumerate(values))
    parts.append(f'<polyline points="{points}"/></svg>')
    return "".join(parts)
