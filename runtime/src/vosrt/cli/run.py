"""The command ``vos-run``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Set
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vosrt.cli import options as opt
from vosrt.cli.app import entry, program
from vosrt.cli.options import FURTHER, LOOKS, PROPAGATION, RESULTS, WHAT, given, option, parse_size, request_from
from vosrt.console import say, say_json

if TYPE_CHECKING:
    from vosrt.cli.segment import Request
    from vosrt.video.overlay import OverlayStyle

_app = program()


@_app.command(hidden=True)
def run(
    source: Annotated[str, typer.Argument(help="Video, folder of frames, webcam 0, URL or -.")],
    *,
    mask: opt.Masks = None,
    points: opt.Points = None,
    box: opt.Boxes = None,
    polygon: opt.Polygons = None,
    start: Annotated[int, option("First frame, from 0.", WHAT)] = 0,
    end: Annotated[int | None, option("Stop before this frame.", WHAT)] = None,
    size: opt.Size = None,
    bundle: opt.Bundle = "default",
    engine: opt.Engine = "auto",
    precision: opt.PrecisionName = "auto",
    threads: opt.Threads = 0,
    device: opt.Device = "auto",
    isolated: opt.Isolated = False,
    segmenter: opt.SegmenterFiles = "",
    decoder: Annotated[
        str, option("auto, cpu or nvdec, which decodes a file on the GPU of --device.", FURTHER)
    ] = "auto",
    levels: Annotated[
        str,
        option(
            "What is black and white in pictures of over 8 bits: auto (by the first frames), full or LO,HI.",
            FURTHER,
            metavar="LEVELS",
        ),
    ] = "auto",
    max_megapixels: Annotated[float, option("Refuse larger frames.", FURTHER, metavar="N")] = 64.0,
    reconnect: Annotated[
        float, option("Try a live source that drops again for this many seconds.", FURTHER, metavar="SECONDS")
    ] = 0.0,
    budget_ms: Annotated[
        float | None,
        option(
            "Keep a frame's segmentation under so many ms, by smaller size and context while it runs.",
            FURTHER,
            metavar="MS",
            show_default=False,
        ),
    ] = None,
    direction: Annotated[
        str, option("From the marks: forward, backward or both. The last two take files.", FURTHER)
    ] = "forward",
    context: opt.Context = None,
    radius: opt.Radius = None,
    top_k: opt.TopK = None,
    temperature: opt.Temperature = None,
    refine: Annotated[
        str,
        option(
            "Rounds of mask refinement, 0 to 4, or off. [dim]Default: as the bundle says.",
            PROPAGATION,
            metavar="ROUNDS",
        ),
    ] = "default",
    out: opt.Out,
    video: Annotated[bool, option("overlay.mp4, or overlay.webm.", RESULTS)] = True,
    codec: Annotated[str, option("Of the overlay: h264 (mp4), vp9 (webm) or av1 (mp4).", FURTHER)] = "h264",
    png: Annotated[bool, option("masks/*.png with the DAVIS palette.", RESULTS)] = True,
    rle: Annotated[bool, option("masks.jsonl, COCO run-length encoding.", FURTHER)] = True,
    cutout: Annotated[
        str, option("The objects alone: png, mov (ProRes) or webm.", RESULTS, metavar="KIND", show_default=False)
    ] = "",
    polygons: Annotated[
        list[str] | None, option("coco, labelme, yolo, mot, cvat, label-studio.", RESULTS, metavar="KIND")
    ] = None,
    rerun: Annotated[Path | None, option("Recording for the Rerun viewer.", LOOKS, metavar="FILE")] = None,
    min_area: Annotated[
        int, option("Remove parts of an object with fewer pixels.", LOOKS, metavar="PIXELS", show_default=False)
    ] = 0,
    fill_holes: Annotated[
        int, option("Fill holes of an object of at most so many pixels.", LOOKS, metavar="PIXELS", show_default=False)
    ] = 0,
    colour: Annotated[
        list[str] | None,
        option(
            "Of an object in the overlay: 2=orange, 2=#ff8800; without a number that of object 1. Repeatable.",
            LOOKS,
            "--colour",
            "--color",
            metavar="[ID=]COLOUR",
        ),
    ] = None,
    opacity: Annotated[float | None, option("Of the tint, 0 (outlines only) to 1. [dim]Default: 0.45.", LOOKS)] = None,
    ids: Annotated[
        bool | None, option("Write numbers on the objects. [dim]Default: where there are several.", LOOKS)
    ] = None,
    overlay_size: Annotated[
        str | None,
        option(
            "Short side to which larger overlays are shrunk, or native. [dim]Default: 1080.", LOOKS, metavar="PIXELS"
        ),
    ] = None,
    overwrite: opt.Overwrite = False,
    resume: Annotated[bool, option("Go on with a run that was killed or interrupted.", RESULTS, "--resume")] = False,
    save_every: Annotated[
        float, option("Seconds between sessions that --resume goes on from; 0 saves none.", FURTHER)
    ] = 30.0,
    preview: Annotated[bool, option("Write only first.jpg, the frame with its marks.", RESULTS, "--preview")] = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
) -> int:
    """Follow the objects you mark in one frame through a whole video."""
    options = dict(locals())
    from vosrt.cli.segment import segment

    return segment(request_of(options))


def request_of(options: dict[str, Any]) -> Request:
    """Return the request that options of `run` make, by the names of its arguments; those left out have its defaults.

    Raises:
        OptionError: one of them is wrong in itself.
    """
    from vosrt.cli.results import Wanted
    from vosrt.cli.segment import Request
    from vosrt.video.cleaning import Cleaning
    from vosrt.video.prompts import Prompts

    options = {name: each.default for name, each in _OF_RUN.items()} | options
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


_OF_RUN = inspect.signature(run, eval_str=True).parameters
# A clip of a batch has its own; the rest of the options is that of one run.
_PER_CLIP = {"source", "mask", "points", "box", "polygon", "start", "end", "preview", "overwrite", "reconnect"}
# What other commands declare, too; votes are counted on the processor, in this process.
_EXPLAINED = {name for name, kind in run.__annotations__.items() if kind.startswith("opt.")} - {"device", "isolated"}
_MODEL = {"size", "bundle", "engine", "precision", "threads", "device"}


def _with_options_of_run(names: Set[str]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command some options of ``vos-run SOURCE`` that it does not declare itself; it takes them as keywords."""

    def extend(command: Callable[..., int]) -> Callable[..., int]:
        own = inspect.signature(command, eval_str=True).parameters
        more = {name: each for name, each in _OF_RUN.items() if name in names and name not in own}
        parameters = [*(each for each in own.values() if each.kind is not each.VAR_KEYWORD), *more.values()]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ |= {name: run.__annotations__[name] for name in more}
        return command

    return extend


@_app.command()
def demo(
    out: opt.Out = Path("vosrt-demo"),
    engine: opt.Engine = "auto",
    threads: opt.Threads = 0,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
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
@_with_options_of_run(_OF_RUN.keys() - _PER_CLIP)
def batch(
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Videos, folders, patterns, also on stores such as s3://; a .txt with a path per line; or a .csv with "
            "columns source, name, mask, points, box, polygon, start, end, direction.",
        ),
    ],
    *,
    marks: Annotated[
        Path | None,
        option(
            "Folder with STEM.png, STEM.json or a folder STEM for each clip. [dim]Default: beside each clip.",
            WHAT,
            metavar="FOLDER",
        ),
    ] = None,
    out: opt.Out,
    jobs: Annotated[int, option("Clips at once; 0 is one per two cores.")] = 0,
    threads: Annotated[int, option("CPU threads of each process; 0 shares out the cores.", FURTHER)] = 0,
    ray: Annotated[
        str | None,
        option(
            "Run on a Ray cluster whose nodes share all files: local, auto or its address.",
            FURTHER,
            metavar="HOST:PORT",
        ),
    ] = None,
    resume: Annotated[bool, option("Go on with a batch that was killed or interrupted.", RESULTS, "--resume")] = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
    **shared: Any,
) -> int:
    """Follow the objects of many clips, in parallel."""
    arguments = dict(locals())
    from vosrt.cli.batch import BatchRequest, run_batch

    return run_batch(
        request_from(
            BatchRequest,
            arguments,
            workers=jobs,
            settings=shared,
            request=lambda own: request_of({**shared, **own}),
        )
    )


@_app.command()
@_with_options_of_run(_EXPLAINED)
def explain(
    source: Annotated[str, typer.Argument(help="Video file or folder of frames.")],
    *,
    frame: Annotated[int, option("Frame to explain, after the first marks.", WHAT)],
    pixel: Annotated[str, option("Pixel to explain.", WHAT, metavar="X,Y")],
    start: Annotated[int, option("First frame, from 0.", WHAT)] = 0,
    **shared: Any,
) -> int:
    """Show which past cells voted for the label of a pixel."""
    from vosrt.cli.explain import explain_pixel, parse_pixel

    return explain_pixel(request_of({"source": source, "start": start, **shared}), frame, parse_pixel(pixel))


@_app.command()
@_with_options_of_run(_MODEL | {"segmenter"})
def ui(
    source: Annotated[str | None, typer.Argument(help="Video file or folder of frames to open.")] = None,
    *,
    root: Annotated[Path, option("Folder whose files the page may open.")] = Path("."),
    host: Annotated[str, option("Address to listen on; others than this machine's own are open to others.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, option("0 takes a free one.")] = 0,
    upload_mb: Annotated[int, option("Refuse larger uploads.", metavar="MB")] = 4096,
    cache_mb: Annotated[int, option("Disk space for frames, until the page ends.", metavar="MB")] = 8192,
    browser: Annotated[bool, option("Open a browser.")] = True,
    json: opt.Json = False,
    **shared: Any,
) -> int:
    """Mark, follow and correct objects in your browser."""
    arguments = dict(locals())
    from vosrt.cli.ui import PageRequest, serve

    return serve(request_from(PageRequest, arguments | shared, size=parse_size(shared["size"])))


@_app.command()
@_with_options_of_run(_MODEL)
def serve(
    *,
    host: Annotated[
        str, option("Address to listen on; others than this machine's own need VOSRT_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, option("0 takes a free one.")] = 8765,
    sessions: Annotated[int, option("Streams at once; further clients are sent away.", metavar="N")] = 16,
    workers: Annotated[int, option("Frames that are worked on at once.", metavar="N")] = 1,
    max_megapixels: Annotated[float, option("Refuse larger frames.", metavar="N")] = 16.0,
    idle: Annotated[float, option("Close a stream after this long without a message.", metavar="SECONDS")] = 60.0,
    device: opt.Device = "cpu",
    json: opt.Json = False,
    **shared: Any,
) -> int:
    """Serve streams over WebSocket: frames in, masks out."""
    arguments = dict(locals())
    from vosrt.cli.serve import ServeRequest, serve_streams

    return serve_streams(request_from(ServeRequest, arguments | shared, size=parse_size(shared["size"])))


@_app.command()
def doctor(
    json: opt.Json = False,
) -> int:
    """List engines, kernels and codecs, and how to add more."""
    from vosrt.cli.doctor import examine, print_findings

    findings = examine()
    print_findings(findings, as_json=json)
    return 1 if any(finding.needed and not finding.found for finding in findings) else 0


@_app.command()
def licenses(
    json: opt.Json = False,
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
