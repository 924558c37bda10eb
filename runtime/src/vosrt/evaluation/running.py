"""The runtime over a data set: several sequences at once, resumable, masks as the data set's server takes them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vosrt._results import Results, Target
from vosrt._signals import stoppable
from vosrt.bundle import load_bundle
from vosrt.engines.static_shape import processors
from vosrt.errors import InputError, OptionError, VosrtError, WorkError
from vosrt.evaluation.layouts import AnnotatedSequence, Dataset
from vosrt.evaluation.record import Record, results_folder, settings_of
from vosrt.model import Model
from vosrt.pipeline import Pipeline
from vosrt.types import Precision, PropagationOptions, WorkingSize
from vosrt.video.base import Frame, FrameSource, SegmentedFrame, SourceInfo
from vosrt.video.images import ImageFolderSource
from vosrt.video.sinks import PaletteMasks

_CORES_PER_JOB = 4  # beyond this, another sequence gains more than more threads for one
_POLL_S = 0.1  # how long Ctrl-C may wait


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """Options of a run; see ``vos-eval run --help``.

    Attributes:
        propagation: values that replace those of the bundle, by name of `PropagationOptions`.
        jobs: sequences at once; 0 is one per four processors.
    """

    dataset: Dataset
    out: Path
    bundle: str = "default"
    engine: str = "auto"
    isolated: bool = False
    precision: Precision = "auto"
    size: int | None = None
    propagation: dict[str, Any] = field(default_factory=dict)
    jobs: int = 0
    overwrite: bool = False


@dataclass
class RunReport:
    """Outcome of a run.

    Attributes:
        done: sequences segmented now.
        kept: sequences that an earlier run had completed.
        failed: per sequence that could not be segmented, why.
        interrupted: Ctrl-C ended it.
        path: where the masks are: beside those of an earlier run, until all are complete.
    """

    settings: dict[str, Any]
    path: Path = Path()
    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, VosrtError] = field(default_factory=dict)
    interrupted: bool = False


def run_dataset(
    request: RunRequest,
    *,
    on_start: Callable[[RunReport, list[AnnotatedSequence]], None] = lambda report, todo: None,
    on_frame: Callable[[SegmentedFrame], None] = lambda frame: None,
    on_sequence: Callable[[str, dict[str, Any]], None] = lambda name, figures: None,
) -> RunReport:
    """Segment every sequence that is not yet complete in the folder for results.

    A sequence is written under a temporary name and renamed when it is complete, so a crash at any moment leaves
    complete sequences, which the next run keeps, and unfinished ones, which it starts again.

    Args:
        on_start: called with the report so far and the sequences that are left, before the first.
        on_frame: called after each frame, from several threads.
        on_sequence: called after each sequence with its figures.

    Raises:
        OptionError: ``jobs`` is negative, or an option is impossible.
        BundleError: the bundle cannot be used.
        OutputError: the folder cannot be used.
        EngineError: the engine cannot be loaded.
        WorkError: the record cannot be written.
    """
    if request.jobs < 0:
        raise OptionError(f"--jobs is {request.jobs}; expected 0 (as many as the processors allow) or more")
    jobs = min(request.jobs or max(1, processors() // _CORES_PER_JOB), len(request.dataset.sequences))
    models = _load_models(request, jobs)
    _check_size(request.size, models[0])
    options = replace(models[0].manifest.inference, **request.propagation)
    settings = settings_of(request.dataset, models[0], size=request.size, precision=request.precision, options=options)
    report = RunReport(settings)
    with (
        results_folder(request.out, settings, request.dataset, overwrite=request.overwrite) as (results, record),
        stoppable() as stop,
    ):
        report.path = results.path
        folders, todo = results.folders, []
        for sequence in request.dataset.sequences:
            if request.dataset.mask_folder(sequence.name) in folders:
                report.kept.append(sequence.name)
            else:
                todo.append(sequence)
        on_start(report, todo)
        worker = _Worker(request, models, options, on_frame, results, stop)
        _run_all(worker, todo, jobs, record, report, on_sequence)
        if not (report.failed or report.interrupted):
            results.complete()
            report.path = request.out
    if report.failed and not (report.done or report.kept):
        raise next(iter(report.failed.values()))
    return report


def _load_models(request: RunRequest, jobs: int) -> list[Model]:
    """A model per job, since an engine may run one frame at a time only."""
    bundle = load_bundle(request.bundle)
    threads = max(1, processors() // jobs)
    return [
        Model.load(
            bundle, engine=request.engine, precision=request.precision, threads=threads, isolated=request.isolated
        )
        for _ in range(jobs)
    ]


def _check_size(size: int | None, model: Model) -> None:
    """Refuse a working size that no frame can have, before the folder for results is made."""
    low, high = model.manifest.encoder.min_side, model.manifest.encoder.max_side
    if size is not None and not low <= size <= high:
        raise OptionError(f"--size is {size}; this model takes sides of {low} to {high} pixels; choose another size")


def _run_all(
    worker: _Worker,
    todo: list[AnnotatedSequence],
    jobs: int,
    record: Record,
    report: RunReport,
    on_sequence: Callable[[str, dict[str, Any]], None],
) -> None:
    with ThreadPoolExecutor(jobs, "vosrt-sequence") as pool:
        names: dict[Future[dict[str, Any]], str] = {pool.submit(worker.run, item): item.name for item in todo}
        waiting = set(names)
        try:
            while waiting and not worker.stop.is_set():
                ended, waiting = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                for future in ended:
                    name, error = names[future], future.exception()
                    if error is None:
                        record.sequences[name] = future.result()
                        report.done.append(name)
                        on_sequence(name, record.sequences[name])
                    elif isinstance(error, VosrtError):
                        report.failed[name] = error
                        record.failed[name] = str(error)
                    else:
                        raise error
                if ended:
                    record.save(worker.results)
            report.interrupted = worker.stop.is_set()
        except KeyboardInterrupt:
            report.interrupted = True
        finally:
            worker.stop.set()
            pool.shutdown(cancel_futures=True)


class _Worker:
    """Segments sequences, each with a model that no other thread uses meanwhile."""

    def __init__(
        self,
        request: RunRequest,
        models: list[Model],
        options: PropagationOptions,
        on_frame: Callable[[SegmentedFrame], None],
        results: Results,
        stop: threading.Event,
    ) -> None:
        self.request, self.results, self.stop = request, results, stop
        self._options = options
        self._on_frame = on_frame
        self._models: queue.SimpleQueue[Model] = queue.SimpleQueue()
        for model in models:
            self._models.put(model)

    def run(self, sequence: AnnotatedSequence) -> dict[str, Any]:
        """Segment one sequence and give its folder its name.

        Returns:
            Figures for the record.

        Raises:
            VosrtError: it cannot be segmented, or ``stop`` was set.
        """
        model = self._models.get()
        try:
            return self._segment(model, sequence)
        finally:
            self._models.put(model)

    def _segment(self, model: Model, sequence: AnnotatedSequence) -> dict[str, Any]:
        dataset = self.request.dataset
        source = ImageFolderSource(sequence.frames)
        info, stems = source.info, source.info.stems or ()
        if sequence.wanted is not None and (missing := sorted(sequence.wanted - set(stems))):
            raise InputError(f"{sequence.frames}: lacks frame {missing[0]}, which meta.json asks for")
        starts = dataset.starts(sequence, stems, info.width, info.height)
        # A protocol scores frames at their own size, unless the caller or the bundle names one.
        size: WorkingSize = "native" if self.request.size is None and model.manifest.size is None else self.request.size
        with (
            self.results.folder(dataset.mask_folder(sequence.name)) as folder,
            model.stream(size=size, options=self._options) as stream,
        ):
            report = Pipeline(
                _Stoppable(source, self.stop),
                tracker=stream,
                annotations=starts,
                sink=_WantedMasks(folder, sequence, dataset),
                on_result=self._on_frame,
            ).run()
            if report.error is not None:
                raise report.error
            if self.stop.is_set():
                raise WorkError(f"{sequence.name}: was interrupted")
        return {
            "frames": report.frames,
            "width": info.width,
            "height": info.height,
            "objects": sorted({int(i) for mask in starts.values() for i in np.unique(mask) if i}),
            "seconds": round(report.wall_s, 3),
            "fps": round(report.fps, 3),
            "stages_ms": {name: stage.p50_ms for name, stage in report.stages.items()},
        }


class _Stoppable:
    """Source that ends early when `stop` is set."""

    def __init__(self, source: FrameSource, stop: threading.Event) -> None:
        self._source = source
        self._stop = stop

    @property
    def info(self) -> SourceInfo:
        return self._source.info

    @property
    def first(self) -> Frame:
        return self._source.first

    @property
    def warnings(self) -> Sequence[str]:
        return self._source.warnings

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._source:
            if self._stop.is_set():
                return
            yield frame

    def close(self) -> None:
        self._source.close()


class _WantedMasks:
    """Writes the masks that the data set's server asks for, with its pixel values."""

    def __init__(self, folder: Target, sequence: AnnotatedSequence, dataset: Dataset) -> None:
        self._masks = PaletteMasks(folder)
        self._wanted = sequence.wanted
        self._dataset = dataset

    def write(self, item: SegmentedFrame) -> None:
        if self._wanted is None or item.frame.name in self._wanted:
            self._masks.write(replace(item, labels=self._dataset.stored(item.labels)))

    def close(self) -> None:
        self._masks.close()
