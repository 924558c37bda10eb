"""``vos-bench``: check, measure, show, write."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vosrt import errors
from vosrt._files import check_writable, locked
from vosrt._results import check_replaceable, files_beside
from vosrt.bench import machine
from vosrt.bench.budget import command_for, fitting
from vosrt.bench.cases import Grid
from vosrt.bench.clip import write_clip
from vosrt.bench.device_row import add_row, check_table, device_row
from vosrt.bench.nvml import open_gpu
from vosrt.bench.output import RESULTS, findings, tables_of, write_rows
from vosrt.bench.plots import PLOTS, require_matplotlib, write_plots
from vosrt.bench.rapl import open_packages
from vosrt.bench.runner import Settings, measure_group, measure_rates
from vosrt.bench.worker import WorkerFailedError
from vosrt.cli.app import EXIT_FAILED, EXIT_INTERRUPTED
from vosrt.console import note, say, say_json, show, status
from vosrt.engines.select import check_name
from vosrt.errors import InputError, MissingExtraError, OptionError, WorkError
from vosrt.text import counted
from vosrt.video.source import is_live, open_source


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """Options of the command; see ``vos-bench --help``."""

    grid: Grid
    bundle: str
    clip: str | None
    threads: int
    frames: int
    seconds: float
    rounds: int
    warm_up: int
    quiet_cores: float
    budget_ms: float | None
    out: Path | None
    submit_row: Path | None
    plot: bool
    json: bool


def measure(request: BenchRequest) -> int:
    """Run one request.

    Returns:
        The exit code.

    Raises:
        VosrtError: before anything was measured.
    """
    groups = request.grid.groups()
    _check(request)
    threads = request.threads or machine.usable_cores()
    rows: list[dict[str, Any]] = []
    failures: list[WorkerFailedError] = []
    interrupted = False
    with (
        tempfile.TemporaryDirectory(prefix="vosrt-bench-") as folder,
        status("measuring this machine") as update,
    ):
        header = _header(threads, request.quiet_cores)
        settings = Settings(
            source=_rendered(Path(folder)) if request.clip is None else lambda _: str(request.clip),
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
                measured, failed = measure_group(group, settings, update)
                rows += measured
                failures += failed
        except KeyboardInterrupt:
            interrupted = True
    for failure in failures if rows else ():
        note(str(failure))
    if rows:
        _show(request, header, rows)
    if interrupted:
        note(f"interrupted: {len(rows)} settings were measured")
        return EXIT_INTERRUPTED
    if not rows:
        raise _nothing_ran(failures)
    return EXIT_FAILED if request.budget_ms is not None and not fitting(rows, request.budget_ms) else 0


def _check(request: BenchRequest) -> None:
    for name in request.grid.engine:
        check_name(name, "--engine")
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
    if request.submit_row is not None:
        settings = sum(map(len, request.grid.groups()))
        if settings != 1:
            raise OptionError(
                f"--submit-row is for one setting; {settings} are to be measured: leave out their options"
            )
        check_table(request.submit_row)
    if request.clip is not None:
        if is_live(request.clip):
            raise OptionError(f"--clip is {request.clip}; a camera sets its own pace, give a file or folder")
        open_source(request.clip).close()
    if request.out is not None:
        if request.plot:
            require_matplotlib()
        if check_writable(request.out):
            check_replaceable(request.out, [RESULTS, *(PLOTS if request.plot else ())])


def _header(threads: int, quiet_cores: float) -> dict[str, Any]:
    gpu, why_not = open_gpu()
    return {
        "machine": machine.describe(),
        "rates": measure_rates(threads, quiet_cores),
        "gpu": why_not if gpu is None else {"name": gpu.name, "driver": gpu.driver},
        "energy": open_packages()[1] or "RAPL",
    }


def _rendered(folder: Path) -> Callable[[int], str]:
    @cache
    def clip(size: int) -> str:
        path = folder / f"{size}.mp4"
        write_clip(path, size)
        return str(path)

    return clip


def _show(request: BenchRequest, header: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    written: list[Path] = []
    if request.out is not None:
        with locked(request.out), files_beside(request.out, "vos-bench") as target:

            def write(path: Path, data: bytes) -> None:
                target.write(path.name, data)

            written.append(request.out / RESULTS)
            write_rows(written[0], header, rows, write)
            if request.plot:
                written += write_plots(request.out, header, rows, write)
    if request.submit_row is not None:
        add_row(request.submit_row, device_row(header, rows[0]))
        written.append(request.submit_row)
    if request.json:
        advice = [] if request.budget_ms is None else [_fit_as_json(rows, request.budget_ms)]
        for document in [header, *rows, *advice]:
            say_json(document)
        return
    show(_machine_line(header), *tables_of(rows))
    for line in [*findings(rows), *_advice(rows, request.budget_ms), *(f"written: {path}" for path in written)]:
        say(line)


def _machine_line(header: dict[str, Any]) -> str:
    what, rates, gpu = header["machine"], header["rates"], header["gpu"]
    bf16 = "not measured" if rates["gemm_bf16_gflop_s"] is None else f"{rates['gemm_bf16_gflop_s']:.0f}"
    disturbed = f" (while others took {rates['foreign_cores']:.2f} cores)" if rates["disturbed"] else ""
    return (
        f"{what['processor']}, {counted(what['cores'], 'core')}, {counted(rates['threads'], 'thread')} used; "
        f"GEMM {rates['gemm_fp32_gflop_s']:.0f} GFLOP/s fp32, {bf16} bf16; "
        f"copy {rates['copy_gb_s']:.0f} GB/s{disturbed}; GPU {gpu if isinstance(gpu, str) else gpu['name']}; "
        f"energy of the processor: {header['energy']}\n"
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
