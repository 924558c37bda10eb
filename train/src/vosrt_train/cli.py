"""The command ``vos-train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vosrt.cli import options as opt
from vosrt.cli.app import entry, program, require
from vosrt.cli.options import like, option, request_from
from vosrt.console import say
from vosrt.errors import OptionError, OutputError
from vosrt.text import counted

_app = program()

Changes = Annotated[list[str] | None, option("Change one value. Repeatable.", None, "--set", metavar="TABLE.KEY=VALUE")]


def _show_settings(context: typer.Context, shown: bool) -> None:
    """Print the page of settings instead of training."""
    if not shown:
        return
    _require_training()
    from vosrt_train.config_file import load_config, settings_page

    preset = context.params.get("preset")
    say(settings_page(load_config(preset) if preset else None))
    raise typer.Exit


@_app.command(
    hidden=True,
    epilog="Several GPUs: [b]torchrun --nproc-per-node 4 --no-python vos-train DATA -o RUN[/b].",
)
def train(
    data: Annotated[Path, typer.Argument(help="Folder of videos, folders of frames, or both; no annotation needed.")],
    *,
    out: Annotated[Path, like(opt.Out, "Folder of the run: checkpoints, state, TensorBoard.", None, metavar="RUN")],
    preset: Annotated[
        str | None,
        option(
            "paper, cpu-2h, gpu-30min, finetune, distil-cpu, mask-embedding-cpu, masks-alone-cpu, or a TOML file. "
            "[dim]Default: distil-cpu with --distil, finetune with --init, else gpu-30min where there is a GPU, "
            "else cpu-2h."
        ),
    ] = None,
    change: Changes = None,
    help_settings: Annotated[
        bool,
        typer.Option(
            "--help-settings",
            help="Show every value that --set changes, with its range, and exit. After --preset: as that has it.",
            callback=_show_settings,
        ),
    ] = False,
    minutes: Annotated[
        float | None, option("Time for the training steps, instead of their number.", metavar="N")
    ] = None,
    init: Annotated[
        str | None,
        option(
            "Weights to start from: a checkpoint (.safetensors), the folder of a run or a bundle, or "
            "[b]default[/b], the network that comes with vosrt. [dim]Default: random weights."
        ),
    ] = None,
    distil: Annotated[
        str | None, option("A bundle, checkpoint or run that a small network learns to match as.", metavar="TEACHER")
    ] = None,
    resume: Annotated[bool, option("Go on with an interrupted run, exactly.", None, "--resume")] = False,
    validate: Annotated[
        Path | None, option("Annotated sequences as in DAVIS; the best checkpoint is chosen on them.", metavar="FOLDER")
    ] = None,
    cache: Annotated[Path | None, option("Where to keep decoded frames. [dim]Default: in ~/.cache/vosrt.")] = None,
    licence: Annotated[str | None, option("Of the weights, written into the checkpoints.")] = None,
    dry_run: Annotated[
        bool, option("Say what would be done and how long it would take; write nothing.", None, "--dry-run")
    ] = False,
    quiet: opt.Quiet = False,
) -> int:
    """Learn from videos without labels, or fine-tune a checkpoint on your own."""
    arguments = dict(locals())
    _require_training()
    from vosrt_train.start import TrainRequest, dry_run_training, run_training

    request = request_from(TrainRequest, arguments, run=out, changes=tuple(change or ()), validation=validate)
    if dry_run:
        dry_run_training(request)
        return 0
    return run_training(request)


@_app.command()
def init(
    out: Annotated[Path, like(opt.Out, "Checkpoint to write (safetensors).", None)],
    seed: Annotated[int, option("Seed of the weights.", min=0)] = 0,
    backbone: Annotated[str, option("resnet18, or to export: resnet18_mirrored, resnet50 or vit.")] = "resnet18",
    without_layer4: Annotated[
        bool, option("Leave out layer4 and the key head: faster, feature res3 only.", None, "--without-layer4")
    ] = False,
    overwrite: opt.Replace = False,
) -> None:
    """Write an untrained checkpoint whose weights depend on the seed alone."""
    require("torch", "PyTorch", "train")
    require("safetensors", "safetensors", "train")
    from vosrt_train.backbones import DEFAULT_KIND, build_network, default_config
    from vosrt_train.checkpoint import Checkpoint, Training, save_checkpoint
    from vosrt_train.config import EncoderConfig

    if out.exists() and not overwrite:
        raise OutputError(f"{out} is there already; name another file, or replace it with --overwrite")
    if without_layer4 and backbone != DEFAULT_KIND:
        raise OptionError(f"--without-layer4 is for {DEFAULT_KIND}; leave it out for {backbone}")
    config = EncoderConfig(layer4=False) if without_layer4 else default_config(backbone)
    training = Training(trained=False, seed=seed, summary=f"untrained, seed {seed}", licence="Apache-2.0")
    save_checkpoint(Checkpoint(build_network(config, seed=seed), training), out)
    features = ", ".join(f"{name} ({channels} channels)" for name, channels in config.channels.items())
    say(f"{out}: {training.summary}; features {features}")


@_app.command()
def pseudo_masks(
    data: Annotated[Path, typer.Argument(help="Folder of videos, folders of frames, or both.")],
    *,
    checkpoint: Annotated[Path, option("Checkpoint (.safetensors) whose features are clustered.")],
    out: Annotated[Path, like(opt.Out, "Folder for masks and contact sheets.", None)],
    preset: Annotated[str, option("As for training; a run's config.toml, too.")] = "mask-embedding-cpu",
    change: Changes = None,
    before: Annotated[
        Path | None, option("Earlier masks to show above the new ones: initial and final.", metavar="FOLDER")
    ] = None,
    cache: Annotated[Path | None, option("Where decoded frames are kept.")] = None,
    video: Annotated[
        list[str] | None, option("Only videos whose name contains this. Repeatable.", metavar="WORD")
    ] = None,
    sheets: Annotated[int, option("Contact sheets to draw at most.", min=0)] = 24,
    quiet: opt.Quiet = False,
) -> None:
    """Cluster videos into pseudo-masks, as training does, and draw them to look at."""
    arguments = dict(locals())
    _require_training()
    from vosrt_train.masks.clustering.command import MaskRequest, make_masks

    changes, videos = tuple(change or ()), tuple(video or ())
    make_masks(request_from(MaskRequest, arguments, output=out, changes=changes, videos=videos))


@_app.command()
def stills(
    folder: Annotated[Path, typer.Argument(help="Folder of photographs.")],
    *,
    out: Annotated[Path, like(opt.Out, "Folder for the clips.", None, metavar="CLIPS")],
    clips: Annotated[int, option("Number of clips. [dim]Default: one of each photograph.")] = 0,
    frames: Annotated[int, option("Frames of a clip.")] = 60,
    height: Annotated[int, option("Height of a clip in pixels; its width is 16/9 of that.")] = 480,
    objects: Annotated[float, option("Share of the clips that an object passes.")] = 0.5,
    seed: Annotated[int, option("Seed of the motions.", min=0)] = 0,
    quiet: opt.Quiet = False,
) -> None:
    """Make clips to train on from photographs: a moving camera, and objects that pass."""
    from vosrt_train.data.stills import StillsRequest, make_clips

    request = StillsRequest(folder, out, clips=clips, frames=frames, height=height, objects=objects, seed=seed)
    say(f"{out}: {counted(len(make_clips(request, quiet=quiet)), 'clip')}")


def _require_training() -> None:
    require("torch", "PyTorch", "train")
    require("safetensors", "safetensors", "train")
    require("tensorboard", "TensorBoard", "train")


main = entry(_app, "vos-train")
