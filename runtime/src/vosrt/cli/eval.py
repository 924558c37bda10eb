"""The command ``vos-eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vosrt.cli.app import entry, program
from vosrt.cli.options import (
    MODEL,
    WHAT,
    Boxes,
    Bundle,
    Context,
    Engine,
    Isolated,
    Json,
    Masks,
    Out,
    Overwrite,
    Polygons,
    PrecisionName,
    ProtocolSize,
    Quiet,
    Radius,
    Sequences,
    Size,
    Temperature,
    TopK,
    given,
    like,
    parse_size,
    request_from,
    split_names,
)

_app = program(
    "How good is it? Run a model over a data set, score the masks, compare runs; or, without annotations, follow an "
    "object there and back."
)

Kind = Annotated[str, typer.Option("--dataset", help="Layout and protocol: davis16, davis17, ytvos or vip.")]


@_app.command()
def run(
    path: Annotated[Path, typer.Argument(help="The data set's folder, e.g. DAVIS, or valid of YouTube-VOS.")],
    *,
    dataset: Kind,
    out: Annotated[Path, like(Out, "Folder for the masks.")] = Path("vosrt-results"),
    sequences: Sequences = None,
    bundle: Bundle = "default",
    engine: Engine = "auto",
    precision: PrecisionName = "auto",
    isolated: Isolated = False,
    size: ProtocolSize = None,
    jobs: Annotated[int, typer.Option(help="Sequences at once; 0 is one per four cores.", rich_help_panel=MODEL)] = 0,
    context: Context = None,
    radius: Radius = None,
    top_k: TopK = None,
    temperature: Temperature = None,
    overwrite: Annotated[bool, like(Overwrite, "Remove the masks of an earlier run first.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Segment a data set; run it again to go on after a crash or Ctrl-C."""
    arguments = dict(locals())
    from vosrt.cli.evaluate import segment_dataset
    from vosrt.evaluation.layouts import open_dataset
    from vosrt.evaluation.running import RunRequest

    request = request_from(
        RunRequest,
        arguments,
        dataset=open_dataset(dataset, path, split_names(sequences)),
        propagation=given(context=context, radius=radius, top_k=top_k, temperature=temperature),
    )
    return segment_dataset(request, quiet=quiet, as_json=json)


@_app.command()
def score(
    results: Annotated[Path, typer.Argument(help="Folder of masks, of vos-eval run or of any other program.")],
    path: Annotated[Path, typer.Argument(help="The data set's folder.")],
    *,
    dataset: Kind,
    sequences: Sequences = None,
    partial: Annotated[bool, typer.Option("--partial", help="Score what can be scored and name the rest.")] = False,
    jobs: Annotated[int, typer.Option(help="Sequences at once; 0 is one per core.")] = 0,
    out: Annotated[Path | None, like(Out, "Folder for the tables. [dim]Default: RESULTS.")] = None,
    html: Annotated[bool, typer.Option(help="report.html, one file with plots and pictures.")] = True,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Score masks against annotations: J, F, recall, decay and stability per object; mIoU for VIP."""
    arguments = dict(locals())
    from vosrt.cli.evaluate import ScoreRequest, open_scored, score_results

    scored = open_scored(dataset, path, split_names(sequences), results)
    return score_results(request_from(ScoreRequest, arguments, dataset=scored, out=out or results))


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
    mask: Masks = None,
    box: Boxes = None,
    polygon: Polygons = None,
    frames: Annotated[int, typer.Option(help="Follow at most so many frames.", rich_help_panel=WHAT)] = 300,
    turns: Annotated[int, typer.Option(help="Ways back, evenly spread over the clip.", rich_help_panel=WHAT)] = 4,
    bundle: Annotated[list[str] | None, like(Bundle, "As for [b]vos-run[/b]. Repeat it to compare models.")] = None,
    engine: Engine = "auto",
    precision: PrecisionName = "auto",
    size: Size = None,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Compare models on your own clip without annotations: follow the object forward, then back to where it was marked.

    100 is an object that comes back exactly as it was marked. A mask that never moves does so too: look at the masks.
    """
    arguments = dict(locals())
    from vosrt.cli.cycle import CycleRequest, measure_cycles
    from vosrt.video.prompts import Prompts

    request = request_from(
        CycleRequest,
        arguments,
        prompts=Prompts(masks=mask or (), boxes=box or (), polygons=polygon or ()),
        bundles=tuple(bundle or ("default",)),
        size=parse_size(size),
    )
    return measure_cycles(request)


main = entry(_app, "vos-eval")
