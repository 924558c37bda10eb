"""The command ``vos-bench``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, cast

import typer

from vosrt.cli.app import ENGINE_HELP, call
from vosrt.types import Precision

_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")

_GRID, _HOW, _RESULTS = "What to measure (commas separate values; every combination is measured)", "How", "Results"
_BUDGET = {"size": "240,360,480", "context": "5,10,20", "objects": "1,5"}  # tried where a budget is all that is given


@_app.command()
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
        typer.Option(help="Recent frames that are attended. [dim]Default: as the bundle says.", rich_help_panel=_GRID),
    ] = None,
    engine: Annotated[str, typer.Option(help=ENGINE_HELP, rich_help_panel=_GRID)] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16.", rich_help_panel=_GRID)] = "auto",
    isa: Annotated[
        str,
        typer.Option(help="Paths of the core: auto, generic, avx2, avx512, avx512bf16, amx.", rich_help_panel=_GRID),
    ] = "auto",
    device: Annotated[
        str, typer.Option(help="Where the core runs: cpu, cuda or cuda:N.", rich_help_panel=_GRID)
    ] = "cpu",
    bundle: Annotated[
        str, typer.Option(help="default, fast, or a folder made by vos-export.", rich_help_panel=_HOW)
    ] = "default",
    source: Annotated[
        str | None, typer.Option(help="Your own clip. [dim]Default: one rendered at every size.", rich_help_panel=_HOW)
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 uses every core.", rich_help_panel=_HOW)] = 0,
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
            rich_help_panel=_RESULTS,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for bench.jsonl and plots.", rich_help_panel=_RESULTS)
    ] = None,
    plot: Annotated[bool, typer.Option(help="Draw plots into the folder.", rich_help_panel=_RESULTS)] = True,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON lines and nothing else.", rich_help_panel=_RESULTS)
    ] = False,
) -> int:
    """Measure latency per stage, FPS and memory on this machine, one process per setting.

    Stages run one after the other, so that they can be told apart; vos-run overlaps them.
    """
    from vosrt.benchmark.cases import Grid, integers, names
    from vosrt.cli.measure import Request, measure

    usual = {"size": "480", "objects": "1"} if budget_ms is None else _BUDGET
    context = context or usual.get("context")
    request = Request(
        grid=Grid(
            size=integers("--size", size or usual["size"]),
            objects=integers("--objects", objects or usual["objects"]),
            context=[None] if context is None else integers("--context", context),
            engine=names(engine),
            precision=cast(list[Precision], names(precision)),
            isa=names(isa),
            device=names(device),
        ),
        bundle=bundle,
        source=source,
        threads=threads,
        frames=frames,
        seconds=seconds,
        rounds=rounds,
        warm_up=warm_up,
        quiet_cores=quiet_cores,
        budget_ms=budget_ms,
        out=out,
        plot=plot,
        json=json,
    )
    return measure(request)


def main(arguments: list[str] | None = None) -> int:
    """Run ``vos-bench``.

    Args:
        arguments: of the command line, without the program; None takes ``sys.argv``.

    Returns:
        The exit code: 0, 1 (the work failed, or nothing fits the budget), 2 (wrong input) or 130 (interrupted).
    """
    return call(_app, sys.argv[1:] if arguments is None else arguments, "vos-bench")
