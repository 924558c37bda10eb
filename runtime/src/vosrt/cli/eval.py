"""The command ``vos-eval``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, cast

import typer

from vosrt.cli.app import ENGINE_HELP, call
from vosrt.types import Precision

_app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="How good is it? Run a model over a data set, score the masks, compare runs; or, without annotations, "
    "follow an object there and back.",
)

_WHAT, _MODEL, _PROPAGATION, _RESULTS = (
    "What to evaluate",
    "Model",
    "Propagation (default: as the bundle says)",
    "Results",
)

Kind = Annotated[str, typer.Option("--dataset", help="Layout and protocol: davis16, davis17, ytvos or vip.")]
Names = Annotated[
    str, typer.Option("--sequences", help="Only these, separated by commas.", metavar="A,B", rich_help_panel=_WHAT)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.", rich_help_panel=_RESULTS)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.", rich_help_panel=_RESULTS)]
Engine = Annotated[str, typer.Option(help=ENGINE_HELP, rich_help_panel=_MODEL)]
PrecisionName = Annotated[str, typer.Option("--precision", help="auto, fp32 or bf16.", rich_help_panel=_MODEL)]
Size = Annotated[
    int | None,
    typer.Option(help="Working size: short side in pixels. [dim]Default: as the bundle says.", rich_help_panel=_MODEL),
]


@_app.command()
def run(
    path: Annotated[Path, typer.Argument(help="The data set's folder, e.g. DAVIS, or valid of YouTube-VOS.")],
    *,
    dataset: Kind,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the masks.", rich_help_panel=_RESULTS)] = Path(
        "vosrt-results"
    ),
    sequences: Names = "",
    bundle: Annotated[
        str,
        typer.Option("--bundle", "-b", help="default, fast, or a folder made by vos-export.", rich_help_panel=_MODEL),
    ] = "default",
    engine: Engine = "auto",
    precision: PrecisionName = "auto",
    size: Size = None,
    jobs: Annotated[int, typer.Option(help="Sequences at once; 0 is one per four cores.", rich_help_panel=_MODEL)] = 0,
    context: Annotated[
        int | None, typer.Option(help="Recent frames that are attended.", rich_help_panel=_PROPAGATION)
    ] = None,
    radius: Annotated[
        float | None,
        typer.Option(help="How far an object may move, in cells of 8 pixels.", rich_help_panel=_PROPAGATION),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Neighbours per cell.", rich_help_panel=_PROPAGATION)] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of the softmax over the neighbours.", rich_help_panel=_PROPAGATION)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove the masks of an earlier run first.", rich_help_panel=_RESULTS)
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Segment a data set; run it again to go on after a crash or Ctrl-C."""
    from vosrt.cli.evaluate import segment_dataset
    from vosrt.evaluation.layouts import open_dataset
    from vosrt.evaluation.running import RunRequest

    given = {"context": context, "radius": radius, "top_k": top_k, "temperature": temperature}
    request = RunRequest(
        dataset=open_dataset(dataset, path, _split(sequences)),
        out=out,
        bundle=bundle,
        engine=engine,
        precision=cast(Precision, precision),
        size=size,
        propagation={name: value for name, value in given.items() if value is not None},
        jobs=jobs,
        overwrite=overwrite,
    )
    return segment_dataset(request, quiet=quiet, as_json=json)


@_app.command()
def score(
    results: Annotated[Path, typer.Argument(help="Folder of masks, of vos-eval run or of any other program.")],
    path: Annotated[Path, typer.Argument(help="The data set's folder.")],
    *,
    dataset: Kind,
    sequences: Names = "",
    partial: Annotated[
        bool, typer.Option("--partial", help="Score what is there, though sequences are missing.")
    ] = False,
    jobs: Annotated[int, typer.Option(help="Sequences at once; 0 is one per core.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the tables. [dim]Default: RESULTS.", rich_help_panel=_RESULTS),
    ] = None,
    html: Annotated[bool, typer.Option(help="report.html, one file with plots and pictures.")] = True,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Score masks against annotations: J, F, recall, decay and stability per object; mIoU for VIP."""
    from vosrt.cli.evaluate import ScoreRequest, score_results
    from vosrt.evaluation.layouts import open_dataset

    request = ScoreRequest(
        results=results,
        dataset=open_dataset(dataset, path, _split(sequences)),
        out=out or results,
        partial=partial,
        jobs=jobs,
        html=html,
        quiet=quiet,
        json=json,
    )
    return score_results(request)


@_app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders (or their scores.json) that were scored; the first is the baseline.")
    ],
    *,
    json: Json = False,
) -> int:
    """Put runs side by side, with the significance of their differences over sequences."""
    from vosrt.cli.evaluate import compare_results

    return compare_results(runs, as_json=json)


@_app.command()
def cycle(
    clip: Annotated[str, typer.Argument(help="Video file or folder of frames.")],
    *,
    mask: Annotated[
        list[str] | None,
        typer.Option(help="As for [b]vos-run[/b]. Repeatable.", metavar="[N:]FILE", rich_help_panel=_WHAT),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(help="As for [b]vos-run[/b]. Repeatable.", metavar="X,Y,W,H", rich_help_panel=_WHAT),
    ] = None,
    polygon: Annotated[
        list[str] | None,
        typer.Option(help="As for [b]vos-run[/b]. Repeatable.", metavar="[N:]JSON", rich_help_panel=_WHAT),
    ] = None,
    frames: Annotated[int, typer.Option(help="Follow at most so many frames.", rich_help_panel=_WHAT)] = 300,
    turns: Annotated[int, typer.Option(help="Ways back, evenly spread over the clip.", rich_help_panel=_WHAT)] = 4,
    bundle: Annotated[
        list[str] | None,
        typer.Option(help="As for [b]vos-run[/b]. Repeat it to compare models.", rich_help_panel=_MODEL),
    ] = None,
    engine: Engine = "auto",
    precision: PrecisionName = "auto",
    size: Size = None,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Compare models on your own clip without annotations: follow the object forward, then back to where it was marked.

    100 is an object that comes back exactly as it was marked. A mask that never moves does so too: look at the masks.
    """
    from vosrt.cli.cycle import CycleRequest, measure_cycles
    from vosrt.video.prompts import Prompts

    request = CycleRequest(
        clip=clip,
        prompts=Prompts(masks=mask or (), boxes=box or (), polygons=polygon or ()),
        bundles=tuple(bundle or ("default",)),
        frames=frames,
        turns=turns,
        engine=engine,
        precision=cast(Precision, precision),
        size=size,
        quiet=quiet,
        json=json,
    )
    return measure_cycles(request)


def main(arguments: list[str] | None = None) -> int:
    """Run ``vos-eval``.

    Args:
        arguments: of the command line, without the program; None takes ``sys.argv``.

    Returns:
        The exit code: 0, 1 (the work failed), 2 (wrong input) or 130 (interrupted).
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    return call(_app, arguments or ["--help"], "vos-eval")


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]
