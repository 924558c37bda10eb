"""The command ``vos-export``."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vosrt.cli.app import call, require, run_app
from vosrt_export.engine_cli import engine_app

app = typer.Typer(name="vos-export", add_completion=False, pretty_exceptions_enable=False)

_COMMANDS = {"engine": engine_app}


class FeatureChoice(StrEnum):
    """Maps that can become the embedding."""

    RES3 = "res3"
    RES4 = "res4"
    KEY = "key"


class WeightsChoice(StrEnum):
    """Precisions that weights can be stored in."""

    FP16 = "fp16"
    FP32 = "fp32"


@app.command(epilog=f"Further commands, each with --help: {', '.join(f'vos-export {name}' for name in _COMMANDS)}.")
def vos_export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint to export (safetensors).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle to make (a directory).")],
    feature: Annotated[
        FeatureChoice | None,
        typer.Option(help="Map that becomes the embedding.", show_default="res4, or res3 without layer4"),
    ] = None,
    weights: Annotated[WeightsChoice, typer.Option(help="Precision that weights are stored in.")] = WeightsChoice.FP16,
    name: Annotated[str | None, typer.Option(help="Name of the model.")] = None,
    summary: Annotated[str | None, typer.Option(help="One line about the model.")] = None,
    size: Annotated[
        int | None,
        typer.Option(min=16, max=4096, help="Default short side in pixels.", show_default="the frame's own"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
) -> None:
    """Export a checkpoint to a bundle, and prove that both compute the same."""
    for module in ("torch", "safetensors", "onnx", "onnxscript"):
        require(module, "PyTorch" if module == "torch" else module, "export")
    from vosrt_export.write_bundle import ExportOptions, export_bundle

    options = ExportOptions(
        feature=feature.value if feature else None,
        weights=weights.value,
        name=name,
        summary=summary,
        size=size,
    )
    comparison = export_bundle(checkpoint, output, options, overwrite=overwrite)
    print(f"{output}: PyTorch and ONNX Runtime agree on {comparison.cells} cells: {comparison}")


def main() -> None:
    """Entry point of ``vos-export``."""
    if sys.argv[1:2] and sys.argv[1] in _COMMANDS:
        name, arguments = sys.argv[1], sys.argv[2:]
        sys.exit(call(_COMMANDS[name], arguments, f"vos-export {name}"))
    run_app(app)
