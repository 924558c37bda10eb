"""``vos-bench``: check, measure, show, write."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console

from vosrt import errors
from vosrt.benchmark import machine
from vosrt.benchmark.budget import command_for, fitting
from vosrt.benchmark.cases import Grid
from vosrt.benchmark.clip import write_clip
from vosrt.benchmark.nvml import open_gpu
from vosrt.benchmark.output import RESULTS, findings, tables_of, write_rows
from vosrt.benchmark.plots import require_matplotlib, write_plots
from vosrt.benchmark.runner import Settings, measure_group, measure_rates
from vosrt.benchmark.worker import WorkerFailedError
from vosrt.cli.app import EXIT_INTERRUPTED
from vosrt.engines.select import ENGINE_NAMES
from vosrt.errors import InputError, MissingExtraError, OptionError, OutputError, WorkError
from vosrt.video.source import is_live, open_source

EXIT_FAILED = 1


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; see ``vos-bench --help``."""

    grid: Grid
    bundle: str
    source: str | None
    threads: int
    frames: int
    seconds: float
    rounds: int
    warm_up: int
    quiet_cores: float
    budget_ms: float | None
    out: Path | None
    plot: bool
    json: bool


def measure(request: Request) -> int:
    """Run one request.

    Returns:
        The exit code.

    Raises:
        VosrtError: before anything was measured.
    """
    groups = request.grid.groups()
    _check(request)
    threads = request.threads or machine.usable_cores()
    console = Console(stderr=True)
    rows: list[dict[str, Any]] = []
    failures: list[WorkerFailedError] = []
    interrupted = False
    with (
        tempfile.TemporaryDirectory(prefix="vosrt-bench-") as folder,
        console.status("measuring this machine") as status,
    ):
        header = _header(threads, request.quiet_cores)
        settings = Settings(
            source=_rendered(Path(folder)) if request.source is None else lambda _: str(request.source),
            bundle=request.bundle,
            threads=threads,
            rounds=request.rounds,
            frames=request.frames,
            seconds=request.seconds,
            warm_up=request.warm_up,
            quiet_cores=request.quiet_cores,
        )
        try:
            for group in groups:
                measured, failed = measure_group(group, settings, status.update)
                rows += measured
                failures += failed
        except KeyboardInterrupt:
            interrupted = True
    for failure in failures if rows else ():
        print(failure, file=sys.stderr)
    if rows:
        _show(request, header, rows)
    if interrupted:
        print(f"interrupted: {len(rows)} settings were measured", file=sys.stderr)
        return EXIT_INTERRUPTED
    if not rows:
        raise _nothing_ran(failures)
    return EXIT_FAILED if request.budget_ms is not None and not fitting(rows, request.budget_ms) else 0


def _check(request: Request) -> None:
    for name in request.grid.engine:
        if name not in ENGINE_NAMES:
            raise OptionError(f"--engine is {name!r}; expected some of {', '.join(ENGINE_NAMES[:-1])}")
    least = {"--frames": request.frames, "--rounds": request.rounds}
    for option, value in least.items():
        if value < 1:
            raise OptionError(f"{option} is {value}; expected 1 or more")
    not_negative = {
        "--threads": request.threads,
        "--warm-up": request.warm_up,
        "--seconds": request.seconds,
        "--quiet-cores": request.quiet_cores,
    }
    for option, number in not_negative.items():
        if not number >= 0:
            raise OptionError(f"{option} is {number}; expected 0 or more")
    if request.budget_ms is not None and not request.budget_ms > 0:
        raise OptionError(f"--budget-ms is {request.budget_ms}; expected more than 0 milliseconds")
    if request.source is not None:
        if is_live(request.source):
            raise OptionError(f"--source is {request.source}; a camera sets its own pace, give a file or folder")
        open_source(request.source).close()
    if request.out is not None:
        if request.plot:
            require_matplotlib()
        try:
            request.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{request.out}: {error.strerror}; expected a folder to write into") from error


def _header(threads: int, quiet_cores: float) -> dict[str, Any]:
    gpu, why_not = open_gpu()
    return {
        "machine": machine.describe(),
        "rates": measure_rates(threads, quiet_cores),
        "gpu": why_not if gpu is None else {"name": gpu.name, "driver": gpu.driver},
    }


def _rendered(folder: Path) -> Callable[[int], str]:
    @cache
    def clip(size: int) -> str:
        path = folder / f"{size}.mp4"
        write_clip(path, size)
        return str(path)

    return clip


def _show(request: Request, header: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    written: list[Path] = []
    if request.out is not None:
        written.append(request.out / RESULTS)
        write_rows(written[0], header, rows)
        if request.plot:
            written += write_plots(request.out, header, rows)
    if request.json:
        advice = [] if request.budget_ms is None else [_fit_as_json(rows, request.budget_ms)]
        for document in [header, *rows, *advice]:
            print(json.dumps(document))
        return
    console = Console()
    console.print(_machine_line(header), highlight=False)
    console.print(tables_of(rows))
    for line in [*findings(rows), *_advice(rows, request.budget_ms), *(f"written: {path}" for path in written)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _machine_line(header: dict[str, Any]) -> str:
    what, rates, gpu = header["machine"], header["rates"], header["gpu"]
    bf16 = "not measured" if rates["gemm_bf16_gflop_s"] is None else f"{rates['gemm_bf16_gflop_s']:.0f}"
    disturbed = f" (while others took {rates['foreign_cores']:.2f} cores)" if rates["disturbed"] else ""
    return (
        f"{what['processor']}, {what['cores']} cores, {rates['threads']} threads used; "
        f"GEMM {rates['gemm_fp32_gflop_s']:.0f} GFLOP/s fp32, {bf16} bf16; "
        f"copy {rates['copy_gb_s']:.0f} GB/s{disturbed}; GPU {gpu if isinstance(gpu, str) else gpu['name']}\n"
        "milliseconds per stage (median); 'others' is how many cores other processes took"
    )


def _advice(rows: list[dict[str, Any]], budget_ms: float | None) -> list[str]:
    if budget_ms is None:
        return []
    fit = fitting(rows, budget_ms)
    if not fit:
        fastest = min(rows, key=lambda row: float(row["stages_ms"]["frame"]["p95"]))
        took = fastest["stages_ms"]["frame"]["p95"]
        return [
            f"nothing measured fits {budget_ms:g} ms: the fastest takes {took:.1f} ms (p95) with "
            f"{command_for(fastest)}; try smaller --size or --context"
        ]
    return [f"fits {budget_ms:g} ms a frame (p95), best first:"] + [
        f"  {row['stages_ms']['frame']['p95']:.1f} ms, {row['objects']} objects: {command_for(row)}" for row in fit
    ]


def _fit_as_json(rows: list[dict[str, Any]], budget_ms: float) -> dict[str, Any]:
    return {"budget_ms": budget_ms, "fits": [command_for(row) for row in fitting(rows, budget_ms)]}


def _nothing_ran(failures: list[WorkerFailedError]) -> Exception:
    """The first failure as the kind of error that it was."""
    first = failures[0]
    wrong_input = issubclass(getattr(errors, first.kind, WorkError), InputError | MissingExtraError)
    return (InputError if wrong_input else WorkError)(f"no setting could be measured; {first}")
