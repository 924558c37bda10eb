"""``vos-eval cycle``: models side by side on one clip, by how well its objects come back to where they were marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vosrt.cli.report import FrameProgress
from vosrt.console import say_json, show, warn
from vosrt.errors import OptionError
from vosrt.evaluation.cycle import CycleScore, cycle_consistency
from vosrt.evaluation.tables import Cell, Table
from vosrt.model import Model
from vosrt.types import Precision, WorkingSize
from vosrt.video.prompts import Prompts, load_annotations
from vosrt.video.source import is_live, open_source


@dataclass(frozen=True, kw_only=True)
class CycleRequest:
    """Options of the measurement; see ``vos-eval cycle --help``."""

    clip: str
    prompts: Prompts
    bundles: tuple[str, ...]
    frames: int = 300
    turns: int = 4
    engine: str = "auto"
    precision: Precision = "auto"
    size: WorkingSize = None
    quiet: bool = False
    json: bool = False


def measure_cycles(request: CycleRequest) -> int:
    """Measure every bundle and print them side by side.

    Returns:
        0.

    Raises:
        VosrtError: the clip, a mask or a bundle cannot be used, or the work failed.
    """
    if request.frames < 2:
        raise OptionError(f"--frames is {request.frames}; expected 2 or more")
    if request.turns < 1:
        raise OptionError(f"--turns is {request.turns}; expected 1 or more")
    if is_live(request.clip):
        raise OptionError(f"{request.clip} is a camera, which cannot be played backwards; give a file or a folder")
    models = [Model.load(name, engine=request.engine, precision=request.precision) for name in request.bundles]
    scores = [_measure(request, model) for model in models]
    described = [model.describe() for model in models]
    names = _short_names(request.bundles)
    if request.json:
        say_json(_document(request.bundles, described, scores))
        return 0
    if not request.quiet:
        for name, words in zip(names, described, strict=True):
            if words["weights"] == "untrained":
                warn(f"{name} has random weights: expect rough masks")
        show(_table(names, scores).to_rich())
    return 0


def _measure(request: CycleRequest, model: Model) -> CycleScore:
    source = open_source(request.clip, end=request.frames)
    try:
        annotations = load_annotations(request.prompts, source, end=request.frames)
        for warning in annotations.warnings:
            warn(warning)
        count = source.info.frame_count
        with FrameProgress(2 * count if count else None, visible=not (request.quiet or request.json)) as progress:
            return cycle_consistency(
                model,
                source,
                annotations.masks,
                size=request.size,
                turns=request.turns,
                on_step=progress.step,
            )
    finally:
        source.close()


def _short_names(bundles: Sequence[str]) -> list[str]:
    """Names of the bundles' folders, numbered where several have the same."""
    names = [Path(bundle).name or bundle for bundle in bundles]
    return [f"{n} ({names[: i + 1].count(n)})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def _table(names: list[str], scores: list[CycleScore]) -> Table:
    rows: list[list[Cell]] = [
        [f"back from frame {turns[0].frame}", *(100 * turn.score for turn in turns)]
        for turns in zip(*(score.turns for score in scores), strict=True)
    ]
    objects = sorted({object_id for turn in scores[0].turns for object_id in turn.objects})
    if len(objects) > 1:
        rows.extend(
            [f"object {object_id}", *(100 * _of_object(score, object_id) for score in scores)] for object_id in objects
        )
    rows.append(["cycle consistency", *(100 * score.score for score in scores)])
    return Table("", ["%", *names], rows, mean=True)


def _of_object(score: CycleScore, object_id: int) -> float:
    values = [turn.objects[object_id] for turn in score.turns if object_id in turn.objects]
    return sum(values) / len(values)


def _document(
    bundles: Sequence[str], described: list[dict[str, object]], scores: list[CycleScore]
) -> dict[str, object]:
    return {
        "runs": [
            {
                "bundle": bundle,
                "cycle": score.score,
                "turns": [{"frame": turn.frame, "score": turn.score, "objects": turn.objects} for turn in score.turns],
                "model": words,
            }
            for bundle, words, score in zip(bundles, described, scores, strict=True)
        ]
    }
