"""Output of ``vos-eval``, around the work of ``vosrt.evaluation``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vosrt._files import check_writable, locked
from vosrt._listing import read_listing
from vosrt._results import check_replaceable, files_beside
from vosrt.cli.app import EXIT_INTERRUPTED
from vosrt.cli.report import FrameProgress, Steps
from vosrt.console import complain, note, say, say_json, show, warn
from vosrt.errors import InputError, OptionError, OutputError
from vosrt.evaluation.comparing import compare, comparison_tables, read_scores
from vosrt.evaluation.html import html_report
from vosrt.evaluation.layouts import AnnotatedSequence, Dataset, open_dataset
from vosrt.evaluation.record import RECORD, read_record
from vosrt.evaluation.running import RunReport, RunRequest, run_dataset
from vosrt.evaluation.scoring import score_dataset
from vosrt.evaluation.tables import object_table, sequence_table, to_document
from vosrt.video.base import SegmentedFrame
from vosrt.video.images import list_images

SCORES, SEQUENCES, OBJECTS, REPORT = "scores.json", "scores-sequences.csv", "scores-objects.csv", "report.html"
_BEGINNINGS = {
    SCORES: b'{\n  "schema": 1,',
    SEQUENCES: b"sequence,frames,",
    OBJECTS: b"sequence,object,frames,",
    REPORT: b"<!doctype html>",
}


def segment_dataset(request: RunRequest, *, quiet: bool, as_json: bool) -> int:
    """Run one request and say how it went.

    Returns:
        0; 1 where a sequence failed; 130 where Ctrl-C ended it.

    Raises:
        VosrtError: before the first mask, or nothing could be segmented.
    """
    speak: Callable[[str], None] = (lambda _: None) if quiet or as_json else say
    progress: list[FrameProgress] = []

    def start(report: RunReport, todo: list[AnnotatedSequence]) -> None:
        for remark in request.dataset.notes:
            speak(remark)
        weights = " (random weights: expect rough masks)" if report.settings["weights"] == "untrained" else ""
        speak(
            f"{_count(len(todo))} to do, {len(report.kept)} complete; {report.settings['bundle']}, "
            f"{report.settings['weights']}{weights}, {report.settings['engine']}"
        )
        frames = sum(len(list_images(sequence.frames)) for sequence in todo)
        progress.append(FrameProgress(frames, visible=not (quiet or as_json)))
        progress[0].__enter__()

    def advance(frame: SegmentedFrame) -> None:
        progress[0].step(frame)

    def tell(name: str, figures: dict[str, Any]) -> None:
        speak(f"{name}: {figures['frames']} frames, {figures['fps']:.1f} FPS")

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
        say_json(document)
    complete = len(report.done) + len(report.kept)
    total = len(request.dataset.sequences)
    if report.interrupted:
        note(
            f"interrupted: {complete} of {total} sequences are complete in {report.path}; "
            "the same command goes on from there"
        )
        return EXIT_INTERRUPTED
    for name, error in report.failed.items():
        complain(f"{name}: {error}")
    if report.failed:
        if report.path != request.out:
            note(f"{request.out} holds the earlier results still; these are in {report.path}")
        return 1
    speak(f"{_count(total)} in {request.out} ({RECORD} says how they were made)")
    return 0


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """Options of scoring; see ``vos-eval score --help``."""

    results: Path
    dataset: Dataset
    out: Path
    partial: bool = False
    jobs: int = 0
    html: bool = True
    quiet: bool = False
    json: bool = False


def open_scored(kind: str, path: Path, names: list[str], results: Path) -> Dataset:
    """Open the data set that results are scored against; see `open_dataset`.

    Raises:
        InputError: it cannot be opened; the message says where the two folders were exchanged.
    """
    try:
        return open_dataset(kind, path, names)
    except InputError as error:
        try:
            open_dataset(kind, results)
        except InputError:
            raise error from None
        raise InputError(f"{results} is the data set, {path} is none; expected RESULTS first, then PATH") from None


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
    names = [SEQUENCES, OBJECTS, SCORES, *([REPORT] if request.html else [])]
    earlier: list[str] = []
    if check_writable(request.out):
        earlier = _of_an_earlier_version(request.out, names)
        check_replaceable(request.out, set(names) - set(earlier))
    record = read_record(request.results) if (request.results / RECORD).is_file() else None
    if record is not None and record.settings.get("dataset") != request.dataset.kind:
        raise InputError(
            f"{request.results}: holds masks of {record.settings.get('dataset')}, and --dataset is "
            f"{request.dataset.kind}; give the data set that they were made on"
        )
    settings = None if record is None else record.settings
    with Steps(len(request.dataset.sequences), visible=not (request.quiet or request.json)) as steps:
        score = score_dataset(
            request.dataset, request.results, partial=request.partial, jobs=request.jobs, on_sequence=steps.advance
        )
    document = to_document(score, settings)
    tables = {SEQUENCES: sequence_table(score), OBJECTS: object_table(score)}
    with locked(request.out), files_beside(request.out, "vos-eval score") as target:
        for name in earlier:
            _set_aside(request.out / name)
        for name, table in tables.items():
            target.write(name, table.to_csv().encode())
        target.write_json(SCORES, document)
        if request.html:
            target.write(REPORT, html_report(score, request.results, settings).encode())
    if request.json:
        say_json(document)
        return 0
    for name, why in score.missing.items():
        warn(f"{name} is left out: {why}")
    if not request.quiet:
        several = any(len(getattr(sequence, "objects", ())) > 1 for sequence in score.sequences)
        for table in tables.values() if several or request.dataset.parts else [tables[SEQUENCES]]:
            show(table.to_rich(), "")
        say(f"in {request.out}: {', '.join(names)}")
    return 0


def _set_aside(path: Path) -> None:
    """Keep a table of an earlier version under another name: the user may have added to it since."""
    aside = path.with_name(f"{path.name}.earlier")
    if aside.exists() or aside.is_symlink():
        raise OutputError(f"{aside}: is in the way of the older {path.name}; move one of them away")
    path.rename(aside)


def _of_an_earlier_version(out: Path, names: list[str]) -> list[str]:
    """Return the tables that version 0.1.0 wrote, which kept no list of its files; known by their beginnings."""
    if read_listing(out) is not None:
        return []
    try:
        read_scores(out / SCORES)
    except InputError:
        return []
    found = []
    for name in names:
        path = out / name
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(64).startswith(_BEGINNINGS[name]):
                    found.append(name)
    return found


def compare_results(runs: list[Path], *, as_json: bool) -> int:
    """Print runs side by side.

    Returns:
        0.

    Raises:
        InputError: fewer than two runs, one without scores, or scores of different data sets.
    """
    comparison = compare([read_scores(path if path.is_file() else path / SCORES) for path in runs])
    if as_json:
        say_json(comparison.to_document())
        return 0
    for table in comparison_tables(comparison):
        show(table.to_rich(), "")
    show(*comparison.words())
    return 0


def _count(sequences: int) -> str:
    return f"{sequences} sequence{'s' * (sequences != 1)}"
