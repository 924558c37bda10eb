"""The folder of ``vos-run``: names of its files, what may lie in it, and what a result is made with."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vosrt._results import check_results
from vosrt.errors import OutputError
from vosrt.types import WorkingSize
from vosrt.video.images import list_images
from vosrt.video.prompts import Annotations

if TYPE_CHECKING:
    from vosrt.model import Model

_SAMPLE_BYTES = 1 << 20


def check_folder(path: Path, inputs: tuple[Path, ...], *, overwrite: bool, resume: bool) -> None:
    """Find out, without touching anything of the user's, whether results could be written.

    Args:
        path: the folder; it need not exist.
        inputs: files and folders that are read, and must survive.
        overwrite: results of an earlier run may be replaced.
        resume: an unfinished run may go on.

    Raises:
        OutputError: it holds an input, or anything but results that may be replaced or continued.
    """
    for each in inputs if overwrite or resume else ():
        if each.resolve().is_relative_to(path.resolve()):
            raise OutputError(f"{path}: holds the input {each}; choose another folder for the results")
    check_results(path, overwrite=overwrite, resume=resume)


def settings_of(
    source: str, annotations: Annotations, model: Model, size: WorkingSize | None, **options: Any
) -> dict[str, Any]:
    """All that a result depends on, as JSON, so that runs of different requests are not mixed.

    Args:
        size: as the user asked for it.
        options: further choices; ``propagation`` holds values that replace the bundle's.
    """
    described, manifest = model.describe(), model.manifest
    propagation = replace(manifest.inference, **options.pop("propagation"))
    marks = hashlib.sha256()
    for index, mask in sorted(annotations.masks.items()):
        marks.update(json.dumps([index, *mask.shape]).encode())
        marks.update(mask.tobytes())
    return {
        "source": _fingerprint(source),
        "annotations": marks.hexdigest(),
        "bundle": manifest.name,
        "graphs": {name: graph.sha256[:16] for name, graph in sorted(manifest.graphs.items())},
        "size": size,
        "engine": {name: f"{each['name']} {each['precision']}" for name, each in described["engines"].items()},
        "core": described["core"].split(" on ")[0],  # the number of threads changes nothing
        "propagation": asdict(propagation),
        **options,
        "vosrt": described["versions"]["vosrt"],
    }


def _fingerprint(source: str) -> str:
    """The source in few words: names and sizes of its files, and the ends of a video file."""
    path = Path(source)
    if path.is_dir():
        files = [(file.name, file.stat().st_size) for file in list_images(path)]
        return f"{path.name}, {len(files)} images, {hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]}"
    if not path.is_file():
        return source
    with path.open("rb") as file:
        ends = file.read(_SAMPLE_BYTES)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _SAMPLE_BYTES))
        ends += file.read(_SAMPLE_BYTES)
    return f"{path.name}, {size} bytes, {hashlib.sha256(ends).hexdigest()[:16]}"
