"""``vos-run SOURCE``: check everything, segment the source, report."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vosrt.benchmark.machine import peak_memory_mb
from vosrt.cli import output
from vosrt.cli.output import OutputFolder
from vosrt.cli.report import Progress, print_summary
from vosrt.cuda_library import parse_device
from vosrt.errors import OptionError
from vosrt.types import Precision
from vosrt.video.prompts import Annotations, Prompts, load_annotations
from vosrt.video.sinks import OverlayVideo, PaletteMasks, ResultFolder, RleLines, write_json
from vosrt.video.source import is_live, is_video_file, open_source

if TYPE_CHECKING:
    from vosrt.model import Model
    from vosrt.pipeline import PipelineReport
    from vosrt.video.base import FrameSink, FrameSource, SourceInfo

EXIT_INTERRUPTED = 130

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; see ``vos-run --help``.

    Attributes:
        propagation: values that replace those of the bundle, by name of `PropagationOptions`.
        refine: rounds of refinement, as for `Model.stream`.
        decoder: ``"auto"``, ``"cpu"`` or ``"nvdec"``.
    """

    source: str
    prompts: Prompts
    out: Path
    start: int = 0
    end: int | None = None
    size: int | None = None
    bundle: str = "default"
    engine: str = "auto"
    precision: Precision = "auto"
    threads: int = 0
    device: str = "cpu"
    decoder: str = "cpu"
    propagation: dict[str, Any] = field(default_factory=dict)
    refine: int | str = "default"
    video: bool = True
    png: bool = True
    rle: bool = True
    overwrite: bool = False
    quiet: bool = False
    json: bool = False


def segment(request: Request) -> int:
    """Run one request.

    Returns:
        The exit code. Where an error came after the first result, it was printed with the place of the
        results so far.

    Raises:
        VosrtError: before the first result; nothing was written.
    """
    if not (request.video or request.png or request.rle):
        raise OptionError("--no-video, --no-png and --no-rle together leave nothing to write; drop one of them")
    if request.threads < 0:
        raise OptionError(f"--threads is {request.threads}; expected 0 (all cores) or more")
    folder = OutputFolder(request.out, request.overwrite, _inputs(request))
    folder.check()
    _give_large_blocks_back()
    # A camera waits for the model, and so does who may decode for it on a GPU; anything else is checked first, because
    # that is quick.
    decode_on = _decoding_gpu(request)
    model = _load_model(request) if is_live(request.source) or decode_on is not None else None
    source = _open(request, decode_on, model)
    try:
        annotations = load_annotations(request.prompts, source, start=request.start, end=request.end)
        model = model or _load_model(request)
        report, started = _run(request, model, source, annotations, folder)
    finally:
        source.close()
    if report.error is not None and not report.frames:
        raise report.error
    warnings = [*annotations.warnings, *_unused(annotations, report)]
    summary = _summary(request, model, source.info, annotations, report, warnings)
    if started:
        write_json(folder.path / output.SUMMARY, summary)
    print_summary(summary, as_json=request.json, quiet=request.quiet)
    if report.error is not None:
        print(f"error: {report.error}; the results of {report.frames} frames are in {folder.path}", file=sys.stderr)
        return report.error.exit_code
    if report.interrupted:
        kept = f"the results of {report.frames} frames are in {folder.path}" if started else "nothing was written"
        print(f"interrupted: {kept}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _give_large_blocks_back() -> None:
    """Let glibc return freed arrays to the system.

    By itself it keeps them for the thread that allocated them. Here one thread allocates and the next one
    frees, so at 480p about 130 MB would be kept for nothing.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library, or none that can be loaded so
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


def _inputs(request: Request) -> tuple[Path, ...]:
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
    gpu, why_not = parse_device(request.device), None
    if request.decoder == "cpu":
        return None
    if gpu is None:
        why_not = "the memory is not on a GPU; add --device cuda"
    elif not is_video_file(request.source):
        why_not = f"{request.source} is no video file"
    else:
        from vosrt.video.nvdec import why_not_nvdec

        why_not = why_not_nvdec(gpu)
    if why_not is None:
        return gpu
    _take_the_processor(request, why_not)
    return None


def _take_the_processor(request: Request, why: str) -> None:
    """Unless NVDEC was asked for by name."""
    if request.decoder == "nvdec":
        raise OptionError(f"--decoder nvdec cannot be used: {why}")


def _open(request: Request, decode_on: int | None, model: Model | None) -> FrameSource:
    """The source; ``auto`` takes the processor where the GPU cannot decode this."""
    if decode_on is not None and model is not None and not model.takes_frames_on_gpu:
        _take_the_processor(request, "the engine takes frames from host memory")
        decode_on = None
    if decode_on is not None:
        try:
            return open_source(request.source, start=request.start, end=request.end, decode_on=decode_on)
        except OptionError:
            if request.decoder == "nvdec":
                raise
    return open_source(request.source, start=request.start, end=request.end)


def _load_model(request: Request) -> Model:
    from vosrt.model import Model

    return Model.load(
        request.bundle,
        engine=request.engine,
        precision=request.precision,
        threads=request.threads,
        device=request.device,
    )


def _run(
    request: Request, model: Model, source: FrameSource, annotations: Annotations, folder: OutputFolder
) -> tuple[PipelineReport, bool]:
    from vosrt.pipeline import Pipeline

    sinks: list[FrameSink] = []
    if request.video:
        sinks.append(OverlayVideo(folder.path / output.VIDEO, source.info.fps))
    if request.png:
        sinks.append(PaletteMasks(folder.path / output.MASKS))
    if request.rle:
        sinks.append(RleLines(folder.path / output.RLE))
    results = ResultFolder(folder.prepare, sinks)
    options = replace(model.manifest.inference, **request.propagation)
    with (
        model.stream(size=request.size, options=options, threads=request.threads, refine=request.refine) as stream,
        Progress(source.info.frame_count, shown=not (request.quiet or request.json)) as progress,
    ):
        report = Pipeline(
            source,
            tracker=stream,
            annotations=annotations.masks,
            sink=results,
            on_result=progress.advance,
        ).run()
    return report, results.started


def _unused(annotations: Annotations, report: PipelineReport) -> list[str]:
    if report.interrupted or report.error is not None:
        return []
    late = sorted(index for index in annotations.masks if index > report.last_index)
    return [f"the annotation of frame {index} was not used: frame {report.last_index} is the last" for index in late]


def _summary(
    request: Request,
    model: Model,
    info: SourceInfo,
    annotations: Annotations,
    report: PipelineReport,
    warnings: list[str],
) -> dict[str, Any]:
    names = {output.VIDEO: request.video, output.MASKS: request.png, output.RLE: request.rle, output.SUMMARY: True}
    return {
        "schema": 1,
        "source": info.name,
        "out": str(request.out),
        "files": [name for name, wanted in names.items() if wanted and report.frames],
        "frames": report.frames,
        "frame_count": info.frame_count,
        "dropped": report.dropped,
        "width": info.width,
        "height": info.height,
        "object_ids": list(annotations.object_ids),
        "complete": report.error is None and not report.interrupted,
        "interrupted": report.interrupted,
        "error": None if report.error is None else str(report.error),
        "warnings": warnings,
        "fps": round(report.fps, 3),
        "wall_s": round(report.wall_s, 3),
        "stages_ms": {name: {"p50": time.p50_ms, "p95": time.p95_ms} for name, time in report.stages.items()},
        "peak_memory_mb": peak_memory_mb(),
        "model": model.describe(),
    }
