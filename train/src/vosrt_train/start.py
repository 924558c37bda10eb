"""From what a user types to a training: configuration, cache, weights, and the report at the end."""

from __future__ import annotations

import datetime
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from vosrt.errors import OptionError, OutputError
from vosrt_train.config import TrainConfig
from vosrt_train.config_file import load_config, to_toml
from vosrt_train.data.cache import Cache, plan_cache
from vosrt_train.distributed import join_world
from vosrt_train.loop import BEST_NAME, LAST_NAME, STATE_NAME, Task, train
from vosrt_train.monitor import say
from vosrt_train.prepare import (
    default_cache,
    describe_plan,
    measure_step,
    prepare_cache,
    starting_encoder,
    starting_licence,
    starting_masks,
    use_threads,
)
from vosrt_train.state import Progress
from vosrt_train.validate import AnnotatedSequence, find_sequences

CONFIG_NAME = "config.toml"
SKIPPED_NAME = "skipped.tsv"

EXIT_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; see ``vos-train --help``."""

    data: Path
    run: Path
    preset: str | None = None
    changes: tuple[str, ...] = ()
    init: str | None = None
    resume: bool = False
    validation: Path | None = None
    cache: Path | None = None
    licence: str | None = None
    quiet: bool = False


def run_training(request: Request) -> int:
    """Train, and say what came of it.

    Returns:
        The exit code: 0, or 130 where the training was interrupted.

    Raises:
        VosrtError: something given is wrong, or the training failed; the run can be resumed from its last state.
    """
    config = _load_config(request)
    _check_run(request)
    sequences = _find_sequences(config)
    encoder = starting_encoder(config, request.init)
    masks = starting_masks(config, request.init)
    use_threads(config.compute)
    with join_world(config.compute) as world:
        plan = plan_cache(request.data, _cache_directory(request), config.cache)
        if world.is_first and not request.resume:
            _make_run(request, config)
        console = Console(file=sys.stderr, quiet=request.quiet or not world.is_first)
        cache = prepare_cache(plan, config, world, console)
        if world.is_first:
            _list_skipped(cache, request.run)
        task = Task(config, cache, request.run, resume=request.resume, sequences=sequences, quiet=request.quiet)
        progress = train(task, encoder, world, masks)
        say(console, _report(progress, task))
    return 0 if progress.step == progress.total_steps else EXIT_INTERRUPTED


def dry_run_training(request: Request) -> None:
    """Print the plan of a training; write nothing.

    Raises:
        VosrtError: something given is wrong.
    """
    config = _load_config(request)
    _find_sequences(config)
    use_threads(config.compute)
    plan = plan_cache(request.data, _cache_directory(request), config.cache)
    with join_world(config.compute) as world:
        encoder, masks = starting_encoder(config, request.init), starting_masks(config, request.init)
        cost = measure_step(config, encoder, world.device, masks)
        if world.is_first:
            print(describe_plan(plan, config, cost, world.device))


def _load_config(request: Request) -> TrainConfig:
    """The preset, or what the run was started with, changed by what the user gives besides."""
    config = load_config(_preset(request), request.changes)
    licence = request.licence
    if licence is None and request.init is not None and config.licence == TrainConfig.licence:
        licence = starting_licence(request.init)
    if licence is not None:
        config = replace(config, licence=licence)
    if request.validation is not None:
        config = replace(config, validation=replace(config.validation, folder=str(request.validation.absolute())))
    return config


def _preset(request: Request) -> str:
    if request.preset is not None:
        return request.preset
    if not request.resume:
        return "gpu-30min" if torch.cuda.is_available() else "cpu-2h"
    if not (request.run / CONFIG_NAME).is_file():
        raise OptionError(f"nothing to resume: {request.run} has no {CONFIG_NAME}; start without --resume")
    return str(request.run / CONFIG_NAME)


def _find_sequences(config: TrainConfig) -> tuple[AnnotatedSequence, ...]:
    if not config.validation.folder:
        return ()
    return tuple(find_sequences(Path(config.validation.folder), config.validation.sequences))


def _check_run(request: Request) -> None:
    """See that the run can be started, or gone on with."""
    if request.resume and request.init is not None:
        raise OptionError("--resume goes on with the weights of the run; leave out --init, or leave out --resume")
    there = (request.run / STATE_NAME).exists()
    if request.resume and not there:
        raise OptionError(f"nothing to resume: {request.run} has no {STATE_NAME}; start without --resume")
    if there and not request.resume:
        raise OutputError(f"{request.run} holds a training; go on with it with --resume, or name another folder")


def _make_run(request: Request, config: TrainConfig) -> None:
    try:
        request.run.mkdir(parents=True, exist_ok=True)
        (request.run / CONFIG_NAME).write_text(to_toml(config), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write to the folder {request.run}: {error.strerror}") from error


def _list_skipped(cache: Cache, run: Path) -> None:
    lines = [f"{each.name}\t{each.reason}\n" for each in cache.skipped]
    (run / SKIPPED_NAME).write_text("".join(lines), encoding="utf-8")


def _cache_directory(request: Request) -> Path:
    return request.cache or default_cache(request.data)


def _report(progress: Progress, task: Task) -> str:
    frames = task.config.clips.batch * task.config.clips.frames * progress.step
    duration = datetime.timedelta(seconds=round(progress.seconds))
    lines = [
        f"{progress.step} of {progress.total_steps} steps in {duration}: "
        f"{frames / max(progress.seconds, 1e-9):.0f} frames/s, {progress.waited_s / max(progress.seconds, 1e-9):.1%} "
        "of the time waiting for clips"
    ]
    if progress.best is not None:
        lines.append(
            f"best J&F {100 * progress.best:.1f} at step {progress.best_step}: {task.run / BEST_NAME}; last: "
            f"{task.run / LAST_NAME}"
        )
    else:
        lines.append(f"weights: {task.run / LAST_NAME}")
    if progress.step < progress.total_steps:
        lines.append("interrupted; go on with --resume")
    return "\n".join(lines)
