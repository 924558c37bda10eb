"""The command ``vos-bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

from vosrt.cli import options as opt
from vosrt.cli.app import entry, program
from vosrt.cli.options import RESULTS, like, option, request_from
from vosrt.types import ModelPrecision

_app = program()

_GRID, _HOW = "What to measure (commas separate values; every combination is measured)", "How"
_BUDGET = {"size": "240,360,480", "context": "5,10,20", "objects": "1,5"}  # tried when only a budget is set


@_app.command(hidden=True)
def bench(
    *,
    size: Annotated[str | None, option("Short sides in pixels. [dim]Default: 480.", _GRID)] = None,
    objects: Annotated[str | None, option("Numbers of objects. [dim]Default: 1.", _GRID)] = None,
    context: Annotated[
        str | None, like(opt.Context, "Recent frames that are attended. [dim]Default: as the bundle says.", _GRID)
    ] = None,
    engine: Annotated[str, like(opt.Engine, "", _GRID)] = "auto",
    precision: Annotated[str, like(opt.PrecisionName, "", _GRID)] = "auto",
    isa: Annotated[
        str, option("Paths of the core: auto, generic, avx2, avx512, avx512bf16, amx, neon.", _GRID)
    ] = "auto",
    device: Annotated[str, like(opt.Device, "", _GRID)] = "cpu",
    bundle: Annotated[str, like(opt.Bundle, "", _HOW)] = "default",
    clip: Annotated[str | None, option("Your own clip. [dim]Default: one rendered at every size.", _HOW)] = None,
    threads: Annotated[int, like(opt.Threads, "", _HOW)] = 0,
    frames: Annotated[int, option("Timed frames a round, at least.", _HOW)] = 10,
    seconds: Annotated[float, option("Length of a round, at least.", _HOW)] = 2.0,
    rounds: Annotated[int, option("Rounds that count.", _HOW)] = 3,
    warm_up: Annotated[int, option("Untimed frames after the memory is full.", _HOW)] = 5,
    quiet_cores: Annotated[
        float, option("Repeat a round in which other processes took more cores than this.", _HOW)
    ] = 0.15,
    budget_ms: Annotated[
        float | None,
        option(
            "Suggest the settings whose frames take no longer (p95). By itself it tries "
            f"{_BUDGET['size']} pixels, context {_BUDGET['context']}, {_BUDGET['objects']} objects.",
            RESULTS,
        ),
    ] = None,
    out: Annotated[Path | None, like(opt.Out, "Folder for bench.jsonl and plots.")] = None,
    submit_row: Annotated[
        Path | None,
        option(
            "Append a line about this machine to a table of devices, such as benchmarks/results/devices.jsonl.",
            RESULTS,
            "--submit-row",
            metavar="FILE",
        ),
    ] = None,
    plot: Annotated[bool, option("Draw plots into the folder.", RESULTS)] = True,
    json: Annotated[bool, like(opt.Json, "Print JSON lines and nothing else.", RESULTS)] = False,
) -> int:
    """Measure latency per stage, FPS and memory on this machine, one process per setting.

    Stages run one after the other, which separates their times; vos-run overlaps them.
    """
    arguments = dict(locals())
    from vosrt.bench.cases import Grid, integers, names
    from vosrt.cli.measure import BenchRequest, measure

    usual = {"size": "480", "objects": "1"} if budget_ms is None else _BUDGET
    context = context or usual.get("context")
    request = request_from(
        BenchRequest,
        arguments,
        grid=Grid(
            size=integers("--size", size or usual["size"]),
            objects=integers("--objects", objects or usual["objects"]),
            context=[None] if context is None else integers("--context", context),
            engine=names(engine),
            precision=cast(list[ModelPrecision], names(precision)),
            isa=names(isa),
            device=names(device),
        ),
    )
    return measure(request)


main = entry(_app, "vos-bench")
