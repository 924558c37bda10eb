"""The command ``vos-train``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vosrt.cli.app import require, run_app
from vosrt.errors import OptionError, OutputError

_train_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
_init_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_masks_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@_train_app.command(
    epilog="[b]vos-train init -o FILE[/b] writes an untrained checkpoint; [b]vos-train pseudo-masks --help[/b]: masks "
    "to look at. Several GPUs: "
    "[b]torchrun --nproc-per-node 4 --no-python vos-train DATA -o RUN[/b]."
)
def train(
    data: Annotated[Path, typer.Argument(help="Folder of videos, folders of frames, or both; no annotation needed.")],
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the run: checkpoints, state, TensorBoard.", metavar="RUN")
    ],
    preset: Annotated[
        str | None,
        typer.Option(
            help="paper, cpu-2h, gpu-30min, mask-embedding-cpu, masks-alone-cpu, or a TOML file. [dim]Default: "
            "gpu-30min where there is a GPU, else cpu-2h."
        ),
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value. Repeatable.", metavar="TABLE.KEY=VALUE")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Weights to start from: a checkpoint (.safetensors), a bundle's folder, or [b]default[/b], the "
            "network that comes with vosrt. [dim]Default: random weights."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run, exactly.")] = False,
    validate: Annotated[
        Path | None,
        typer.Option(help="Annotated sequences as in DAVIS; the best checkpoint is chosen on them.", metavar="FOLDER"),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Where to keep decoded frames. [dim]Default: in ~/.cache/vosrt.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Of the weights, written into the checkpoints.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and how long it would take; write nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Learn from videos without labels, or fine-tune a checkpoint on your own."""
    _require_training()
    from vosrt_train.start import Request, dry_run_training, run_training

    request = Request(
        data=data,
        run=output,
        preset=preset,
        changes=tuple(change or ()),
        init=init,
        resume=resume,
        validation=validate,
        cache=cache,
        licence=licence,
        quiet=quiet,
    )
    if dry_run:
        dry_run_training(request)
    else:
        raise typer.Exit(run_training(request))


@_init_app.command()
def init(
    output: Annotated[Path, typer.Option("-o", "--output", help="Checkpoint to write (safetensors).")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights.")] = 0,
    backbone: Annotated[
        str, typer.Option(help="Kind of encoder: resnet18, or for export only resnet50 or vit.")
    ] = "resnet18",
    without_layer4: Annotated[
        bool, typer.Option("--without-layer4", help="Leave out layer4 and the key head: faster, feature res3 only.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write an untrained checkpoint whose weights depend on the seed alone."""
    require("torch", "PyTorch", "train")
    require("safetensors", "safetensors", "train")
    from vosrt_train.backbones import DEFAULT_KIND, build_network, default_config
    from vosrt_train.checkpoint import Checkpoint, Training, save_checkpoint
    from vosrt_train.config import EncoderConfig

    if output.exists() and not overwrite:
        raise OutputError(f"{output} is there already; name another file, or replace it with --overwrite")
    if without_layer4 and backbone != DEFAULT_KIND:
        raise OptionError(f"--without-layer4 is for {DEFAULT_KIND}; leave it out for {backbone}")
    config = EncoderConfig(layer4=False) if without_layer4 else default_config(backbone)
    training = Training(trained=False, seed=seed, summary=f"untrained, seed {seed}", licence="Apache-2.0")
    save_checkpoint(Checkpoint(build_network(config, seed=seed), training), output)
    features = ", ".join(f"{name} ({channels} channels)" for name, channels in config.channels.items())
    print(f"{output}: {training.summary}; features {features}")


@_masks_app.command()
def pseudo_masks(
    data: Annotated[Path, typer.Argument(help="Folder of videos, folders of frames, or both.")],
    *,
    init: Annotated[Path, typer.Option(help="Checkpoint (.safetensors) whose features are clustered.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for masks and contact sheets.")],
    preset: Annotated[str, typer.Option(help="As for training; a run's config.toml, too.")] = "mask-embedding-cpu",
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value. Repeatable.", metavar="TABLE.KEY=VALUE")
    ] = None,
    before: Annotated[
        Path | None, typer.Option(help="Earlier masks to show above the new ones: initial and final.", metavar="FOLDER")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Where decoded frames are kept.")] = None,
    video: Annotated[
        list[str] | None, typer.Option(help="Only videos whose name contains this. Repeatable.", metavar="WORD")
    ] = None,
    sheets: Annotated[int, typer.Option(min=0, help="Contact sheets to draw at most.")] = 24,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Cluster videos into pseudo-masks, as training does, and draw them to look at."""
    _require_training()
    from vosrt_train.clustering.command import MaskRequest, make_masks

    make_masks(
        MaskRequest(
            data=data,
            checkpoint=init,
            output=output,
            preset=preset,
            changes=tuple(change or ()),
            before=before,
            cache=cache,
            videos=tuple(video or ()),
            sheets=sheets,
            quiet=quiet,
        )
    )


def _require_training() -> None:
    require("torch", "PyTorch", "train")
    require("safetensors", "safetensors", "train")
    require("tensorboard", "TensorBoard", "train")


def main() -> None:
    """Entry point of ``vos-train``."""
    if sys.argv[1:2] == ["init"]:
        sys.argv[:2] = [f"{sys.argv[0]} init"]
        run_app(_init_app)
    if sys.argv[1:2] == ["pseudo-masks"]:
        sys.argv[:2] = [f"{sys.argv[0]} pseudo-masks"]
        run_app(_masks_app)
    if len(sys.argv) < 2:
        sys.argv.append("--help")
    run_app(_train_app)
