"""The command ``vos-train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vosrt.cli.app import require, run_app

app = typer.Typer(name="vos-train", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def vos_train() -> None:
    """Make checkpoints for vos-export."""


@app.command()
def init(
    output: Annotated[Path, typer.Option("-o", "--output", help="Checkpoint to write (safetensors).")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights.")] = 0,
    without_layer4: Annotated[
        bool, typer.Option("--without-layer4", help="Leave out layer4 and the key head: faster, feature res3 only.")
    ] = False,
) -> None:
    """Write an untrained checkpoint whose weights depend on the seed alone."""
    require("torch", "PyTorch", "train")
    require("safetensors", "safetensors", "train")
    from vosrt_train.checkpoint import Checkpoint, Training, save_checkpoint
    from vosrt_train.config import EncoderConfig
    from vosrt_train.model import build_encoder

    config = EncoderConfig(layer4=not without_layer4)
    training = Training(trained=False, seed=seed, summary=f"untrained, seed {seed}", licence="Apache-2.0")
    save_checkpoint(Checkpoint(build_encoder(config, seed=seed), training), output)
    features = ", ".join(f"{name} ({channels} channels)" for name, channels in config.channels.items())
    print(f"{output}: {training.summary}; features {features}")


def main() -> None:
    """Entry point of ``vos-train``."""
    run_app(app)
