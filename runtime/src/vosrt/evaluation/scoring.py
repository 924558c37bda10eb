"""J, F and J&F of masks against annotations, with the semantics of the DAVIS toolkit and of ``vos-benchmark`` 0.1.0.

The first and the last annotated frame do not count. An object counts from the first counted frame on in which either
the annotation or the prediction holds it, and only if the annotation ever does. The figure of a data set is the mean
over all its objects. Frames without annotation are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from vosrt._reading import open_image
from vosrt.engines.static_shape import processors
from vosrt.errors import InputError, MaskError
from vosrt.evaluation.human_parts import PartsScore, PartsScorer, total_of
from vosrt.evaluation.layouts import AnnotatedSequence, Dataset
from vosrt.evaluation.stability import instability
from vosrt.evaluation.statistics import decay, recall
from vosrt.metrics import boundary_accuracy, region_similarity
from vosrt.types import U8Array
from vosrt.video.images import list_images
from vosrt.video.masks import MASK_SUFFIXES, name_key


@dataclass
class ObjectScore:
    """Scores of one object.

    Attributes:
        frames: stems of the frames that count.
        j: region similarity per frame, 0 to 1.
        f: boundary accuracy per frame, 0 to 1.
        t: temporal instability of the prediction between counted frames, 0 to 1; pairs without outline left out.
        t_true: that of the annotation.
    """

    object_id: int
    frames: list[str] = field(default_factory=list)
    j: list[float] = field(default_factory=list)
    f: list[float] = field(default_factory=list)
    t: list[float] = field(default_factory=list)
    t_true: list[float] = field(default_factory=list)

    @cached_property
    def figures(self) -> dict[str, float | None]:
        """Means and statistics by name; T is None where the object never had an outline in two frames running."""
        j, f = mean(self.j), mean(self.f)
        return {
            "J&F": (j + f) / 2,
            "J": j,
            "J recall": recall(self.j),
            "J decay": decay(self.j),
            "F": f,
            "F recall": recall(self.f),
            "F decay": decay(self.f),
            "T": mean(self.t) if self.t else None,
            "T true": mean(self.t_true) if self.t_true else None,
        }


@dataclass
class SequenceScore:
    """Scores of the objects of one sequence.

    Attributes:
        objects: ascending by number.
    """

    name: str
    objects: list[ObjectScore]

    @cached_property
    def figures(self) -> dict[str, float | None]:
        """Means over the objects."""
        return _mean_figures(self.objects)

    @cached_property
    def frames(self) -> dict[str, float]:
        """J&F per counted frame, mean over the objects that count on it."""
        values: dict[str, list[float]] = {}
        for scored in self.objects:
            for stem, j, f in zip(scored.frames, scored.j, scored.f, strict=True):
                values.setdefault(stem, []).append((j + f) / 2)
        return {stem: mean(values[stem]) for stem in sorted(values)}


@dataclass
class DatasetScore:
    """Scores of a whole data set.

    Attributes:
        sequences: per sequence; of parts in VIP.
        missing: sequences that are not scored, by name, and why.
    """

    dataset: Dataset
    sequences: list[SequenceScore | PartsScore]
    missing: dict[str, str] = field(default_factory=dict)

    @cached_property
    def figures(self) -> dict[str, float | None]:
        """Means over all objects of all sequences, or the mIoU over all frames of VIP."""
        parts = [sequence for sequence in self.sequences if isinstance(sequence, PartsScore)]
        if parts:
            return total_of(parts).figures
        return _mean_figures(item for s in self.sequences if isinstance(s, SequenceScore) for item in s.objects)


class SequenceScorer:
    """Takes the counted frames of a sequence one by one.

    Args:
        stability: also measure T, which takes about as long as J and F.
    """

    def __init__(self, name: str, *, stability: bool = True) -> None:
        self._name = name
        self._stability = stability
        self._objects: dict[int, ObjectScore] = {}
        self._annotated: set[int] = set()
        self._before: tuple[U8Array, U8Array] | None = None

    def feed(self, stem: str, prediction: U8Array, annotation: U8Array) -> None:
        """Take the next counted frame.

        Args:
            prediction: u8 [H, W], object ids.
            annotation: likewise, the truth.
        """
        annotated = _ids(annotation)
        self._annotated |= annotated
        for object_id in annotated | _ids(prediction):
            self._objects.setdefault(object_id, ObjectScore(object_id))
        for object_id, score in self._objects.items():
            predicted, true = prediction == object_id, annotation == object_id
            score.frames.append(stem)
            score.j.append(region_similarity(predicted, true))
            score.f.append(boundary_accuracy(predicted, true))
            if self._stability and self._before is not None:
                for values, mask, before in (
                    (score.t, predicted, self._before[0]),
                    (score.t_true, true, self._before[1]),
                ):
                    change = instability(before == object_id, mask)
                    if change is not None:
                        values.append(change)
        self._before = prediction, annotation

    def conclude(self) -> SequenceScore:
        """Return the scores of the objects that the annotation holds in a counted frame."""
        return SequenceScore(self._name, [self._objects[object_id] for object_id in sorted(self._annotated)])


def score_dataset(
    dataset: Dataset,
    results: Path,
    *,
    partial: bool = False,
    jobs: int = 0,
    on_sequence: Callable[[str], None] = lambda name: None,
) -> DatasetScore:
    """Score a folder of masks.

    Args:
        results: masks in the data set's layout, of ``vos-eval run`` or of any other program.
        partial: score the sequences that can be scored; else all must be.
        jobs: sequences at once; 0 is one per processor.

    Raises:
        InputError: masks are missing, or a sequence cannot be scored.
        MaskError: a mask cannot be read or has another size than its annotation.
    """
    if not results.is_dir():
        raise InputError(f"{results}: no such folder; expected masks made by: vos-eval run")
    there = [s for s in dataset.sequences if (results / dataset.mask_folder(s.name)).is_dir()]
    missing = [s.name for s in dataset.sequences if s not in there]
    if not there:
        expected = results / dataset.mask_folder(dataset.sequences[0].name)
        raise InputError(f"{results}: holds no masks of this data set; expected folders such as {expected}")
    if missing and not partial:
        named = ", ".join(missing[:4]) + (" …" if len(missing) > 4 else "")
        raise InputError(
            f"{results}: has no masks of {len(missing)} of {len(dataset.sequences)} sequences ({named}); finish the "
            "run, name some with --sequences, or score the others with --partial"
        )

    def score(sequence: AnnotatedSequence) -> SequenceScore | PartsScore | InputError:
        try:
            scored = score_sequence(dataset, sequence, results / dataset.mask_folder(sequence.name))
        except InputError as error:
            if partial:
                return error
            raise type(error)(f"{error}; --partial leaves out what cannot be scored") from error
        finally:
            on_sequence(sequence.name)
        return scored

    with ThreadPoolExecutor(jobs or processors(), "vosrt-score") as pool:
        try:
            outcomes = dict(zip((s.name for s in there), pool.map(score, there), strict=True))
        finally:
            pool.shutdown(cancel_futures=True)
    errors = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, InputError)}
    if len(errors) == len(outcomes):
        raise next(iter(errors.values()))
    scores = [outcome for outcome in outcomes.values() if not isinstance(outcome, InputError)]
    reasons = {name: str(error).removeprefix(f"{name}: ") for name, error in errors.items()}
    return DatasetScore(dataset, scores, dict.fromkeys(missing, "has no masks") | reasons)


def score_sequence(dataset: Dataset, sequence: AnnotatedSequence, masks: Path) -> SequenceScore | PartsScore:
    """Score the masks of one sequence.

    Args:
        masks: folder with one mask per annotated frame that counts, named like it.

    Raises:
        InputError: too few annotations, or no object in those that count.
        MaskError: a mask is missing, cannot be read, or has another size than its annotation.
    """
    files = {name_key(path.stem): path for path in list_images(masks, MASK_SUFFIXES)}
    first = next(iter(sequence.annotations.values()))
    numbered = not dataset.parts and dataset.numbers(first, *_size(first))
    scorer = PartsScorer(sequence.name) if dataset.parts else SequenceScorer(sequence.name)
    for stem in counted_frames(dataset, sequence):
        if stem not in files:
            raise MaskError(f"{masks / stem}.png: no such mask; expected one per annotated frame")
        width, height = _size(sequence.annotations[stem])
        annotation = dataset.read(sequence.annotations[stem], width, height, numbered=numbered)
        scorer.feed(stem, dataset.read(files[stem], width, height), annotation)
    scored = scorer.conclude()
    if isinstance(scored, SequenceScore) and not scored.objects:
        raise InputError(f"{sequence.name}: no annotation between the first and the last holds an object")
    return scored


def counted_frames(dataset: Dataset, sequence: AnnotatedSequence) -> Sequence[str]:
    """Stems of the annotated frames that count: without the first and the last, but all of them in VIP.

    Raises:
        InputError: there is none.
    """
    stems = list(sequence.annotations)
    counted = stems if dataset.parts else stems[1:-1]
    if not counted:
        raise InputError(
            f"{sequence.name}: has {len(stems)} annotations, of which none counts (the first and the last do not); "
            "expected three or more; where annotations are kept back, upload the masks to the server instead"
        )
    return counted


def mean(values: Sequence[float]) -> float:
    """Mean of at least one value."""
    return math.fsum(values) / len(values)


def _ids(mask: U8Array) -> set[int]:
    """Objects in a mask u8 [H, W]."""
    return {int(value) for value in np.flatnonzero(np.bincount(mask.reshape(-1))) if value}


def _mean_figures(objects: Iterable[ObjectScore]) -> dict[str, float | None]:
    """Means over objects; of those that have the figure."""
    rows = [scored.figures for scored in objects]
    means: dict[str, float | None] = {}
    for name in rows[0]:
        values = [value for row in rows if (value := row[name]) is not None]
        means[name] = mean(values) if values else None
    return means


def _size(path: Path) -> tuple[int, int]:
    try:
        with open_image(path) as image:
            return image.size
    except (OSError, ValueError) as error:
        raise MaskError(f"{path}: the mask cannot be read ({error}); expected a whole PNG") from error
