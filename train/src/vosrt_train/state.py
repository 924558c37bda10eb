"""What a killed training goes on from: one file, written whole or not at all.

All randomness of a step is drawn from generators that the seed and the step's number determine, so there is no
state of a generator to keep.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vosrt.errors import InputError, OptionError, OutputError
from vosrt_train.config import TrainConfig
from vosrt_train.config_file import build, differences
from vosrt_train.data.cache import Cache

FORMAT = 1
# What may change between a run and its continuation: where it runs and how it is watched, not what is computed.
_FREE = ("log.", "clips.workers", "compute.device", "validation.folder", "compute.threads", "compute.compile")


class StateError(InputError):
    """The state of a run is missing, damaged or of another run."""


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        total_steps: length of the training.
        step: steps done.
        seconds: spent in them.
        waited_s: of these, waiting for clips.
        best: the highest validated J&F, 0 to 1; None before the first validation.
        best_step: steps done at that validation.
    """

    total_steps: int
    step: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    best: float | None = None
    best_step: int = 0

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps (0: never), and at the end, is to be done now."""
        return self.step == self.total_steps or (every > 0 and self.step % every == 0)


@dataclass(frozen=True)
class State:
    """A training after a number of steps.

    Attributes:
        config: all choices of the run.
        data: `fingerprint` of the videos.
        progress: how far it is.
        network: state dictionary of the encoder.
        optimiser: state dictionary of the optimiser.
        masks: state dictionary of mask encoder and decoder, where the run trains them.
    """

    config: TrainConfig
    data: str
    progress: Progress
    network: dict[str, Any]
    optimiser: dict[str, Any]
    masks: dict[str, Any] | None = None

    def check_same_run(self, config: TrainConfig, data: str) -> None:
        """Refuse to go on with other choices or other videos, which would make neither run.

        Raises:
            StateError: they differ.
        """
        changed = [each for each in differences(self.config, config) if not each.startswith(_FREE)]
        if changed:
            raise StateError(
                f"the run was started with other settings ({'; '.join(changed[:3])}); give the same ones, "
                "or start another run with -o and --init"
            )
        if self.data != data:
            raise StateError("the videos have changed since the run was started; start another with -o and --init")


def fingerprint(cache: Cache) -> str:
    """A short name for the videos that clips are drawn from."""
    facts = [(video.name, video.frames, video.height, video.width, video.fps) for video in cache.videos]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def save_state(state: State, path: Path) -> None:
    """Write the state; after a crash at any moment the file is the old one or the new one.

    Raises:
        OutputError: the place cannot be written.
    """
    document = {
        "format": FORMAT,
        "config": json.loads(json.dumps(asdict(state.config))),  # lists for tuples, as TOML has them
        "data": state.data,
        "progress": asdict(state.progress),
        "network": state.network,
        "optimiser": state.optimiser,
        "masks": state.masks,
    }
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(document, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # RuntimeError is what torch.save makes of a full disk
        temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write the state {path}: {error}") from error


def load_state(path: Path) -> State:
    """Read a state onto the CPU.

    Raises:
        StateError: it is missing, damaged or made by another version.
    """
    if not path.is_file():
        raise StateError(f"nothing to resume: {path} does not exist; start without --resume")
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
        version = document.pop("format")
    except (OSError, RuntimeError, EOFError, KeyError, AttributeError, pickle.UnpicklingError) as error:
        raise StateError(f"{path} is not a whole state ({type(error).__name__}); start anew with another -o") from error
    if version != FORMAT:
        raise StateError(f"{path} has format {version}, this vosrt reads {FORMAT}; resume with the one that made it")
    try:
        config, progress = build(TrainConfig, document.pop("config")), Progress(**document.pop("progress"))
        return State(config=config, progress=progress, **document)
    except (TypeError, KeyError, OptionError) as error:
        raise StateError(f"the state {path} cannot be used: {error}; resume with the vosrt that made it") from error
