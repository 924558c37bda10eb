"""``vos-run SOURCE``: check everything, segment the source, report."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vosrt._files import check_writable, locked
from vosrt._results import Results, open_results
from vosrt._signals import stoppable
from vosrt.bench.machine import peak_memory_mb
from vosrt.cli import output
from vosrt.cli.app import EXIT_INTERRUPTED
from vosrt.cli.options import ModelChoice
from vosrt.cli.preview import FIRST, is_preview, remove_preview, telling, write_preview
from vosrt.cli.report import CELL, FrameProgress, print_summary
from vosrt.cli.results import SUMMARY, Wanted
from vosrt.console import complain, note, warn
from vosrt.cuda import open_device
from vosrt.directions import Direction, check_direction, follow
from vosrt.engines.nvidia import has_gpu
from vosrt.errors import BrokenVideoError, OptionError, VosrtError
from vosrt.text import counted
from vosrt.types import U8Array, WorkingSize
from vosrt.video.base import SegmentedFrame, SourceOptions, is_pipe
from vosrt.video.cleaning import Cleaned
from vosrt.video.first_picture import FirstPicture
from vosrt.video.key_frames import KeyFrames
from vosrt.video.levels import Levels
from vosrt.video.prompts import Annotations, Prompts, load_annotations
from vosrt.video.sinks import ResultFolder
from vosrt.video.source import is_video_file, open_source

if TYPE_CHECKING:
    from vosrt.budget import Budget, BudgetedStream
    from vosrt.interop import RerunFile
    from vosrt.model import Model
    from vosrt.pipeline import PipelineReport
    from vosrt.prompt.points import BoolArray, Box, Point
    from vosrt.stream import Stream
    from vosrt.types import PropagationOptions
    from vosrt.video.base import FrameSource, SourceInfo
    from vosrt.video.rewound import Reopen


# Parameters of mallopt in glibc's malloc.h, and the values that vos-run sets.
_MALLOC = {
    "M_ARENA_MAX": (-8, 1),
    "M_MMAP_THRESHOLD": (-3, 32 << 20),  # the largest that every glibc takes; the confidence of 4K fits
    "M_TRIM_THRESHOLD": (-1, 64 << 20),
}


@dataclass(frozen=True, kw_only=True)
class Request(ModelChoice):
    """Options of the command; see ``vos-run --help``.

    Attributes:
        propagation: values that replace those of the bundle, by name of `PropagationOptions`.
        refine: rounds of refinement, as for `Model.stream`.
        decoder: ``"auto"``, ``"cpu"`` or ``"nvdec"``.
        levels: as of `SourceOptions`, like the two that follow.
        budget_ms: milliseconds that the segmentation of a frame may take; None sets no limit.
        direction: from the marks; see `vosrt.directions`.
        overwrite: an earlier result in ``out`` is replaced when this one is complete.
        resume: an unfinished result of the same request in ``out`` goes on.
        save_every_s: seconds between sessions that a killed run goes on from; 0 saves none.
        preview: write what would be followed as ``first.jpg`` and stop.
    """

    source: str
    prompts: Prompts
    out: Path
    start: int = 0
    end: int | None = None
    size: WorkingSize = None
    decoder: str = "cpu"
    levels: str = "auto"
    max_megapixels: float = 64.0
    reconnect_s: float = 0.0
    budget_ms: float | None = None
    direction: Direction = "forward"
    propagation: dict[str, Any] = field(default_factory=dict)
    refine: int | str = "default"
    results: Wanted = Wanted()  # noqa: RUF009 (frozen)
    rerun: Path | None = None
    overwrite: bool = False
    resume: bool = False
    save_every_s: float = 30.0
    preview: bool = False
    quiet: bool = False
    json: bool = False

    def stream(self, model: Model) -> Stream:
        """Open a stream of the model with what was asked for."""
        return model.stream(size=self.size, options=self.options(model), threads=self.threads, refine=self.refine)

    def options(self, model: Model) -> PropagationOptions:
        """How the request propagates labels with a model."""
        return replace(model.manifest.inference, **self.propagation)


def segment(request: Request, load: Callable[[Request], Model] = ModelChoice.load) -> int:
    """Run one request.

    Args:
        load: loads the model; a worker that runs many requests gives one that keeps it.

    Returns:
        The exit code. Where an error came after the first result, it was printed with the place of the
        results so far.

    Raises:
        VosrtError: before the first result; nothing was written.
    """
    if request.threads < 0:
        raise OptionError(f"--threads is {request.threads}; expected 0 (all cores) or more")
    if request.overwrite and request.resume:
        raise OptionError("--overwrite begins again and --resume goes on; drop one of them")
    if not request.save_every_s >= 0:
        raise OptionError(f"--save-every is {request.save_every_s:g}; expected 0 (never) or more seconds")
    if request.preview and (request.overwrite or request.resume):
        raise OptionError(f"--preview writes {FIRST} only; drop --overwrite and --resume, or choose another folder")
    check_direction(request.direction, request.source)
    if request.budget_ms is not None:
        _check_budget(request, request.budget_ms)
        request = replace(request, device="cpu")  # auto may mean a GPU
    check_writable(request.out)
    with locked(request.out):
        inputs, overwrite = inputs_of(request), request.overwrite or is_preview(request.out)
        output.check_folder(request.out, inputs, overwrite=overwrite, resume=request.resume)
        return _segment(request, load)


def _check_budget(request: Request, budget_ms: float) -> None:
    """Refuse a budget where a run cannot change its size on the way.

    Raises:
        OptionError: names the other option.
    """
    if not budget_ms > 0:
        raise OptionError(f"--budget-ms is {budget_ms:g}; expected more than 0 milliseconds")
    if request.direction != "forward":
        raise OptionError(f"--budget-ms works forward only; drop it or --direction {request.direction}")
    if request.resume:
        raise OptionError("--budget-ms changes the size on the way, which --resume cannot go on with; drop one of them")
    if request.device not in ("auto", "cpu"):
        raise OptionError(f"--budget-ms works on the processor; drop it or --device {request.device}")


def _segment(request: Request, load: Callable[[Request], Model]) -> int:
    _reuse_large_blocks()
    # Files are opened before the model is loaded, so that wrong input fails early. NVDEC needs the model first; a live
    # source lets it be loaded and compiled before it takes its first frame.
    decode_on = None if request.preview else _decoding_gpu(request)
    loaded = cache(partial(load, request))

    def ready(image: U8Array) -> None:
        if not request.preview:
            _warm_up(request, loaded(), image)

    levels = Levels(request.levels)
    options = replace(_reading(request, levels), ready=ready)
    source = _open(request, decode_on, None if decode_on is None else loaded(), options)
    reopen = partial(open_again, request, replace(_reading(request, levels), keys=KeyFrames()))
    try:
        if request.resume and source.info.live:
            raise OptionError(f"{request.source}: what was live is over; begin again without --resume")

        def find(image: U8Array, points: Sequence[Point], box: Box | None) -> BoolArray:
            return loaded().segment(image, points, box, size=request.size)

        annotations = load_annotations(
            request.prompts,
            source,
            start=request.start,
            end=request.end,
            find=find,
            frame_at=reader_of(request, source, reopen),
        )
        if request.preview:
            style = request.results.style
            return write_preview(request.out, source, annotations, style, quiet=request.quiet, as_json=request.json)
        model = loaded()
        working = model.working_size(source.info.height, source.info.width, request.size)
        _tell_working_size(request, source.info, working)
        settings = _settings(request, model, annotations)
        remove_preview(request.out)
        with (
            open_results(
                request.out, "vos-run", settings, overwrite=request.overwrite, resume=request.resume
            ) as results,
            stoppable() as stop,
        ):
            if results.is_complete:
                if not request.quiet:
                    note(f"{request.out}: is complete already")
                return 0
            if not request.json:
                for warning in annotations.warnings:
                    warn(warning)
            first = _first_picture(request, results, annotations)
            sinks = request.results.sinks(results, source.info, annotations.object_ids)
            folder = ResultFolder(results, {"first": first, **sinks}, request.options(model))
            open_stream = _Opener(request, model, source.info)
            report = _run(request, open_stream, source, reopen, annotations, folder, stop)
            warnings = [*annotations.warnings, *source.warnings, *folder.warnings, *_unused(annotations, report)]
            summary = _summary(request, model, source.info, working, report, folder)
            summary |= {"object_ids": list(annotations.object_ids), "warnings": warnings}
            if open_stream.budget is not None:
                summary["budget"] = open_stream.budget.report() | {"text": open_stream.budget.summary()}
            summary["files"] = [FIRST] * first.written + summary["files"]
            resumable = not source.info.live and request.budget_ms is None
            return _finish(request, results, folder, report, summary, told=annotations.warnings, resumable=resumable)
    finally:
        source.close()


def _reading(request: Request, levels: Levels) -> SourceOptions:
    return SourceOptions(levels=levels, max_megapixels=request.max_megapixels, reconnect_s=request.reconnect_s)


def open_again(request: Request, options: SourceOptions, start: int, end: int) -> FrameSource:
    """Open a file once more, on the processor, for the frames ``start`` to ``end - 1``."""
    return open_source(request.source, start=start, end=end, options=options)


def reader_of(request: Request, source: FrameSource, reopen: Reopen) -> Callable[[int], U8Array] | None:
    """Return a reader of single later frames of a file; None for a source that can be read only once."""
    if source.info.live or is_pipe(request.source):
        return None

    def read(index: int) -> U8Array:
        one = reopen(index, index + 1)
        try:
            return one.first.image
        finally:
            one.close()

    return read


def _first_picture(request: Request, results: Results, annotations: Annotations) -> FirstPicture:
    silent = request.quiet or request.json
    on_written = None if silent else telling(results.path)
    return FirstPicture(results, FIRST, annotations.masks, request.results.style, on_written)


def _finish(
    request: Request,
    results: Results,
    folder: ResultFolder,
    report: PipelineReport,
    summary: dict[str, Any],
    *,
    told: list[str],
    resumable: bool,
) -> int:
    """Write the summary, print it, and say what became of the run; the first failure counts."""
    if report.error is not None and not folder.frames:
        raise report.error
    try:
        if folder.started:
            results.write_json(SUMMARY, summary)
        if isinstance(report.error, BrokenVideoError):
            results.drop_checkpoint()
        elif report.error is None and not report.interrupted:
            results.complete()
    except VosrtError as error:
        report = replace(report, error=report.error or error)
    print_summary(summary, as_json=request.json, quiet=request.quiet, told=told)
    kept = (
        f"the results of {counted(folder.frames, 'frame')} are in {results.path}"
        if folder.started
        else "nothing was written"
    )
    if report.error is not None:
        complain(f"{report.error}; {kept}")
        return report.error.exit_code
    if report.interrupted:
        note(f"interrupted: {kept}" + ("; --resume goes on" if folder.started and resumable else ""))
        return EXIT_INTERRUPTED
    return 0


def _reuse_large_blocks() -> None:
    """Let all threads of glibc's malloc reuse each other's freed arrays.

    One thread allocates the arrays of a frame and another one frees them. By itself glibc keeps them for the thread
    that allocated them, about 130 MB at 480p; and a block that it returns to the system costs a page fault every 4 KiB
    when it is taken again, a tenth of the time of a 4K frame.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library, or none that can be loaded so
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _MALLOC.values():
            mallopt(parameter, value)


def inputs_of(request: Request) -> tuple[Path, ...]:
    given = [request.source, *request.prompts.masks, *request.prompts.polygons]
    paths = [Path(text) for text in given] + [Path(text.split(":", 1)[-1]) for text in given]
    return tuple(path for path in paths if path.exists())


def _decoding_gpu(request: Request) -> int | None:
    """The GPU that is to decode; None is the processor.

    Raises:
        OptionError: NVDEC was asked for and cannot be had.
    """
    if request.decoder not in ("auto", "cpu", "nvdec"):
        raise OptionError(f"--decoder is {request.decoder!r}; expected auto, cpu or nvdec")
    if request.decoder == "cpu":
        return None
    gpu = open_device(_device(request))
    if gpu is None:
        why_not = "the memory is not on a GPU; see vos-run doctor, or add --device cuda"
    elif not is_video_file(request.source):
        why_not = f"{request.source} is no video file"
    else:
        from vosrt.video.nvdec import check_nvdec

        try:
            check_nvdec(gpu.number)
        except VosrtError as error:
            why_not = str(error)
        else:
            return gpu.number
    _take_the_processor(request, why_not)
    return None


def _device(request: Request) -> str:
    """The device that is meant; the model, and what it imports, is left alone where there is no GPU."""
    if request.device != "auto" or not has_gpu():
        return "cpu" if request.device == "auto" else request.device
    from vosrt.model import choose_device

    asked = {"engine": request.engine, "precision": request.precision}
    return choose_device(request.device, **asked, isolated=request.isolated)[0]


def _take_the_processor(request: Request, why: str) -> None:
    """Unless NVDEC was asked for by name."""
    if request.decoder == "nvdec":
        raise OptionError(f"--decoder nvdec cannot be used: {why}")


def _open(request: Request, decode_on: int | None, model: Model | None, options: SourceOptions) -> FrameSource:
    """The source; ``auto`` takes the processor where the GPU cannot decode this."""
    if decode_on is not None and model is not None and not model.takes_frames_on_gpu:
        _take_the_processor(request, "the engine takes frames from host memory")
        decode_on = None
    if decode_on is not None:
        try:
            return open_source(
                request.source, start=request.start, end=request.end, decode_on=decode_on, options=options
            )
        except OptionError:
            if request.decoder == "nvdec":
                raise
    return open_source(request.source, start=request.start, end=request.end, options=options)


def _warm_up(request: Request, model: Model, image: U8Array) -> None:
    """Follow a made-up object through one picture, which compiles every network for this size."""
    mask = np.zeros(image.shape[:2], np.uint8)
    height, width = image.shape[:2]
    mask[height // 4 : -(height // 4) or None, width // 4 : -(width // 4) or None] = 1
    with request.stream(model) as stream:
        stream.start(image, mask)
        stream.step(image)


def _settings(request: Request, model: Model, annotations: Annotations) -> dict[str, Any]:
    return output.settings_of(
        request.source,
        annotations,
        model,
        request.size,
        propagation=request.propagation,
        refine=request.refine,
        levels=request.levels,
        **({} if request.budget_ms is None else {"budget_ms": request.budget_ms}),
        start=request.start,
        end=request.end,
        direction=request.direction,
        results=request.results.settings(),
    )


class _Opener:
    """Opens the streams of a run; ``budget`` is that of the last one, if the request sets any."""

    def __init__(self, request: Request, model: Model, info: SourceInfo) -> None:
        self._request, self._model, self._info = request, model, info
        self.budget: Budget | None = None

    def __call__(self) -> Stream | BudgetedStream:
        request = self._request
        if request.budget_ms is None:
            return request.stream(self._model)
        stream = self._model.stream_within(
            request.budget_ms,
            self._info.height,
            self._info.width,
            size=request.size,
            options=request.options(self._model),
            threads=request.threads,
            refine=request.refine,
        )
        self.budget = stream.budget
        return stream


def _rerun_file(path: Path, *, overwrite: bool) -> RerunFile:
    from vosrt.interop import RerunFile

    if path.exists() and not overwrite:
        raise OptionError(f"--rerun {path}: exists; choose another file, or add --overwrite")
    return RerunFile(path)


def _run(
    request: Request,
    open_stream: _Opener,
    source: FrameSource,
    reopen: Reopen,
    annotations: Annotations,
    folder: ResultFolder,
    stop: threading.Event,
) -> PipelineReport:
    from vosrt.pipeline import Checkpoints

    count = source.info.frame_count
    if count and request.direction != "forward":
        count += max(annotations.masks) - request.start + 1
    with FrameProgress(count, visible=not (request.quiet or request.json)) as progress, ExitStack() as open_files:
        log = None
        if request.rerun is not None:
            log = open_files.enter_context(closing(_rerun_file(request.rerun, overwrite=request.overwrite)))

        def on_result(item: SegmentedFrame) -> None:
            progress.step()
            if log is not None:
                log.write(item)

        last_index, session = (folder.restore() if request.resume else None) or (-1, b"")
        return follow(
            source,
            request.direction,
            open_stream=open_stream,
            reopen=reopen,
            annotations=annotations.masks,
            sink=Cleaned(folder, request.results.cleaning),
            on_result=on_result,
            checkpoints=Checkpoints(
                save=bytes,
                store=folder.keep,
                every_s=0 if source.info.live else request.save_every_s,
                group=folder.group,
                frames=folder.frames,
                last_index=last_index,
            ),
            session=session,
            beside=request.out.absolute().parent,
            stop=stop,
        )


def _tell_working_size(request: Request, info: SourceInfo, working: tuple[int, int]) -> None:
    """Say that frames are shrunk although no option asked for it."""
    shrunk = min(info.height, info.width) - min(working) >= CELL
    if shrunk and request.size is None and not (request.quiet or request.json):
        note(
            f"{info.width}×{info.height} frames are segmented at {working[1]}×{working[0]}; "
            "--size native keeps their own size, which takes much longer"
        )


def _unused(annotations: Annotations, report: PipelineReport) -> list[str]:
    moved = [f"frame {index} is missing: its annotation was laid on frame {taken}" for index, taken in report.moved]
    if report.interrupted or report.error is not None:
        return moved
    late = sorted(index for index in annotations.masks if index > report.last_index)
    last = f"frame {report.last_index} is the last"
    return moved + [f"the annotation of frame {index} was not used: {last}" for index in late]


def _summary(
    request: Request,
    model: Model,
    info: SourceInfo,
    working: tuple[int, int],
    report: PipelineReport,
    folder: ResultFolder,
) -> dict[str, Any]:
    return {
        "schema": 1,
        "source": info.name,
        "out": str(request.out),
        "files": request.results.files if folder.frames else [],
        "frames": folder.frames,
        "frame_count": info.frame_count,
        "direction": request.direction,
        "dropped": report.dropped,
        "width": info.width,
        "height": info.height,
        "working_width": working[1],
        "working_height": working[0],
        "complete": report.error is None and not report.interrupted,
        "interrupted": report.interrupted,
        "error": None if report.error is None else str(report.error),
        **folder.summary(),
        "fps": round(report.fps, 3),
        "wall_s": round(report.wall_s, 3),
        "stages_ms": {name: {"p50": time.p50_ms, "p95": time.p95_ms} for name, time in report.stages.items()},
        "peak_memory_mb": peak_memory_mb(),
        "model": model.describe(),
    }
