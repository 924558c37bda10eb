"""The command ``vos-export`` and its sub-commands, such as ``vos-export import-released``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vosrt.bundle import MAX_ROUNDS, Feature, MaskSpec, WeightPrecision
from vosrt.cli import options as opt
from vosrt.cli.app import entry, program, require
from vosrt.cli.options import ANY_BUNDLE_HELP, like, option, request_from, split_names
from vosrt.console import say, status
from vosrt.errors import OptionError, WorkError
from vosrt.types import MAX_CONTEXT
from vosrt_export.engine_cli import engine
from vosrt_export.families import Family

if TYPE_CHECKING:
    from vosrt_train.checkpoint import Checkpoint

FeatureName = Annotated[
    Feature | None, option("Map that becomes the embedding.", show_default="res4, or what there is")
]
Weights = Annotated[WeightPrecision, option("Precision that weights are stored in.")]
BundleOut = Annotated[Path, like(opt.Out, "Bundle to make (a directory).", None)]
Converted = Annotated[Path, like(opt.Out, "Bundle (a directory) or checkpoint (NAME.safetensors) to make.", None)]
Name = Annotated[str | None, option("Name of the model.")]
Summary = Annotated[str | None, option("One line about the model.")]
Size = Annotated[int | None, option("Default short side in pixels.", min=16, max=4096, show_default="480")]
_GUIDED_HELP = "Half-size pixels within which masks follow edges; 0: as published."
_INHERITED = "--propagation's"
Guided = Annotated[int, option(_GUIDED_HELP, min=0, max=32)]
AlignCorners = Annotated[
    bool, option("Sample masks as published, not where networks trained here look.", None, "--align-corners")
]
Licence = Annotated[str, option("Of the weights, e.g. an SPDX identifier.")]

_app = program()
_app.command()(engine)


@_app.command(hidden=True)
def vos_export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint to export (safetensors), or the folder of a run.")],
    out: BundleOut,
    feature: FeatureName = None,
    weights: Weights = "fp16",
    name: Name = None,
    summary: Summary = None,
    propagation: Annotated[
        str | None,
        option(
            "Bundle whose size and settings of propagation are taken, or 'published'.",
            show_default="what training started from, or its teacher, if it is a bundle",
            metavar="BUNDLE",
        ),
    ] = None,
    size: Annotated[int | None, option("Short side in pixels.", min=16, max=4096, show_default=_INHERITED)] = None,
    context: Annotated[
        int | None, option("Recent frames that are kept.", min=0, max=MAX_CONTEXT, show_default=_INHERITED)
    ] = None,
    pad_context: Annotated[
        bool | None, option("Copies of the reference stand for frames before it.", show_default=_INHERITED)
    ] = None,
    guided: Annotated[int | None, option(_GUIDED_HELP, min=0, max=32, show_default=_INHERITED)] = None,
    refine: Annotated[
        int, option("Rounds of refinement (mask embedding), unless the user says.", min=0, max=MAX_ROUNDS)
    ] = MaskSpec.rounds,
    feedback: Annotated[bool, option("Later frames read refined masks (mask embedding).")] = MaskSpec.feedback,
    correction: Annotated[
        float, option("By which a residual decoder's logits are multiplied (mask embedding).", min=0, max=10)
    ] = 1.0,
    align_corners: AlignCorners = False,
    overwrite: opt.Replace = False,
) -> None:
    """Export a checkpoint to a bundle, and prove that both compute the same."""
    arguments = dict(locals())
    _require_export()
    from vosrt_export.write_bundle import ExportOptions, claimed, export_bundle

    options = request_from(ExportOptions, arguments, rounds=refine)
    with claimed(out, overwrite=overwrite), status("loading") as tell:
        comparison = export_bundle(checkpoint, out, options, overwrite=overwrite, tell=tell)
    say(f"{out}: PyTorch and ONNX Runtime agree on {comparison.cells} cells: {comparison}")


@_app.command()
def import_released(
    released: Annotated[Path, typer.Argument(help="File that Araslanov et al. 2021 released (.pth).", metavar="FILE")],
    out: Converted,
    feature: FeatureName = None,
    weights: Weights = "fp16",
    name: Name = None,
    summary: Summary = None,
    size: Size = None,
    licence: Licence = "not stated",
    overwrite: opt.Replace = False,
) -> None:
    """Convert a file that Araslanov et al. 2021 released to a checkpoint or a bundle, without running code from it."""
    arguments = dict(locals())
    _require_export()
    from vosrt_export.import_released import import_released

    usual = {"align_corners": True, "guided": 0}  # as published
    _write_imported(partial(import_released, licence=licence), usual, arguments | usual)


@_app.command("import")
def import_weights(
    family: Annotated[Family, typer.Argument(help="Method that the weights are of.")],
    released: Annotated[
        Path, typer.Argument(help="File of its authors, or a folder as of transformers.", metavar="FILE_OR_FOLDER")
    ],
    out: Converted,
    heads: Annotated[
        int | None, option("Heads of attention.", min=1, max=64, show_default="config.json, or by the family")
    ] = None,
    mean: Annotated[
        tuple[float, float, float] | None,
        option("Red, green, blue that are subtracted, 0 to 1.", show_default="as stated, or ImageNet's"),
    ] = None,
    deviation: Annotated[
        tuple[float, float, float] | None,
        option("Red, green, blue that are divided by.", show_default="as stated, or ImageNet's"),
    ] = None,
    weights: Weights = "fp16",
    name: Name = None,
    summary: Summary = None,
    size: Size = None,
    guided: Guided = 4,
    align_corners: AlignCorners = False,
    licence: Licence = "not stated",
    overwrite: opt.Replace = False,
) -> None:
    """Make a bundle from released label-free weights, without running code from them."""
    arguments = dict(locals())
    _require_export()
    from vosrt_export.import_backbone import ImportOptions, import_backbone

    read = partial(import_backbone, family, options=request_from(ImportOptions, arguments))
    _write_imported(read, {"guided": 4}, arguments)


def _write_imported(read: Callable[[Path], Checkpoint], usual: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Write what `read` makes of a released file; as a checkpoint, which has the usual options, where --out is one."""
    from vosrt_export.import_released import export_imported, save_released
    from vosrt_export.write_bundle import ExportOptions, claimed

    released, out, overwrite = (arguments[name] for name in ("released", "out", "overwrite"))
    options = request_from(ExportOptions, arguments)
    if out.suffix == ".safetensors":
        if options != ExportOptions(**usual):
            raise OptionError(f"{out} is a checkpoint; --feature, --weights, --name and --size are for bundles")
        save_released(read(released), out, overwrite=overwrite)
        say(f"{out}: imported from {released}; export it with vos-export, or start vos-train --init from a ResNet-18")
        return
    with claimed(out, overwrite=overwrite), status("turning PyTorch into ONNX, and comparing both"):
        checkpoint = read(released)
        comparison = export_imported(checkpoint, out, options, overwrite=overwrite)
    config = checkpoint.encoder.config
    say(f"{out}: {checkpoint.training.summary}; stride {config.stride}, {config.channels}")
    say(f"PyTorch and ONNX Runtime agree on {comparison.cells} cells: {comparison}")


@_app.command()
def verify(
    bundle: Annotated[str, typer.Argument(help=f"Bundle to verify: {ANY_BUNDLE_HELP}")],
    checkpoint: Annotated[
        Path | None, option("What it was exported from.", show_default="compare with ONNX Runtime, CPU, fp32")
    ] = None,
    clip: Annotated[str | None, option("Video or folder of images to compare on.")] = None,
    davis: Annotated[
        Path | None, option("Annotated sequences as in DAVIS to compare on; adds J&F.", metavar="FOLDER")
    ] = None,
    sequences: Annotated[list[str] | None, like(opt.Sequences, "", None)] = None,
    limit: Annotated[int | None, option("Frames of each sequence.", min=2, show_default="all")] = None,
    engine: Annotated[list[str] | None, option("Engine to verify. Repeatable.", show_default="all")] = None,
    size: Annotated[int | None, like(opt.ProtocolSize, "", None)] = None,
    threads: Annotated[int, like(opt.Threads, "", None)] = 0,
    write: Annotated[bool, option("Keep the report in the bundle.", None, "--write/--no-write")] = True,
) -> None:
    """Compare every engine with the checkpoint.

    Stages are compared one by one; the exit code is 1 if an engine is beyond its limits.
    """
    arguments = dict(locals())
    _require_export()
    from vosrt_export.verify_bundle import VerifyRequest, verify_bundle

    names, engines = tuple(split_names(sequences)), tuple(engine or ())
    request = request_from(VerifyRequest, arguments, sequences=names, engines=engines)
    with status("loading") as tell:
        report = verify_bundle(request, tell)
    say(str(report))
    say(f"the report is in {bundle}" if report.written else "the report was not written into the bundle")
    if not report.passed:
        raise WorkError(f"{bundle}: {report.failure}")


@_app.command()
def quantise(
    bundle: Annotated[str, typer.Argument(help=f"Bundle to quantise: {ANY_BUNDLE_HELP}")],
    out: BundleOut,
    clip: Annotated[list[str], option("Video or folder of images to calibrate on. Repeatable.")],
    davis: Annotated[
        Path, option("Annotated sequences as in DAVIS to measure on, before and after.", metavar="FOLDER")
    ],
    max_drop: Annotated[float, option("Points of J&F, of 100, that may be lost.")] = 0.5,
    sequences: Annotated[list[str] | None, like(opt.Sequences, "", None)] = None,
    frames: Annotated[int, option("To calibrate on, spread over the clips.", min=1)] = 32,
    size: Annotated[int | None, like(opt.ProtocolSize, "", None)] = None,
    symmetric: Annotated[
        bool,
        option(
            "Activations in int8 around zero, as TensorRT needs; otherwise uint8.", None, "--symmetric/--asymmetric"
        ),
    ] = True,
    threads: Annotated[int, like(opt.Threads, "", None)] = 0,
    overwrite: opt.Replace = False,
) -> None:
    """Add an int8 encoder to a bundle, which fast processors then take.

    Sensitive layers stay in float; an encoder that follows objects less well is refused.
    """
    arguments = dict(locals())
    _require_export()
    from vosrt_export.quantise import QuantiseOptions, quantise_bundle
    from vosrt_export.write_bundle import claimed

    options = request_from(QuantiseOptions, arguments, sequences=tuple(split_names(sequences)))
    with claimed(out, overwrite=overwrite), status("loading") as tell:
        result = quantise_bundle(bundle, out, clip, davis, options, overwrite=overwrite, tell=tell)
    say(
        f"{out}: J&F {result.after:.2f}, before {result.before:.2f}; {result.layers - len(result.kept)} of "
        f"{result.layers} layers in int8, {result.bytes / 1e6:.1f} MB; {result.comparison}"
    )


@_app.command()
def compress(
    bundle: Annotated[str, typer.Argument(help=f"Bundle to compress: {ANY_BUNDLE_HELP}")],
    out: BundleOut,
    channels: Annotated[int, option("Channels to keep.")],
    clip: Annotated[list[str], option("Video or folder of images, without labels, to find the axes on. Repeatable.")],
    frames: Annotated[int, option("To look at, spread over the clips.", min=1)] = 48,
    overwrite: opt.Replace = False,
) -> None:
    """Make a bundle with fewer channels.

    They are projected on their principal axes: matching costs less, at some accuracy.
    """
    _require_export()
    from vosrt_export.compress import compress_bundle
    from vosrt_export.write_bundle import claimed

    with claimed(out, overwrite=overwrite), status("loading") as tell:
        result = compress_bundle(bundle, out, clip, channels, frames=frames, overwrite=overwrite, tell=tell)
    before, after = result.channels
    say(f"{out}: {after} of {before} channels, {result.energy:.1%} of the energy kept; {result.comparison}")


@_app.command()
def copy(
    bundle: Annotated[str, typer.Argument(help=f"Bundle to copy: {ANY_BUNDLE_HELP}")],
    out: BundleOut,
    share: Annotated[
        Path | None, option("Bundle beside the copy, whose encoder the copy names instead of holding it.")
    ] = None,
    overwrite: opt.Replace = False,
) -> None:
    """Copy a bundle with all that it takes from others, or have it take its encoder from one beside it."""
    _require_export()
    from vosrt_export.copying import copy_bundle
    from vosrt_export.write_bundle import claimed

    with claimed(out, overwrite=overwrite), status("copying"):
        size = copy_bundle(bundle, out, share, overwrite=overwrite)
    say(f"{out}: {size / 1e6:.1f} MB")


@_app.command()
def triton(
    bundle: Annotated[str, typer.Argument(help=f"Bundle to serve: {ANY_BUNDLE_HELP}")],
    out: Annotated[Path, like(opt.Out, "Model repository: the folder of the server's models.", None)],
    name: Annotated[str, option("Name of the model.")] = "vosrt",
    size: Annotated[str | None, like(opt.Size, "", None)] = None,
    engine: Annotated[str, like(opt.Engine, "", None)] = "auto",
    precision: Annotated[str, like(opt.PrecisionName, "", None)] = "auto",
    threads: Annotated[int, like(opt.Threads, "", None)] = 0,
    sessions: Annotated[int, option("Streams at once in each instance.", metavar="N")] = 16,
    idle: Annotated[float, option("Close a stream after this long without a frame.", metavar="SECONDS")] = 60.0,
    instances: Annotated[int, option("Copies of the model.", metavar="N")] = 1,
) -> None:
    """Write a bundle as a model of Triton Inference Server."""
    arguments = dict(locals())
    _require_export()
    from vosrt_export.triton import TritonOptions, write_model

    options = request_from(TritonOptions, arguments, size=opt.parse_size(size), idle_s=idle)
    say(f"{write_model(bundle, out, options)}: serve it with tritonserver --model-repository {out}")


def _require_export() -> None:
    for module in ("torch", "safetensors", "onnx", "onnxscript"):
        require(module, "PyTorch" if module == "torch" else module, "export")


main = entry(_app, "vos-export")
