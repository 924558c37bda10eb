"""The command ``vos-export`` and those that follow it, such as ``vos-export import-released``."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vosrt.bundle import MAX_ROUNDS, MaskSpec
from vosrt.cli.app import call, require, run_app
from vosrt.errors import OptionError, WorkError
from vosrt.types import MAX_CONTEXT
from vosrt_export.engine_cli import engine_app


class FeatureChoice(StrEnum):
    """Maps that can become the embedding."""

    RES3 = "res3"
    RES4 = "res4"
    KEY = "key"


class WeightsChoice(StrEnum):
    """Precisions that weights can be stored in."""

    FP16 = "fp16"
    FP32 = "fp32"


Feature = Annotated[
    FeatureChoice | None,
    typer.Option(help="Map that becomes the embedding.", show_default="res4, or what there is"),
]
Weights = Annotated[WeightsChoice, typer.Option(help="Precision that weights are stored in.")]
Name = Annotated[str | None, typer.Option(help="Name of the model.")]
Summary = Annotated[str | None, typer.Option(help="One line about the model.")]
Size = Annotated[
    int | None,
    typer.Option(min=16, max=4096, help="Default short side in pixels.", show_default="the frame's own"),
]
WorkingSize = Annotated[
    int | None,
    typer.Option(min=16, max=4096, help="Working size: short side in pixels.", show_default="as the bundle says"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def _app() -> typer.Typer:
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


_export_app, _released_app, _verify_app, _quantise_app, _compress_app = (_app() for _ in range(5))


@_export_app.command(
    name="vos-export",
    epilog="Further commands, each with its own --help: [b]vos-export engine[/b], [b]vos-export import-released[/b], "
    "[b]vos-export verify[/b], [b]vos-export quantise[/b], [b]vos-export compress[/b].",
)
def vos_export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint to export (safetensors).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle to make (a directory).")],
    feature: Feature = None,
    weights: Weights = WeightsChoice.FP16,
    name: Name = None,
    summary: Summary = None,
    size: Size = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=0, max=MAX_CONTEXT, help="Recent frames that are kept.", show_default="20; 5 with mask embedding"
        ),
    ] = None,
    pad_context: Annotated[
        bool | None,
        typer.Option(
            help="Copies of the reference stand for frames before it.", show_default="yes; no with mask embedding"
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=0, max=MAX_ROUNDS, help="Rounds of refinement (mask embedding), unless the user says.")
    ] = MaskSpec.rounds,
    feedback: Annotated[
        bool, typer.Option(help="Refined masks are what later frames read; else they are shown alone (mask embedding).")
    ] = MaskSpec.feedback,
    correction: Annotated[
        float, typer.Option(min=0, max=10, help="By which a residual decoder's logits are multiplied (mask embedding).")
    ] = 1.0,
    align_corners: Annotated[
        bool, typer.Option("--align-corners", help="Sample masks as published, not where networks trained here look.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Export a checkpoint to a bundle, and prove that both compute the same."""
    _require_export()
    from vosrt_export.write_bundle import ExportOptions, export_bundle

    options = ExportOptions(
        feature=feature.value if feature else None,
        weights=weights.value,
        name=name,
        summary=summary,
        size=size,
        context=context,
        pad_context=pad_context,
        rounds=rounds,
        feedback=feedback,
        correction=correction,
        align_corners=align_corners,
    )
    comparison = export_bundle(checkpoint, output, options, overwrite=overwrite)
    print(f"{output}: PyTorch and ONNX Runtime agree on {comparison.cells} cells: {comparison}")


@_released_app.command()
def import_released(
    released: Annotated[Path, typer.Argument(help="File that Araslanov et al. 2021 released (.pth).", metavar="FILE")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Checkpoint (NAME.safetensors) or bundle (a directory) to make.")
    ],
    feature: Feature = None,
    weights: Weights = WeightsChoice.FP16,
    name: Name = None,
    summary: Summary = None,
    size: Size = None,
    licence: Annotated[str, typer.Option(help="Of the weights, e.g. an SPDX identifier.")] = "not stated",
    overwrite: Overwrite = False,
) -> None:
    """Turn a file that Araslanov et al. 2021 released into a checkpoint or a bundle; no code in it is run."""
    _require_export()
    from vosrt_export.import_released import export_released, import_released, save_released
    from vosrt_export.write_bundle import ExportOptions

    options = ExportOptions(
        feature=feature.value if feature else None, weights=weights.value, name=name, summary=summary, size=size
    )
    if output.suffix == ".safetensors":
        if options != ExportOptions():
            raise OptionError(f"{output} is a checkpoint; --feature, --weights, --name and --size are for bundles")
        save_released(import_released(released, licence=licence), output, overwrite=overwrite)
        print(f"{output}: imported from {released}; export it with vos-export, or fine-tune it with vos-train --init")
    else:
        comparison = export_released(import_released(released, licence=licence), output, options, overwrite=overwrite)
        print(f"{output}: PyTorch and ONNX Runtime agree on {comparison.cells} cells: {comparison}")


@_verify_app.command()
def verify(
    bundle: Annotated[str, typer.Argument(help="Bundle to verify.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="What it was exported from.", show_default="compare with ONNX Runtime, CPU, fp32"),
    ] = None,
    frames: Annotated[str | None, typer.Option(help="Video or folder of images to compare on.")] = None,
    davis: Annotated[
        Path | None, typer.Option(help="Annotated sequences as in DAVIS to compare on; adds J&F.", metavar="FOLDER")
    ] = None,
    sequence: Annotated[list[str] | None, typer.Option(help="Of these, one to take. Repeatable.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Frames of each sequence.", show_default="all")] = None,
    engine: Annotated[list[str] | None, typer.Option(help="Engine to verify. Repeatable.", show_default="all")] = None,
    size: WorkingSize = None,
    threads: Annotated[int, typer.Option(min=0, help="0: one per processor.")] = 0,
    write: Annotated[bool, typer.Option("--write/--no-write", help="Keep the report in the bundle.")] = True,
) -> None:
    """Compare every engine with the checkpoint, stage by stage; exit code 1 where one is beyond its limits."""
    _require_export()
    from vosrt_export.verify_bundle import VerifyRequest, verify_bundle

    report = verify_bundle(
        VerifyRequest(
            bundle=bundle,
            checkpoint=checkpoint,
            frames=frames,
            davis=davis,
            sequences=tuple(sequence or ()),
            limit=limit,
            engines=tuple(engine or ()),
            size=size,
            threads=threads,
            write=write,
        )
    )
    print(report)
    print(f"the report is in {bundle}" if report.written else "the report was not written into the bundle")
    if not report.passed:
        failed = [f"{each.engine} {each.precision}" for each in report.outcomes if not each.passed]
        raise WorkError(f"{bundle}: {', '.join(failed)} went beyond the limits")


@_quantise_app.command()
def quantise(
    bundle: Annotated[str, typer.Argument(help="Bundle to quantise.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle to make (a directory).")],
    calibrate: Annotated[
        list[str], typer.Option(help="Video or folder of images, without labels. Repeatable.", metavar="CLIP")
    ],
    davis: Annotated[
        Path, typer.Option(help="Annotated sequences as in DAVIS to measure on, before and after.", metavar="FOLDER")
    ],
    max_drop: Annotated[float, typer.Option(help="Points of J&F, of 100, that may be lost.")] = 0.5,
    sequence: Annotated[
        list[str] | None, typer.Option(help="Sequence to measure on. Repeatable.", show_default="all")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="To calibrate on, spread over the clips.")] = 32,
    size: WorkingSize = None,
    symmetric: Annotated[
        bool, typer.Option("--symmetric", help="Activations in int8 around zero, as TensorRT needs; otherwise uint8.")
    ] = False,
    threads: Annotated[int, typer.Option(min=0, help="0: one per processor.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make an int8 bundle; refused where it follows objects less well, with sensitive layers kept in float."""
    _require_export()
    from vosrt_export.quantise import QuantiseOptions, quantise_bundle

    options = QuantiseOptions(
        max_drop=max_drop,
        frames=frames,
        size=size,
        symmetric=symmetric,
        sequences=tuple(sequence or ()),
        threads=threads,
    )
    result = quantise_bundle(bundle, output, calibrate, davis, options, overwrite=overwrite)
    print(
        f"{output}: J&F {result.after:.2f}, before {result.before:.2f}; {result.layers - len(result.kept)} of "
        f"{result.layers} layers in int8, {result.bytes / 1e6:.1f} MB; {result.comparison}"
    )


@_compress_app.command()
def compress(
    bundle: Annotated[str, typer.Argument(help="Bundle to compress.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle to make (a directory).")],
    channels: Annotated[int, typer.Option(help="Channels to keep.")],
    clip: Annotated[
        list[str], typer.Option(help="Video or folder of images, without labels, to find the axes on. Repeatable.")
    ],
    frames: Annotated[int, typer.Option(min=1, help="To look at, spread over the clips.")] = 48,
    overwrite: Overwrite = False,
) -> None:
    """Make a bundle with fewer channels, projected on their principal axes: matching costs less, at some accuracy."""
    _require_export()
    from vosrt_export.compress import compress_bundle

    result = compress_bundle(bundle, output, clip, channels, frames=frames, overwrite=overwrite)
    before, after = result.channels
    print(f"{output}: {after} of {before} channels, {result.energy:.1%} of the energy kept; {result.comparison}")


def _require_export() -> None:
    for module in ("torch", "safetensors", "onnx", "onnxscript"):
        require(module, "PyTorch" if module == "torch" else module, "export")


_COMMANDS = {
    "engine": engine_app,
    "import-released": _released_app,
    "verify": _verify_app,
    "quantise": _quantise_app,
    "compress": _compress_app,
}


def main() -> None:
    """Entry point of ``vos-export``."""
    if sys.argv[1:2] and sys.argv[1] in _COMMANDS:
        name, arguments = sys.argv[1], sys.argv[2:]
        sys.exit(call(_COMMANDS[name], arguments, f"vos-export {name}"))
    run_app(_export_app)
