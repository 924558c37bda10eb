"""A run: what it is to do, what its steps change, and how that is saved and restored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch.optim import Adam

from vosrt._files import write_file
from vosrt_train.average import Networks, WeightAverage
from vosrt_train.checkpoint import Checkpoint, Inference, Training, save_checkpoint
from vosrt_train.config import TrainConfig
from vosrt_train.config_file import CONFIG_NAME, to_toml
from vosrt_train.data.cache import Cache
from vosrt_train.distributed import World
from vosrt_train.optimiser import build_optimiser
from vosrt_train.run_folder import LAST_NAME, STATE_NAME
from vosrt_train.state import Progress, State, fingerprint, load_state, save_state
from vosrt_train.validate import DavisSequence


@dataclass(frozen=True)
class Task:
    """What a run is to do.

    Attributes:
        run: existing folder for checkpoints, state and log.
        resume: continue from the state in the folder, exactly as if the training had not been interrupted.
        sequences: annotated sequences for validation; none skips validation.
        quiet: print nothing.
        limit_s: seconds that the steps may take; the length follows the pace of the steps, up to that of the settings.
            None keeps the length.
        origin: history of the weights to start from; None where they are random. Weights with a history are saved
            and validated before the first step, so that the best weights of the run are never worse.
        inference: what its checkpoints say of propagation, for bundles that are made of them.
    """

    config: TrainConfig
    cache: Cache
    run: Path
    resume: bool = False
    sequences: tuple[DavisSequence, ...] = ()
    quiet: bool = False
    limit_s: float | None = None
    origin: Training | None = None
    inference: Inference | None = None


@dataclass(frozen=True)
class Run:
    """A training under way: the loop changes the networks, the optimiser, the average and the progress in place.

    Attributes:
        world: all training processes; the first one writes the files.
        average: running average of the weights, which is validated and saved.
    """

    task: Task
    world: World
    networks: Networks
    optimiser: Adam
    average: WeightAverage
    progress: Progress

    def save(self) -> None:
        """Write the averaged weights and the state from which ``--resume`` continues.

        Raises:
            OutputError: the folder cannot be written.
        """
        if not self.world.is_first:
            return
        self.save_weights(self.average.networks, LAST_NAME)
        masks = self.networks.masks
        state = State(
            self.task.config,
            fingerprint(self.task.cache),
            self.progress,
            self.networks.encoder.state_dict(),
            self.optimiser.state_dict(),
            None if masks is None else masks.state_dict(),
            self.average.networks.all.state_dict() if self.task.config.optimiser.average else None,
        )
        save_state(state, self.task.run / STATE_NAME)

    def save_weights(self, networks: Networks, name: str) -> None:
        """Write a checkpoint of this step into the folder of the run."""
        config = self.task.config
        learnt = "correspondence" if networks.masks is None else "correspondence and mask embedding"
        if config.teacher:
            learnt = f"the correspondence of {Path(config.teacher).name}"
        summary = (
            f"{learnt} learnt without labels: {self.progress.step} steps of {config.clips.batch} clips of "
            f"{config.clips.frames} frames at {config.clips.crop} pixels, {len(self.task.cache.videos)} videos"
        )
        training = Training(trained=True, seed=config.seed, summary=summary, licence=config.licence)
        checkpoint = Checkpoint(networks.encoder, training, networks.masks, self.task.inference)
        save_checkpoint(checkpoint, self.task.run / name)


def begin(task: Task, networks: Networks, world: World, total_steps: int) -> Run:
    """Start a run, or restore its saved state.

    Raises:
        StateError: there is nothing to resume, or the state belongs to another run.
    """
    config = task.config
    run = Run(
        task,
        world,
        networks,
        build_optimiser(networks.all, config.optimiser),
        WeightAverage(networks, config.optimiser.average),
        Progress(total_steps),
    )
    if not task.resume:
        return run
    state = load_state(task.run / STATE_NAME)
    state.check_same_run(config, fingerprint(task.cache))
    # The next --resume reads a schedule that this one extended.
    write_file(task.run / CONFIG_NAME, to_toml(config))
    networks.encoder.load_state_dict(state.network)
    if networks.masks is not None and state.masks is not None:
        networks.masks.load_state_dict(state.masks)
    run.optimiser.load_state_dict(state.optimiser)
    if state.average is not None:
        run.average.networks.all.load_state_dict(state.average)
    return replace(run, progress=replace(state.progress, total_steps=total_steps))
