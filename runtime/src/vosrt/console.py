"""The one place that prints.

Text comes from file names, JSON files and bundles of strangers: it is shown as it is. Markup of rich is never read,
what steers a terminal is escaped, and names that are not UTF-8 show their bytes. Colours are given as styles, apart
from the text.

A reader of standard output that goes away (``| head``) ends the printing and not the work.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

from vosrt.text import one_line, printable, to_json

__all__ = [
    "Cell",
    "Column",
    "Progress",
    "RichTable",
    "complain",
    "is_terminal",
    "note",
    "progress_bar",
    "say",
    "say_json",
    "show",
    "status",
    "styled",
    "table",
    "warn",
]

Cell = str | Text

_failures: list[OSError] = []  # why standard output could not be written; the first is reported at the end


def say(text: str = "") -> None:
    """Print lines on standard output."""
    _write(printable(text) + "\n")


def say_json(document: Any) -> None:
    """Print a document as one line of JSON on standard output."""
    _write(to_json(document) + "\n")


def note(text: str) -> None:
    """Print lines on standard error: what happens, beside the results."""
    if sys.stderr is not None:
        with _giving_up(sys.stderr):
            print(printable(text), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning as one line on standard error."""
    note(f"warning: {one_line(text)}")


def complain(text: str) -> None:
    """Print an error as one line on standard error."""
    note(f"error: {one_line(text)}")


def show(*parts: RichTable | Cell) -> None:
    """Print tables and lines on standard output, as wide as the terminal."""
    console, text = _console(), io.StringIO()
    console.file = text  # Console.capture would write to a standard output that is full
    for part in parts:
        # A terminal wraps a table that is too wide for it. Rich would cut off its last figures.
        console.print(styled(part) if isinstance(part, str) else part, crop=False)
    _write("".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines()))  # cells are padded


def table(
    columns: Sequence[Column | str],
    rows: Iterable[Sequence[Cell]],
    *,
    title: str | None = None,
    head: bool = True,
    gap: int = 1,
    bold_end: bool = False,
) -> RichTable:
    """Return a table without lines between its cells.

    Args:
        columns: their heads; a `Column` also says how to align and break them.
        rows: cells; `styled` gives one a colour.
        head: False leaves out the heads.
        bold_end: the last row is a summary.
    """
    heads = [Column(styled(each)) if isinstance(each, str) else each for each in columns]
    for each in heads:
        each.header = styled(each.header) if isinstance(each.header, str) else each.header
    shown = RichTable(
        *heads,
        title=None if title is None else styled(title),
        title_justify="left",
        show_header=head,
        box=None,
        pad_edge=False,
        padding=(0, gap, 0, 0),
    )
    body = [[styled(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    for place, cells in enumerate(body, start=1):
        shown.add_row(*cells, style="bold" if bold_end and place == len(body) else None)
    return shown


def styled(text: str, style: str = "") -> Text:
    """Return `text` in a colour, e.g. ``"red"``; markup in it is not read."""
    return Text(printable(text), style=style)


class _TimeLeft(ProgressColumn):
    """The time left, which runs on between two steps however long they are."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """Return the remaining time as ``1:02:03``, from the mean time of the recent steps."""
        if not task.completed or task.total is None or not task.speed:
            return Text("-:--:--", style="progress.remaining")
        since = task.get_time() - max((sample.timestamp for sample in task._progress), default=task.get_time())
        left = (task.total - task.completed) / task.speed - since
        return Text(str(timedelta(seconds=max(0, round(left)))), style="progress.remaining")


def progress_bar(*, visible: bool = True) -> Progress:
    """Return a bar on standard error; it stays hidden where that is no terminal.

    Its tasks have a field ``figures``, which is printed behind the bar.
    """
    console = _console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}", style="cyan", markup=False),
        TimeElapsedColumn(),
        TextColumn("ETA", markup=False),
        _TimeLeft(),
        console=console,
        transient=True,
        disable=not (visible and console.is_terminal),
    )


@contextmanager
def status(text: str, *, visible: bool = True) -> Iterator[Callable[[str], None]]:
    """Show the present stage and its seconds on standard error if that is a terminal.

    Args:
        visible: False shows nothing.

    Yields:
        A function that replaces the text.
    """
    console = _console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not (visible and console.is_terminal)) as bar:
        task = bar.add_task(printable(text), total=None)
        yield lambda update: bar.update(task, description=printable(update))


def is_terminal() -> bool:
    """Return whether a person watches standard error."""
    return _console(stderr=True).is_terminal


def prepare() -> None:
    """Make the standard streams fit for any text, and the three lowest descriptors open.

    A command that is started with a closed standard output would otherwise print into the first file
    that it opens.
    """
    _failures.clear()
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def finish(code: int) -> int:
    """Return the exit code of a command, 1 instead of 0 where standard output could not be written."""
    _write("")
    if sys.stderr is not None:
        with _giving_up(sys.stderr):
            sys.stderr.flush()  # of what a library or a progress bar printed
    if _failures:
        complain(f"standard output cannot be written ({_failures[0].strerror}); the files of results are not affected")
        return code or 1
    return code


def _write(text: str) -> None:
    stream: TextIO | None = sys.stdout
    if stream is None:  # closed before the command began
        return
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            _failures.append(error)
        _give_up(stream)


@contextmanager
def _giving_up(stream: TextIO) -> Iterator[None]:
    """Go on without a stream that is full or closed."""
    try:
        yield
    except (OSError, ValueError):
        _give_up(stream)


def _give_up(stream: TextIO) -> None:
    """Have the rest of a stream's buffer go nowhere: it must not fail again when Python ends (exit code 120)."""
    with suppress(OSError, ValueError):
        handle = os.open(os.devnull, os.O_WRONLY)
        os.dup2(handle, stream.fileno())
        os.close(handle)


def _console(*, stderr: bool = False) -> Console:
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)
