"""The command ``vos-bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from vosrt.cli.app import entry, program
from vosrt.cli.options import (
    RESULTS,
    Bundle,
    Context,
    Device,
    Engine,
    Json,
    Out,
    PrecisionName,
    Threads,
    like,
    request_from,
)
from vosrt.types import ModelPrecision

_app = program()

_GRID, _HOW = "What to measure (commas separate values; every combination is measured)", "How"
_BUDGET = {"size": "240,360,480", "context": "5,10,20", "objects": "1,5"}  # tried when only a budget is set


@_app.command(hidden=True)
def bench(
    *,
    size: Annotated[
        str | None, typer.Option(help="Short sides in pixels. [dim]Default: 480.", rich_help_panel=_GRID)
    ] = None,
    objects: Annotated[
        str | None, typer.Option(help="Numbers of objects. [dim]Default: 1.", rich_help_panel=_GRID)
    ] = None,
    context: Annotated[
        str | None,
        like(Context, "Recent frames that are attended. [dim]Default: as the bundle says.", rich_help_panel=_GRID),
    ] = None,
    engine: Annotated[str, like(Engine, rich_help_panel=_GRID)] = "auto",
    precision: Annotated[str, like(PrecisionName, rich_help_panel=_GRID)] = "auto",
    isa: Annotated[
        str,
        typer.Option(help="Paths of the core: auto, generic, avx2, avx512, avx512bf16, amx.", rich_help_panel=_GRID),
    ] = "auto",
    device: Annotated[str, like(Device, rich_help_panel=_GRID)] = "cpu",
    bundle: Annotated[str, like(Bundle, rich_help_panel=_HOW)] = "default",
    clip: Annotated[
        str | None, typer.Option(help="Your own clip. [dim]Default: one rendered at every size.", rich_help_panel=_HOW)
    ] = None,
    threads: Annotated[int, like(Threads, rich_help_panel=_HOW)] = 0,
    frames: Annotated[int, typer.Option(help="Timed frames a round, at least.", rich_help_panel=_HOW)] = 10,
    seconds: Annotated[float, typer.Option(help="Length of a round, at least.", rich_help_panel=_HOW)] = 2.0,
    rounds: Annotated[int, typer.Option(help="Rounds that count.", rich_help_panel=_HOW)] = 3,
    warm_up: Annotated[int, typer.Option(help="Untimed frames after the memory is full.", rich_help_panel=_HOW)] = 5,
    quiet_cores: Annotated[
        float,
        typer.Option(help="Repeat a round in which other processes took more cores than this.", rich_help_panel=_HOW),
    ] = 0.15,
    budget_ms: Annotated[
        float | None,
        typer.Option(
            help="Suggest the settings whose frames take no longer (p95). By itself it tries "
            f"{_BUDGET['size']} pixels, context {_BUDGET['context']}, {_BUDGET['objects']} objects.",
            rich_help_panel=RESULTS,
        ),
    ] = None,
    out: Annotated[Path | None, like(Out, "Folder for bench.jsonl and plots.")] = None,
    submit_row: Annotated[
        Path | None,
        typer.Option(
            "--submit-row",
            help="Append a line about this machine to a table of devices, such as benchmarks/results/devices.jsonl.",
            metavar="FILE",
            rich_help_panel=RESULTS,
        ),
    ] = None,
    plot: Annotated[bool, typer.Option(help="Draw plots into the folder.", rich_help_panel=RESULTS)] = True,
    json: Annotated[bool, like(Json, "Print JSON lines and nothing else.", rich_help_panel=RESULTS)] = False,
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
