"""What ``vos-eval`` prints and writes, around the work of ``vosrt.evaluation``."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from vosrt.cli.app import EXIT_INTERRUPTED
from vosrt.cli.report import Progress, Steps
from vosrt.errors import InputError, OptionError, OutputError
from vosrt.evaluation.comparing import compare, comparison_tables, read_scores
from vosrt.evaluation.html import html_report
from vosrt.evaluation.layouts import AnnotatedSequence, Dataset
from vosrt.evaluation.record import RECORD, read_record
from vosrt.evaluation.running import RunReport, RunRequest, run_dataset
from vosrt.evaluation.scoring import score_dataset
from vosrt.evaluation.tables import object_table, sequence_table, to_document
from vosrt.video.base import SegmentedFrame
from vosrt.video.images import list_images
from vosrt.video.sinks import part_of, write_json, writing

SCORES, SEQUENCES, OBJECTS, REPORT = "scores.json", "scores-sequences.csv", "scores-objects.csv", "report.html"


def segment_dataset(request: RunRequest, *, quiet: bool, as_json: bool) -> int:
    """Run one request and say how it went.

    Returns:
        0; 1 where a sequence failed; 130 where Ctrl-C ended it.

    Raises:
        VosrtError: before the first mask, or nothing could be segmented.
    """
    console = Console(quiet=quiet or as_json, highlight=False)
    progress: list[Progress] = []

    def start(report: RunReport, todo: list[AnnotatedSequence]) -> None:
        for note in request.dataset.notes:
            console.print(f"[dim]{escape(note)}")
        weights = " (random weights: expect rough masks)" if report.settings["weights"] == "untrained" else ""
        console.print(
            f"{_count(len(todo))} to do, {len(report.kept)} complete; {escape(report.settings['bundle'])}, "
            f"{report.settings['weights']}{weights}, {report.settings['engine']}"
        )
        frames = sum(len(list_images(sequence.frames)) for sequence in todo)
        progress.append(Progress(frames, shown=not (quiet or as_json)))
        progress[0].__enter__()

    def advance(frame: SegmentedFrame) -> None:
        progress[0].advance(frame)

    def tell(name: str, figures: dict[str, Any]) -> None:
        console.print(f"{escape(name)}: {figures['frames']} frames, {figures['fps']:.1f} FPS")

    try:
        report = run_dataset(request, on_start=start, on_frame=advance, on_sequence=tell)
    finally:
        if progress:
            progress[0].__exit__(None, None, None)
    if as_json:
        document = {
            "out": str(request.out),
            "settings": report.settings,
            "done": report.done,
            "kept": report.kept,
            "failed": {name: str(error) for name, error in report.failed.items()},
            "interrupted": report.interrupted,
        }
        print(json.dumps(document, ensure_ascii=False))
    complete = len(report.done) + len(report.kept)
    total = len(request.dataset.sequences)
    if report.interrupted:
        print(
            f"interrupted: {complete} of {total} sequences are complete in {request.out}; "
            "the same command goes on from there",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    for name, error in report.failed.items():
        print(f"error: {name}: {error}", file=sys.stderr)
    if report.failed:
        return 1
    console.print(f"{_count(total)} in {escape(str(request.out))} ({RECORD} says how they were made)")
    return 0


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """What to score; see ``vos-eval score --help``."""

    results: Path
    dataset: Dataset
    out: Path
    partial: bool = False
    jobs: int = 0
    html: bool = True
    quiet: bool = False
    json: bool = False


def score_results(request: ScoreRequest) -> int:
    """Score a folder, print the tables and write them.

    Returns:
        0.

    Raises:
        VosrtError: masks are missing or unfit; nothing was written.
        OutputError: the tables cannot be written.
    """
    if request.jobs < 0:
        raise OptionError(f"--jobs is {request.jobs}; expected 0 (one per core) or more")
    _check_writable(request.out)
    record = read_record(request.results) if (request.results / RECORD).is_file() else None
    if record is not None and record.settings.get("dataset") != request.dataset.kind:
        raise InputError(
            f"{request.results}: holds masks of {record.settings.get('dataset')}, and --dataset is "
            f"{request.dataset.kind}; give the data set that they were made on"
        )
    settings = None if record is None else record.settings
    with Steps(len(request.dataset.sequences), shown=not (request.quiet or request.json)) as steps:
        score = score_dataset(
            request.dataset, request.results, partial=request.partial, jobs=request.jobs, on_sequence=steps.advance
        )
    document = to_document(score, settings)
    tables = {SEQUENCES: sequence_table(score), OBJECTS: object_table(score)}
    request.out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        _write_text(request.out / name, table.to_csv())
    write_json(request.out / SCORES, document)
    if request.html:
        _write_text(request.out / REPORT, html_report(score, request.results, settings))
    if request.json:
        print(json.dumps(document, ensure_ascii=False))
        return 0
    if score.missing:
        print(f"warning: {_count(len(score.missing))} without masks, which do not count", file=sys.stderr)
    if not request.quiet:
        console = Console()
        several = any(len(getattr(sequence, "objects", ())) > 1 for sequence in score.sequences)
        for table in tables.values() if several or request.dataset.parts else [tables[SEQUENCES]]:
            console.print(table.to_rich())
            console.print()
        names = ", ".join([*tables, SCORES, *([REPORT] if request.html else [])])
        console.print(f"in {escape(str(request.out))}: {names}", highlight=False, soft_wrap=True)
    return 0


def compare_results(runs: list[Path], *, as_json: bool) -> int:
    """Print runs side by side.

    Returns:
        0.

    Raises:
        InputError: fewer than two runs, one without scores, or scores of different data sets.
    """
    comparison = compare([read_scores(path if path.is_file() else path / SCORES) for path in runs])
    if as_json:
        print(json.dumps(comparison.to_document(), ensure_ascii=False))
        return 0
    console = Console()
    for table in comparison_tables(comparison):
        console.print(table.to_rich())
        console.print()
    for line in comparison.words():
        console.print(line, highlight=False)
    return 0


def _count(sequences: int) -> str:
    return f"{sequences} sequence{'s' * (sequences != 1)}"


def _check_writable(folder: Path) -> None:
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: cannot be written; choose another folder for the tables with -o")


def _write_text(path: Path, text: str) -> None:
    with writing(path):
        part_of(path).write_text(text, "utf-8")
        os.replace(part_of(path), path)
