"""The command ``vos-run``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vosrt.cli.app import entry, program
from vosrt.cli.options import (
    FURTHER,
    LOOKS,
    PROPAGATION,
    RESULTS,
    WHAT,
    Boxes,
    Bundle,
    Context,
    Device,
    Engine,
    Isolated,
    Json,
    Masks,
    Out,
    Overwrite,
    Points,
    Polygons,
    PrecisionName,
    Quiet,
    Radius,
    SegmenterFiles,
    Size,
    Temperature,
    Threads,
    TopK,
    given,
    parse_size,
    request_from,
)
from vosrt.console import say, say_json

if TYPE_CHECKING:
    from vosrt.cli.segment import Request
    from vosrt.video.overlay import OverlayStyle

_app = program()


@_app.command(hidden=True)
def run(
    source: Annotated[
        str,
        typer.Argument(help="Video, folder of frames, webcam 0, URL or -."),
    ],
    *,
    mask: Masks = None,
    points: Points = None,
    box: Boxes = None,
    polygon: Polygons = None,
    start: Annotated[int, typer.Option(help="First frame, from 0.", rich_help_panel=WHAT)] = 0,
    end: Annotated[int | None, typer.Option(help="Stop before this frame.", rich_help_panel=WHAT)] = None,
    size: Size = None,
    bundle: Bundle = "default",
    engine: Engine = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = 0,
    device: Device = "auto",
    isolated: Isolated = False,
    segmenter: SegmenterFiles = "",
    decoder: Annotated[
        str,
        typer.Option(
            help="auto, cpu or nvdec, which decodes a file on the GPU of --device.",
            rich_help_panel=FURTHER,
        ),
    ] = "auto",
    levels: Annotated[
        str,
        typer.Option(
            help="What is black and white in pictures of over 8 bits: auto (by the first frames), full or LO,HI.",
            metavar="LEVELS",
            rich_help_panel=FURTHER,
        ),
    ] = "auto",
    max_megapixels: Annotated[
        float, typer.Option(help="Refuse larger frames.", metavar="N", rich_help_panel=FURTHER)
    ] = 64.0,
    reconnect: Annotated[
        float,
        typer.Option(
            help="Try a live source that drops again for this many seconds.", metavar="SECONDS", rich_help_panel=FURTHER
        ),
    ] = 0.0,
    budget_ms: Annotated[
        float | None,
        typer.Option(
            help="Keep a frame's segmentation under so many ms, by smaller size and context while it runs.",
            metavar="MS",
            show_default=False,
            rich_help_panel=FURTHER,
        ),
    ] = None,
    direction: Annotated[
        str,
        typer.Option(
            help="From the marks: forward, backward or both. The last two take files.", rich_help_panel=FURTHER
        ),
    ] = "forward",
    context: Context = None,
    radius: Radius = None,
    top_k: TopK = None,
    temperature: Temperature = None,
    refine: Annotated[
        str,
        typer.Option(
            help="Rounds of mask refinement, 0 to 4, or off. [dim]Default: as the bundle says.",
            metavar="ROUNDS",
            rich_help_panel=PROPAGATION,
        ),
    ] = "default",
    out: Out,
    video: Annotated[bool, typer.Option(help="overlay.mp4, or overlay.webm.", rich_help_panel=RESULTS)] = True,
    codec: Annotated[
        str,
        typer.Option(help="Of the overlay: h264 (mp4), vp9 (webm) or av1 (mp4).", rich_help_panel=FURTHER),
    ] = "h264",
    png: Annotated[bool, typer.Option(help="masks/*.png with the DAVIS palette.", rich_help_panel=RESULTS)] = True,
    rle: Annotated[bool, typer.Option(help="masks.jsonl, COCO run-length encoding.", rich_help_panel=FURTHER)] = True,
    cutout: Annotated[
        str,
        typer.Option(
            help="The objects alone: png, mov (ProRes) or webm.",
            metavar="KIND",
            show_default=False,
            rich_help_panel=RESULTS,
        ),
    ] = "",
    polygons: Annotated[
        list[str] | None,
        typer.Option(
            help="coco, labelme, yolo, mot, cvat, label-studio.",
            metavar="KIND",
            rich_help_panel=RESULTS,
        ),
    ] = None,
    rerun: Annotated[
        Path | None,
        typer.Option(help="Recording for the Rerun viewer.", metavar="FILE", rich_help_panel=LOOKS),
    ] = None,
    min_area: Annotated[
        int,
        typer.Option(
            help="Remove parts of an object with fewer pixels.",
            metavar="PIXELS",
            show_default=False,
            rich_help_panel=LOOKS,
        ),
    ] = 0,
    fill_holes: Annotated[
        int,
        typer.Option(
            help="Fill holes of an object of at most so many pixels.",
            metavar="PIXELS",
            show_default=False,
            rich_help_panel=LOOKS,
        ),
    ] = 0,
    colour: Annotated[
        list[str] | None,
        typer.Option(
            "--colour",
            "--color",
            help="Of an object in the overlay: 2=orange, 2=#ff8800; without a number that of object 1. Repeatable.",
            metavar="[ID=]COLOUR",
            rich_help_panel=LOOKS,
        ),
    ] = None,
    opacity: Annotated[
        float | None,
        typer.Option(help="Of the tint, 0 (outlines only) to 1. [dim]Default: 0.45.", rich_help_panel=LOOKS),
    ] = None,
    ids: Annotated[
        bool | None,
        typer.Option(
            help="Write numbers on the objects. [dim]Default: where there are several.", rich_help_panel=LOOKS
        ),
    ] = None,
    overlay_size: Annotated[
        str | None,
        typer.Option(
            help="Short side to which larger overlays are shrunk, or native. [dim]Default: 1080.",
            metavar="PIXELS",
            rich_help_panel=LOOKS,
        ),
    ] = None,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with a run that was killed or interrupted.", rich_help_panel=RESULTS),
    ] = False,
    save_every: Annotated[
        float,
        typer.Option(
            help="Seconds between sessions that --resume goes on from; 0 saves none.", rich_help_panel=FURTHER
        ),
    ] = 30.0,
    preview: Annotated[
        bool,
        typer.Option("--preview", help="Write only first.jpg, the frame with its marks.", rich_help_panel=RESULTS),
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Follow the objects you mark in one frame through a whole video."""
    options = dict(locals())
    from vosrt.cli.segment import segment

    return segment(request_of(options))


def request_of(options: dict[str, Any]) -> Request:
    """Return the request that the options of `run` make, by the names of its arguments.

    Raises:
        OptionError: one of them is wrong in itself.
    """
    from vosrt.cli.results import Wanted
    from vosrt.cli.segment import Request
    from vosrt.video.cleaning import Cleaning
    from vosrt.video.prompts import Prompts

    its = SimpleNamespace(**options)
    return request_from(
        Request,
        options,
        prompts=Prompts(masks=its.mask or (), boxes=its.box or (), polygons=its.polygon or (), points=its.points or ()),
        size=parse_size(its.size),
        reconnect_s=its.reconnect,
        save_every_s=its.save_every,
        propagation=given(context=its.context, radius=its.radius, top_k=its.top_k, temperature=its.temperature),
        refine=int(its.refine) if its.refine.isdecimal() else its.refine,
        results=request_from(
            Wanted,
            options,
            cut_out=its.cutout,
            polygons=tuple(its.polygons or ()),
            style=_style(its.opacity, tuple(its.colour or ()), its.overlay_size),
            cleaning=Cleaning(its.min_area, its.fill_holes),
        ),
    )


def _style(opacity: float | None, colours: tuple[str, ...], size: str | None) -> OverlayStyle:
    from vosrt.video.overlay import OverlayStyle, parse_colours

    style = OverlayStyle(colours=parse_colours(colours))
    if opacity is not None:
        style = replace(style, opacity=opacity)
    short_side = parse_size(size, "--overlay-size")
    return style if short_side is None else replace(style, size=None if short_side == "native" else short_side)


# A clip of a batch has its own; the rest of the options is that of one run.
_PER_CLIP = {"source", "mask", "points", "box", "polygon", "start", "end", "preview", "overwrite", "reconnect"}


def _with_options_of_run(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options of ``vos-run SOURCE`` that it does not declare itself; it takes them as keywords."""
    own, shared = (inspect.signature(each, eval_str=True).parameters for each in (command, run))
    more = {name: each for name, each in shared.items() if name not in own and name not in _PER_CLIP}
    parameters = [*(each for each in own.values() if each.kind is not each.VAR_KEYWORD), *more.values()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ |= {name: run.__annotations__[name] for name in more}
    return command


@_app.command()
def demo(
    out: Out = Path("vosrt-demo"),
    engine: Engine = "auto",
    threads: Threads = 0,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Follow two balloons through a rendered clip."""
    from vosrt.cli.demo import CLIP, POLYGON, SIZE
    from vosrt.cli.segment import Request, segment
    from vosrt.video.prompts import Prompts

    request = Request(
        source=str(CLIP),
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
        say(f"\nOpen {out / request.results.video_name} in a browser or a video player to see the result.")
    return code


@_app.command()
@_with_options_of_run
def batch(
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Videos, folders, patterns, a .txt with a path per line, or a .csv with columns source, name, mask, "
            "points, box, polygon, start, end, direction.",
        ),
    ],
    *,
    marks: Annotated[
        Path | None,
        typer.Option(
            help="Folder with STEM.png, STEM.json or a folder STEM for each clip. [dim]Default: beside each clip.",
            metavar="FOLDER",
            rich_help_panel=WHAT,
        ),
    ] = None,
    out: Out,
    jobs: Annotated[int, typer.Option(help="Clips at once; 0 is one per two cores.")] = 0,
    threads: Annotated[
        int, typer.Option(help="CPU threads of each process; 0 shares out the cores.", rich_help_panel=FURTHER)
    ] = 0,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with a batch that was killed or interrupted.", rich_help_panel=RESULTS),
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
    **shared: Any,
) -> int:
    """Follow the objects of many clips, in parallel."""
    arguments = dict(locals())
    from vosrt.cli.batch import BatchRequest, run_batch

    defaults = {name: each.default for name, each in inspect.signature(run).parameters.items()}
    return run_batch(
        request_from(
            BatchRequest,
            arguments,
            workers=jobs,
            settings=shared,
            request=lambda own: request_of({**defaults, **shared, **own}),
        )
    )


@_app.command()
def explain(
    source: Annotated[str, typer.Argument(help="Video file or folder of frames.")],
    *,
    frame: Annotated[int, typer.Option(help="Frame to explain, after the first marks.", rich_help_panel=WHAT)],
    pixel: Annotated[str, typer.Option(help="Pixel to explain.", metavar="X,Y", rich_help_panel=WHAT)],
    mask: Masks = None,
    points: Points = None,
    box: Boxes = None,
    polygon: Polygons = None,
    start: Annotated[int, typer.Option(help="First frame, from 0.", rich_help_panel=WHAT)] = 0,
    size: Size = None,
    bundle: Bundle = "default",
    engine: Engine = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = 0,
    segmenter: SegmenterFiles = "",
    context: Context = None,
    radius: Radius = None,
    top_k: TopK = None,
    temperature: Temperature = None,
    out: Out,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Show which past cells voted for the label of a pixel."""
    options = dict(locals())
    from vosrt.cli.explain import explain_pixel, parse_pixel

    defaults = {name: each.default for name, each in inspect.signature(run).parameters.items()}
    return explain_pixel(request_of({**defaults, **options}), frame, parse_pixel(pixel))


@_app.command()
def ui(
    source: Annotated[str | None, typer.Argument(help="Video file or folder of frames to open.")] = None,
    *,
    root: Annotated[Path, typer.Option(help="Folder whose files the page may open.")] = Path("."),
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's own are open to others.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
    size: Size = None,
    bundle: Bundle = "default",
    engine: Engine = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = 0,
    device: Device = "auto",
    segmenter: SegmenterFiles = "",
    upload_mb: Annotated[int, typer.Option(help="Refuse larger uploads.", metavar="MB")] = 4096,
    cache_mb: Annotated[int, typer.Option(help="Disk space for frames, until the page ends.", metavar="MB")] = 8192,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    json: Json = False,
) -> int:
    """Mark, follow and correct objects in your browser."""
    arguments = dict(locals())
    from vosrt.cli.ui import PageRequest, serve

    return serve(request_from(PageRequest, arguments, size=parse_size(size)))


@_app.command()
def serve(
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's own need VOSRT_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8765,
    sessions: Annotated[int, typer.Option(help="Streams at once; further clients are sent away.", metavar="N")] = 16,
    workers: Annotated[int, typer.Option(help="Frames that are worked on at once.", metavar="N")] = 1,
    max_megapixels: Annotated[float, typer.Option(help="Refuse larger frames.", metavar="N")] = 16.0,
    idle: Annotated[
        float, typer.Option(help="Close a stream after this long without a message.", metavar="SECONDS")
    ] = 60.0,
    size: Size = None,
    bundle: Bundle = "default",
    engine: Engine = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = 0,
    device: Device = "cpu",
    json: Json = False,
) -> int:
    """Serve streams over WebSocket: frames in, masks out."""
    arguments = dict(locals())
    from vosrt.cli.serve import ServeRequest, serve_streams

    return serve_streams(request_from(ServeRequest, arguments, size=parse_size(size)))


@_app.command()
def doctor(
    json: Json = False,
) -> int:
    """List engines, kernels and codecs, and how to add more."""
    from vosrt.cli.doctor import examine, print_findings

    findings = examine()
    print_findings(findings, as_json=json)
    return 1 if any(finding.needed and not finding.found for finding in findings) else 0


@_app.command()
def licenses(
    json: Json = False,
) -> int:
    """List the licences of vosrt and of what it uses."""
    from vosrt.cli.licenses import installed

    packages = installed()
    if json:
        keys = ("name", "version", "licence", "remark")
        say_json({"packages": [dict(zip(keys, package, strict=True)) for package in packages]})
        return 0
    for name, version, licence, remark in packages:
        say(f"{name} {version}: {licence}{f' ({remark})' if remark else ''}")
    return 0


main = entry(_app, "vos-run")
