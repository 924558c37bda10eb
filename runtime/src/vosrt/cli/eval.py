"""The command ``vos-eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vosrt.cli import options as opt
from vosrt.cli.app import entry, program
from vosrt.cli.options import MODEL, WHAT, given, like, option, parse_size, request_from, split_names

_app = program(
    "How good is it? Run a model over a data set, score the masks, compare runs; or, without annotations, follow an "
    "object there and back."
)

Kind = Annotated[str, option("Layout and protocol: davis16, davis17, ytvos or vip.", None, "--dataset")]


@_app.command()
def run(
    path: Annotated[Path, typer.Argument(help="The data set's folder, e.g. DAVIS, or valid of YouTube-VOS.")],
    *,
    dataset: Kind,
    out: Annotated[Path, like(opt.Out, "Folder for the masks.")] = Path("vosrt-results"),
    sequences: opt.Sequences = None,
    bundle: opt.Bundle = "default",
    engine: opt.Engine = "auto",
    precision: opt.PrecisionName = "auto",
    isolated: opt.Isolated = False,
    size: opt.ProtocolSize = None,
    jobs: Annotated[int, option("Sequences at once; 0 is one per four cores.", MODEL)] = 0,
    context: opt.Context = None,
    radius: opt.Radius = None,
    top_k: opt.TopK = None,
    temperature: opt.Temperature = None,
    overwrite: Annotated[bool, like(opt.Overwrite, "Remove the masks of an earlier run first.")] = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
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
    sequences: opt.Sequences = None,
    partial: Annotated[bool, option("Score what can be scored and name the rest.", None, "--partial")] = False,
    jobs: Annotated[int, option("Sequences at once; 0 is one per core.")] = 0,
    out: Annotated[Path | None, like(opt.Out, "Folder for the tables. [dim]Default: RESULTS.")] = None,
    html: Annotated[bool, option("report.html, one file with plots and pictures.")] = True,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
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
    json: opt.Json = False,
) -> int:
    """Put runs side by side, with the significance of their differences over sequences."""
    from vosrt.cli.evaluate import compare_results

    return compare_results(runs, as_json=json)


@_app.command()
def cycle(
    clip: Annotated[str, typer.Argument(help="Video file or folder of frames.")],
    *,
    mask: opt.Masks = None,
    box: opt.Boxes = None,
    polygon: opt.Polygons = None,
    frames: Annotated[int, option("Follow at most so many frames.", WHAT)] = 300,
    turns: Annotated[int, option("Ways back, evenly spread over the clip.", WHAT)] = 4,
    bundle: Annotated[list[str] | None, like(opt.Bundle, "As for [b]vos-run[/b]. Repeat it to compare models.")] = None,
    engine: opt.Engine = "auto",
    precision: opt.PrecisionName = "auto",
    size: opt.Size = None,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
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
