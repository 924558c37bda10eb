"""``results.json``: what a folder of masks was made with, and which sequences are in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vosrt._files import check_writable, locked
from vosrt._reading import read_json
from vosrt._results import Results, check_results, open_results
from vosrt.bundle import Manifest
from vosrt.errors import OutputError
from vosrt.evaluation.layouts import Dataset
from vosrt.model import Model
from vosrt.types import PropagationOptions

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

    def save(self, results: Results) -> None:
        """Write it.

        Raises:
            WorkError: it cannot be written.
        """
        results.write_json(RECORD, {"schema": SCHEMA, **asdict(self)})


def read_record(folder: Path) -> Record | None:
    """Read the record of a folder of results; None where it has none, as masks made elsewhere.

    Raises:
        OutputError: the file exists and is no such record.
    """
    path = folder / RECORD
    try:
        document = read_json(path)
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
def results_folder(
    path: Path, settings: dict[str, Any], dataset: Dataset, *, overwrite: bool
) -> Iterator[tuple[Results, Record]]:
    """Open a folder for results, new or with a run of the same settings that goes on, for this process alone.

    Args:
        path: the folder; created if need be.
        overwrite: replace the results of an earlier run, once these are complete.

    Yields:
        The results and the record so far, which is on disk already.

    Raises:
        OutputError: the folder holds something else, results of other settings, or is in use; or cannot be written.
        WorkError: the record cannot be written.
    """
    check_writable(path)
    with locked(path):
        check_results(path, overwrite=overwrite, resume=True)
        with open_results(path, "vos-eval run", settings, overwrite=overwrite, resume=True) as results:
            record = read_record(results.path) or Record(settings, notes=list(dataset.notes))
            record.failed.clear()
            record.save(results)
            yield results, record
