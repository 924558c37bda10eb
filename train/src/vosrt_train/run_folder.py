"""Names of the files in the folder of a run, and the choice of its weights."""

from __future__ import annotations

from pathlib import Path

from vosrt_train.checkpoint import CheckpointError

STATE_NAME = "state.pt"
START_NAME = "start.safetensors"
BEST_NAME = "best.safetensors"
LAST_NAME = "last.safetensors"


def weights_of(path: Path) -> Path:
    """Return the checkpoint of a path: of the folder of a run the best one, or the last where no best was chosen.

    Args:
        path: a checkpoint, or the folder of a run.

    Raises:
        CheckpointError: the folder has no checkpoint.
    """
    if not path.is_dir():
        return path
    for name in (BEST_NAME, LAST_NAME):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        f"{path} is a folder without {BEST_NAME} or {LAST_NAME}; expected a checkpoint (.safetensors), or a folder "
        "that vos-train has made (its first checkpoint comes after log.checkpoint steps)"
    )
