"""A training as a command: read the settings, build the cache, load the weights, train, and report."""

from __future__ import annotations

import datetime
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vosrt._files import locked
from vosrt._results import check_replaceable, files_beside
from vosrt.cli.app import EXIT_INTERRUPTED
from vosrt.console import say, status
from vosrt.errors import OptionError, OutputError
from vosrt_train.bundle_weights import inference_of
from vosrt_train.checkpoint import Inference
from vosrt_train.config import TrainConfig
from vosrt_train.config_file import CONFIG_NAME, load_config, to_toml
from vosrt_train.data.cache import Cache, plan_cache
from vosrt_train.distil import teacher_licence, teacher_name
from vosrt_train.distributed import World, join_world
from vosrt_train.keep_better import Kept, keep_better
from vosrt_train.loop import train
from vosrt_train.monitor import quiet_note
from vosrt_train.prepare import (
    count_clips,
    default_cache,
    describe_plan,
    measure_step,
    narrow_teacher,
    prepare_cache,
    starting_encoder,
    starting_licence,
    starting_masks,
    starting_training,
    use_threads,
    with_encoder_of,
)
from vosrt_train.run import Task
from vosrt_train.run_folder import BEST_NAME, LAST_NAME, START_NAME, STATE_NAME
from vosrt_train.state import Progress
from vosrt_train.validate import DavisSequence, find_sequences

SKIPPED_NAME = "skipped.tsv"
FINE_TUNING = "finetune"  # the presets of --init and --distil
DISTILLING = "distil-cpu"


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """Options of the command; see ``vos-train --help``."""

    data: Path
    run: Path
    preset: str | None = None
    changes: tuple[str, ...] = ()
    init: str | None = None
    distil: str | None = None
    resume: bool = False
    validation: Path | None = None
    cache: Path | None = None
    licence: str | None = None
    minutes: float | None = None
    quiet: bool = False


def run_training(request: TrainRequest) -> int:
    """Train, and print the result.

    Returns:
        The exit code: 0, or 130 where the training was interrupted.

    Raises:
        VosrtError: an option is wrong, or the training failed; the run can be resumed from its last state.
    """
    config = _load_config(request)
    _check_run(request)
    sequences = _find_sequences(config)
    encoder = starting_encoder(config, request.init)
    masks = starting_masks(config, request.init)
    origin = None if request.init is None else starting_training(request.init, config)
    inference = _inference(request)
    use_threads(config.compute)
    with join_world(config.compute) as world, locked(request.run) if world.is_first else nullcontext():
        _check_run(request)
        plan = plan_cache(request.data, _cache_directory(request), config.cache)
        if world.is_first and not request.resume:
            _write(request.run, CONFIG_NAME, to_toml(config))
        quiet = request.quiet or not world.is_first
        cache = prepare_cache(plan, config, world, quiet=quiet)
        if not request.resume:
            config = _fit(config, request, count_clips(config.clips, cache), world, quiet)
        if world.is_first and not request.resume:
            _list_skipped(cache, request.run)
            _write(request.run, CONFIG_NAME, to_toml(config))
        if config.teacher and request.init is None and not request.resume:
            with status("fitting the student to its teacher", visible=not quiet):
                origin = narrow_teacher(config, encoder, cache)
        limit_s = None if request.minutes is None else 60 * request.minutes
        task = Task(config, cache, request.run, request.resume, sequences, request.quiet, limit_s, origin, inference)
        progress = train(task, encoder, world, masks)
        kept = _keep_better(progress, task, world, quiet)
        quiet_note(quiet)(_report(progress, task, kept))
    return 0 if progress.step == progress.total_steps else EXIT_INTERRUPTED


def dry_run_training(request: TrainRequest) -> None:
    """Print the plan of a training; write nothing.

    Raises:
        VosrtError: an option is wrong.
    """
    config = _load_config(request)
    _find_sequences(config)
    use_threads(config.compute)
    with status("reading the videos", visible=not request.quiet):
        plan = plan_cache(request.data, _cache_directory(request), config.cache)
    with join_world(config.compute) as world:
        config = _fit(config, request, plan.videos, world, request.quiet)
        encoder, masks = starting_encoder(config, request.init), starting_masks(config, request.init)
        with status("measuring steps", visible=not request.quiet):
            cost = measure_step(config, encoder, world.device, masks)
        if world.is_first:
            say(describe_plan(plan, config, cost, world.device))


def _load_config(request: TrainRequest) -> TrainConfig:
    """Read the preset, or the settings of the run to resume, and apply the options of the command."""
    config = load_config(_preset(request), request.changes)
    if _fine_tunes(request) and not any(change.startswith("encoder.") for change in request.changes):
        config = with_encoder_of(config, str(request.init))
    licence, stated = request.licence, config.licence != TrainConfig.licence
    if request.distil is not None:
        config = replace(config, teacher=teacher_name(request.distil))
        inherited = teacher_licence(request.distil)  # also where it is not taken: a teacher that is none fails early
        licence = inherited if licence is None and not stated else licence
    if licence is None and request.init is not None and not stated:
        licence = starting_licence(request.init)
    if licence is not None:
        config = replace(config, licence=licence)
    if request.validation is not None:
        config = replace(config, validation=replace(config.validation, folder=str(request.validation.absolute())))
    return config


def _preset(request: TrainRequest) -> str:
    if request.preset is not None:
        return request.preset
    if request.distil is not None:
        return DISTILLING
    if _fine_tunes(request):
        return FINE_TUNING
    if not request.resume:
        return "gpu-30min" if torch.cuda.is_available() else "cpu-2h"
    if not (request.run / CONFIG_NAME).is_file():
        raise OptionError(f"nothing to resume: {request.run} has no {CONFIG_NAME}; start without --resume")
    return str(request.run / CONFIG_NAME)


def _fine_tunes(request: TrainRequest) -> bool:
    """Whether ``--init`` selects the preset for fine-tuning."""
    asked = request.init is not None and not request.resume and request.distil is None
    return asked and request.preset in (None, FINE_TUNING)


def _fit(config: TrainConfig, request: TrainRequest, clips: int, world: World, quiet: bool) -> TrainConfig:
    """Limit the batch of a fine-tuning to the clips of the data, and plan the steps that fit into ``--minutes``."""
    if _fine_tunes(request):
        batch = max(1, min(config.clips.batch, clips) // world.size) * world.size
        config = replace(config, clips=replace(config.clips, batch=batch))
    if request.minutes is None:
        return config
    with status("measuring steps", visible=not quiet):
        encoder, masks = starting_encoder(config, request.init), starting_masks(config, request.init)
        cost = measure_step(config, encoder, world.device, masks)
    seconds = float(world.mean(torch.tensor([cost.seconds], device=world.device)))
    steps = max(1, round(60 * request.minutes / seconds))
    quiet_note(quiet)(f"{request.minutes:g} minutes are about {steps} steps of {seconds:.2g} s")
    schedule = replace(config.schedule, epochs=0, steps=steps, warmup=min(config.schedule.warmup, steps // 10))
    return replace(config, schedule=schedule)


def _keep_better(progress: Progress, task: Task, world: World, quiet: bool) -> Kept | None:
    """Compare the network before with the one after, unless validation has chosen between them already."""
    compares = task.config.validation.cycles and not task.sequences and (task.run / START_NAME).is_file()
    if not compares or progress.step < progress.total_steps or not world.is_first:
        return None
    with status("comparing the networks before and after", visible=not quiet) as tell:
        return keep_better(task.run, task.config, task.cache, tell)


def _inference(request: TrainRequest) -> Inference | None:
    """Return how the teacher, else the start, propagates masks; a resumed run has it in its last weights."""
    source = request.distil or request.init
    if request.resume:
        last = request.run / LAST_NAME
        source = str(last) if last.is_file() else None
    return None if source is None else inference_of(source)


def _find_sequences(config: TrainConfig) -> tuple[DavisSequence, ...]:
    if not config.validation.folder:
        return ()
    return tuple(find_sequences(Path(config.validation.folder), config.validation.sequences))


def _check_run(request: TrainRequest) -> None:
    """Refuse options and folders with which a run can neither start nor resume."""
    if request.minutes is not None and not 0 < request.minutes <= 1e6:
        raise OptionError(f"--minutes is {request.minutes:g}; expected more than 0")
    if request.resume and request.minutes is not None:
        raise OptionError("--resume goes on to the length that the run was started with; leave out --minutes")
    if request.resume and request.init is not None:
        raise OptionError("--resume goes on with the weights of the run; leave out --init, or leave out --resume")
    if request.resume and request.distil is not None:
        raise OptionError("--resume goes on with the teacher of the run; leave out --distil, or leave out --resume")
    has_state = (request.run / STATE_NAME).exists()
    if request.resume and not has_state:
        raise OptionError(f"nothing to resume: {request.run} has no {STATE_NAME}; start without --resume")
    if has_state and not request.resume:
        raise OutputError(f"{request.run} holds a training; go on with it with --resume, or name another folder")
    if not has_state and request.run.is_dir():
        check_replaceable(request.run, [CONFIG_NAME, SKIPPED_NAME, BEST_NAME, LAST_NAME])


def _list_skipped(cache: Cache, run: Path) -> None:
    _write(run, SKIPPED_NAME, "".join(f"{each.name}\t{each.reason}\n" for each in cache.skipped))


def _write(run: Path, name: str, text: str) -> None:
    """Write a file and list it as ours, so that another training may replace it if this one never saves a state."""
    with files_beside(run, "vos-train") as target:
        target.write(name, text.encode())


def _cache_directory(request: TrainRequest) -> Path:
    return request.cache or default_cache(request.data)


def _report(progress: Progress, task: Task, kept: Kept | None) -> str:
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
    elif kept is not None:
        lines.append(f"{kept}: {task.run / BEST_NAME}")
    else:
        lines.append(f"weights: {task.run / LAST_NAME}")
    if progress.step < progress.total_steps:
        lines.append("interrupted; go on with --resume")
    else:
        lines.append(f"next: vos-export {task.run} -o BUNDLE")
    return "\n".join(lines)
