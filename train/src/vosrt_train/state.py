"""The state of a training in one file, from which ``--resume`` continues.

Every step draws its random numbers from generators that the seed and the number of the step determine, so the file
needs no state of a generator.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vosrt._files import replacing, write_all, writing
from vosrt._reading import WEIGHTS_BYTES, read_bytes
from vosrt.errors import InputError, OptionError
from vosrt_train.config import TrainConfig
from vosrt_train.config_file import build, differences
from vosrt_train.data.cache import Cache

FORMAT = 1
_MAGIC = b"vosrt state\n"  # the hash of the rest follows it
_ZIP = b"PK"  # what `torch.save` writes; files without a hash begin so
# Settings that may change on --resume: they decide where the training runs and what it logs, not what it computes.
_FREE = ("log.", "clips.workers", "compute.device", "validation.folder", "compute.threads", "compute.compile")


class StateError(InputError):
    """The state of a run is missing, damaged or belongs to another run."""


@dataclass
class Progress:
    """Progress of a training.

    Attributes:
        step: steps done.
        seconds: time spent in these steps.
        waited_s: the part of ``seconds`` in which the loop waited for clips.
        best: the highest validated J&F, 0 to 1; None before the first validation.
        best_step: steps done at that validation.
    """

    total_steps: int
    step: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    best: float | None = None
    best_step: int = 0

    def fit(self, planned: int, left_s: float, step_s: float) -> None:
        """Let the training end with the last step that fits into the time, after at most ``planned`` steps.

        The learning rate and all else that follows the length bend to it.
        """
        self.total_steps = min(planned, self.step + max(0, int(left_s / step_s)))

    def due(self, every: int) -> bool:
        """Whether an action that is due every so many steps (0: never), and at the end, is due after this step."""
        return self.step == self.total_steps or (every > 0 and self.step % every == 0)


@dataclass(frozen=True)
class State:
    """A training after a number of steps.

    Attributes:
        data: `fingerprint` of the videos.
        masks: state dictionary of mask encoder and decoder, where the run trains them.
        average: state dictionary of the averaged weights of all networks, where the run averages.
    """

    config: TrainConfig
    data: str
    progress: Progress
    network: dict[str, Any]
    optimiser: dict[str, Any]
    masks: dict[str, Any] | None = None
    average: dict[str, Any] | None = None

    def check_same_run(self, config: TrainConfig, data: str) -> None:
        """Refuse other settings or other videos: the result would belong to neither run.

        Raises:
            StateError: they differ.
        """
        extended = ("schedule.steps",) if config.schedule.decay == "hold" and config.schedule.steps else ()
        changed = [each for each in differences(self.config, config) if not each.startswith(_FREE + extended)]
        if changed:
            raise StateError(
                f"the run was started with other settings ({'; '.join(changed[:3])}); give the same ones, "
                "or start another run with -o and --init"
            )
        if self.data != data:
            raise StateError("the videos have changed since the run was started; start another with -o and --init")


def fingerprint(cache: Cache) -> str:
    """Hash the names, sizes and rates of the videos that clips are drawn from."""
    facts = [(video.name, video.frames, video.height, video.width, video.fps) for video in cache.videos]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def save_state(state: State, path: Path) -> None:
    """Write the state; after a crash at any moment the file is the old one or the new one.

    Raises:
        WorkError: the system refused.
    """
    document = {
        "format": FORMAT,
        "config": json.loads(json.dumps(asdict(state.config))),  # lists for tuples, as TOML has them
        "data": state.data,
        "progress": asdict(state.progress),
        "network": state.network,
        "optimiser": state.optimiser,
        "masks": state.masks,
        "average": state.average,
    }
    data = io.BytesIO()
    torch.save(document, data)
    content = data.getbuffer()
    with writing(path), replacing(path) as file:
        write_all(file, _MAGIC + hashlib.sha256(content).digest())
        write_all(file, content)


def load_state(path: Path) -> State:
    """Read a state onto the CPU.

    Raises:
        StateError: it is missing, damaged or made by another version.
    """
    if not path.is_file():
        raise StateError(f"nothing to resume: {path} does not exist; start without --resume")
    try:
        document = torch.load(_content(path), map_location="cpu", weights_only=True)
        version = document.pop("format")
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, AttributeError, pickle.UnpicklingError) as error:
        raise StateError(f"{path} is not a whole state ({type(error).__name__}); name another -o") from error
    if version != FORMAT:
        raise StateError(f"{path} has format {version}, this vosrt reads {FORMAT}; resume with the one that made it")
    try:
        config, progress = build(TrainConfig, document.pop("config")), Progress(**document.pop("progress"))
        return State(config=config, progress=progress, **document)
    except (TypeError, KeyError, OptionError) as error:
        raise StateError(f"the state {path} cannot be used: {error}; resume with the vosrt that made it") from error


def _content(path: Path) -> io.BytesIO:
    """Read the bytes that ``torch.save`` wrote, and check their hash.

    Raises:
        ValueError: the hash does not match.
    """
    data = read_bytes(path, WEIGHTS_BYTES)
    if data.startswith(_ZIP):
        return io.BytesIO(data)
    begin = len(_MAGIC) + hashlib.sha256().digest_size
    content = data[begin:]
    if data[:begin] != _MAGIC + hashlib.sha256(content).digest():
        raise ValueError("its hash is another")
    return io.BytesIO(content)
