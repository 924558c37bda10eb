"""The log of a training: a progress bar, TensorBoard, and the same figures as lines of JSON."""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from vosrt._files import write_file
from vosrt._reading import JSON_BYTES, read_text
from vosrt.console import is_terminal, note, progress_bar
from vosrt.errors import WorkError
from vosrt_train.distributed import World
from vosrt_train.masks.clustering.store import PseudoMasks
from vosrt_train.state import Progress
from vosrt_train.validate import Validation

SCALARS_NAME = "scalars.jsonl"
TENSORBOARD_NAME = "tensorboard"

_NUMBER = re.compile(r"\d+ ?%")
_LINE_EVERY_S = 60.0  # where the output is no terminal


class Means:
    """Means of figures over several steps. Sums stay on the device until `take`, so that no step waits for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Add the figures of one step, each f32 []; a mean is over the steps that have the figure."""
        for name, value in figures.items():
            self._counts[name] = self._counts.get(name, 0) + 1
            self._sums[name] = self._sums[name] + value.detach() if name in self._sums else value.detach()

    def check(self, step: int) -> None:
        """Check that the sums so far are finite.

        Raises:
            WorkError: one is not.
        """
        _check_finite(step, {name: float(value) for name, value in self._sums.items()})

    def take(self, step: int, world: World) -> dict[str, float]:
        """Return the means since the last call, over all processes.

        Raises:
            WorkError: one is not finite.
        """
        means = world.mean(torch.stack([total / self._counts[name] for name, total in self._sums.items()]))
        taken = dict(zip(self._sums, means.tolist(), strict=True))
        self._sums, self._counts = {}, {}
        _check_finite(step, taken)
        return taken


class Monitor:
    """Logs a run.

    Args:
        progress: where the run starts or resumes; lines that an earlier process logged of later steps are dropped.
        enabled: False in all processes but the first: nothing is logged.
        quiet: print nothing.
    """

    def __init__(self, run: Path, progress: Progress, *, enabled: bool, quiet: bool) -> None:
        self._run = run
        self._enabled = enabled
        self._written = replace(progress)
        self._say = quiet_note(quiet or not enabled)
        self._bar = progress_bar(visible=enabled and not quiet)
        self._task = self._bar.add_task("training", total=progress.total_steps, completed=progress.step, figures="")
        self._say_at_times = note_at_times(quiet or not enabled)

    def __enter__(self) -> Monitor:
        """Open the files."""
        if self._enabled:
            self._scalars = self._run / SCALARS_NAME
            _drop_later_lines(self._scalars, self._written.step)
            self._board = SummaryWriter(str(self._run / TENSORBOARD_NAME), purge_step=self._written.step + 1)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        if self._enabled:
            self._bar.stop()
            self._board.close()

    def tick(self, progress: Progress) -> None:
        """Move the progress bar."""
        self._bar.update(self._task, completed=progress.step)

    def steps(self, progress: Progress, figures: Mapping[str, float], *, frames: int) -> None:
        """Log the steps since the last call.

        Args:
            progress: after these steps.
            figures: means over these steps, by name; ``/`` groups them.
            frames: frames per step and process.
        """
        steps, seconds = progress.step - self._written.step, progress.seconds - self._written.seconds
        speed = {
            "speed/frames_per_s": frames * steps / seconds,
            "speed/waiting_share": (progress.waited_s - self._written.waited_s) / seconds,
            "speed/training_s": progress.seconds,
        }
        self._written = replace(progress)
        self._write(progress.step, {**figures, **speed})
        summary = (
            f"loss {figures['loss/total']:.3f} · {speed['speed/frames_per_s']:.0f} frames/s · "
            f"{speed['speed/waiting_share']:.0%} waiting"
        )
        if progress.best is not None:
            summary += f" · best J&F {100 * progress.best:.1f}"
        self._bar.update(self._task, completed=progress.step, figures=summary)
        left = timedelta(seconds=round((progress.total_steps - progress.step) * progress.seconds / progress.step))
        self._say_at_times(f"step {progress.step} of {progress.total_steps}: {summary}, {left} left")

    def validation(self, step: int, result: Validation) -> None:
        """Log a validation."""
        figures = {f"validation/{name}": score.j_and_f for name, score in result.scores.items()}
        self._write(step, {"validation/j_and_f": result.j_and_f, **figures})
        each = ", ".join(f"{name} {100 * score.j_and_f:.1f}" for name, score in result.scores.items())
        self._say(f"step {step}: J&F {100 * result.j_and_f:.1f} ({each})")

    def pseudo_masks(self, step: int, masks: PseudoMasks, *, waited_s: float) -> None:
        """Log that pseudo-masks come into use, and for how many seconds the training waited for them."""
        summary = masks.summary()
        self._write(
            step, {f"pseudo/{name}": value for name, value in summary.items()} | {"speed/pseudo_wait_s": waited_s}
        )
        refused = Counter(entry.reason.split(":")[0] for entry in masks.entries.values() if not entry.usable)
        reasons = "".join(f"; {count} refused: {_NUMBER.sub('…', reason)}" for reason, count in refused.most_common(3))
        self._say(
            f"step {step}: pseudo-masks {masks.directory.name} of {summary['usable']:.0f} of {summary['videos']:.0f} "
            f"videos{reasons}; waited {waited_s:.1f} s",
        )

    def picture(self, step: int, name: str, picture: Tensor) -> None:
        """Log a picture, u8 [3, H, W] RGB."""
        if self._enabled:
            self._board.add_image(name, picture.cpu(), step)

    def _write(self, step: int, figures: Mapping[str, float]) -> None:
        if self._enabled:
            with self._scalars.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **figures}) + "\n")
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()


def quiet_note(quiet: bool) -> Callable[[str], None]:
    """Return a function that prints a line on standard error, or, if quiet, ignores it."""
    return (lambda _: None) if quiet else note


def note_at_times(quiet: bool) -> Callable[[str], None]:
    """Return a `quiet_note` for what a progress bar shows: silent on a terminal, elsewhere a line a minute at most."""
    say, due = quiet_note(quiet or is_terminal()), 0.0

    def say_if_due(text: str) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + _LINE_EVERY_S
            say(text)

    return say_if_due


def _check_finite(step: int, figures: Mapping[str, float]) -> None:
    for name, value in figures.items():
        if not math.isfinite(value):
            raise WorkError(
                f"{name} is {value} by step {step}; lower optimiser.learning_rate, or set optimiser.clip_gradient or "
                "compute.precision=fp32, and start again"
            )


def _drop_later_lines(path: Path, step: int) -> None:
    """Drop the lines after the step at which a run resumes: it will log these steps again."""
    lines = read_text(path, JSON_BYTES).splitlines() if path.exists() else []
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # the process was killed while it wrote this line
    write_file(path, "".join(f"{line}\n" for line in kept))
