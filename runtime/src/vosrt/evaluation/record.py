"""``results.json``: what a folder of masks was made with, and which sequences are in it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vosrt.bundle import Manifest
from vosrt.errors import OutputError
from vosrt.evaluation.layouts import Dataset
from vosrt.model import Model
from vosrt.types import PropagationOptions
from vosrt.video.sinks import write_json

RECORD = "results.json"
SCHEMA = 1


@dataclass
class Record:
    """Content of ``results.json``.

    Attributes:
        settings: what all masks of the folder were made with; never mixed.
        sequences: per complete sequence, its figures (frames, seconds, objects).
        failed: per sequence that could not be segmented, why.
        notes: how the data set was read.
    """

    settings: dict[str, Any]
    sequences: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write it under a temporary name and rename it.

        Raises:
            WorkError: it cannot be written.
        """
        write_json(folder / RECORD, {"schema": SCHEMA, **asdict(self)})


def read_record(folder: Path) -> Record | None:
    """Read the record of a folder of results; None where it has none, as masks made elsewhere.

    Raises:
        OutputError: the file is there but is no such record.
    """
    path = folder / RECORD
    try:
        document = json.loads(path.read_text("utf-8"))
        if document["schema"] != SCHEMA:
            raise OutputError(f"{path}: has schema {document['schema']}; this vosrt reads {SCHEMA}; upgrade vosrt")
        return Record(
            dict(document["settings"]),
            dict(document["sequences"]),
            dict(document["failed"]),
            list(document["notes"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{path}: is not a record of vos-eval run ({type(error).__name__}: {error}); choose another folder with -o"
        ) from error


def settings_of(
    dataset: Dataset, model: Model, *, size: int | None, precision: str, options: PropagationOptions
) -> dict[str, Any]:
    """Everything that the masks depend on."""
    described = model.describe()
    engine = described["engines"]["encoder"]
    manifest: Manifest = model.manifest
    return {
        "dataset": dataset.kind,
        "resolution": dataset.resolution,
        "bundle": manifest.name,
        "weights": described["weights"],
        "encoder_sha256": manifest.graphs["encoder"].sha256,
        "size": size if size is not None else manifest.size,
        "engine": f"{engine['name']} {engine['precision']}",
        "precision": precision,
        "core": described["core"].split(" on ")[0],  # the number of threads changes nothing
        "propagation": asdict(options),
        "vosrt": described["versions"]["vosrt"],
    }


@contextmanager
def results_folder(path: Path, settings: dict[str, Any], dataset: Dataset, *, overwrite: bool) -> Iterator[Record]:
    """Open a folder for results, new or with an unfinished run of the same settings, for this process alone.

    Args:
        path: the folder; created if need be.
        settings: of the run that begins.
        dataset: its sequences' masks are what ``overwrite`` removes.
        overwrite: remove the masks of an earlier run first.

    Yields:
        The record so far. What it lists may be kept; it is on disk already.

    Raises:
        OutputError: the folder holds something else, results of other settings, or is in use; or cannot be written.
        WorkError: the record cannot be written.
    """
    record = _check(path, settings, overwrite)
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another folder with -o") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputError(f"{path}: another vos-eval run is writing there; wait for it or choose another") from None
        if record is not None and overwrite:
            for name in {*record.sequences, *(sequence.name for sequence in dataset.sequences)}:
                shutil.rmtree(dataset.mask_folder(path, name), ignore_errors=True)
            record = None
        record = record or Record(settings, notes=list(dataset.notes))
        record.failed.clear()
        record.save(path)
        yield record
    finally:
        os.close(handle)


def _check(path: Path, settings: dict[str, Any], overwrite: bool) -> Record | None:
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise OutputError(f"{path}: {existing} is a file; expected a folder for the results")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: {existing} is not writable; choose another folder with -o")
    if existing != path or not any(path.iterdir()):
        return None
    record = read_record(path)
    if record is None:
        raise OutputError(f"{path}: holds files but no {RECORD} of an earlier run; choose another folder with -o")
    if not overwrite:
        for name, now in settings.items():
            if (then := record.settings.get(name)) != now:
                raise OutputError(
                    f"{path}: holds masks made with {name} = {_shown(then, now)}, this run has {_shown(now, then)}; "
                    "choose another folder with -o, or --overwrite"
                )
    return record


def _shown(value: Any, other: Any) -> str:
    """A setting in few words: of two dictionaries only what differs, of two hashes their beginning."""
    if isinstance(value, dict) and isinstance(other, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if other.get(key) != item) or "nothing else"
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
