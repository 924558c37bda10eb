"""Pseudo-masks on disk: one palette PNG of cluster numbers per video, and ``index.jsonl``, a line per video.

A PNG holds the frames one below the other: about 100 bytes a frame at the resolution of the feature maps, some
kilobytes at that of the frames. The line is appended once the PNG is in place, and ``done`` is created last, so that a
killed process can continue with the videos that have no line.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vosrt._files import replacing, write_file, writing
from vosrt._reading import JSON_BYTES, open_image, read_bytes
from vosrt.errors import InputError
from vosrt.video.palette import davis_palette
from vosrt_train.masks.clustering.foreground import ClusterFacts, ClusterMap

_INDEX = "index.jsonl"
_DONE = "done"


class PseudoMaskError(InputError):
    """Pseudo-masks are missing or damaged."""


@dataclass(frozen=True)
class PseudoMaskEntry:
    """Entry of one video in the index.

    Attributes:
        frames: numbers of the frames that have maps, ascending.
        height: of a map, in cells, or pixels of the cache where borders were sharpened.
        objects: clusters selected as objects, the best first.
        facts: of every cluster, as in `ClusterFacts`.
        flicker: of the foreground.
        reason: why the video is not used for learning; it has maps nevertheless, for contact sheets.
    """

    name: str
    frames: tuple[int, ...]
    height: int
    width: int
    objects: tuple[int, ...]
    facts: tuple[Mapping[str, float], ...]
    flicker: float
    reason: str

    @property
    def usable(self) -> bool:
        """Whether the training learns from the video."""
        return bool(self.objects) and not self.reason


class PseudoMasks:
    """A directory of pseudo-masks.

    Args:
        directory: created when the first video is added.

    Raises:
        PseudoMaskError: the index cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.entries = {entry.name: entry for entry in _read_index(directory / _INDEX)}

    @property
    def done(self) -> bool:
        """Whether all videos of the job are present."""
        return (self.directory / _DONE).exists()

    def add(self, entry: PseudoMaskEntry, maps: ClusterMap) -> None:
        """Write the maps of a video, u8 [frames, h, w], then its line.

        Raises:
            WorkError: the system refused.
        """
        path = self._path(entry.name)
        image = Image.fromarray(maps.reshape(-1, entry.width))
        image.putpalette(davis_palette().tobytes())
        with writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                image.save(file, format="PNG", optimize=True)
            with (self.directory / _INDEX).open("a", encoding="utf-8") as index:
                index.write(json.dumps(asdict(entry)) + "\n")
        self.entries[entry.name] = entry

    def finish(self) -> None:
        """Mark the pseudo-masks as complete.

        Raises:
            WorkError: the system refused.
        """
        with writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            with (self.directory / _INDEX).open("a") as index:
                os.fsync(index.fileno())
            (self.directory / _DONE).touch()

    def maps(self, name: str) -> dict[int, ClusterMap]:
        """Read the cluster of every cell, u8 [h, w], by frame number.

        Raises:
            PseudoMaskError: there are none, or they are damaged.
        """
        entry = self._entry(name)
        try:
            with open_image(self._path(name)) as image:
                stacked = np.asarray(image)
            maps = stacked.reshape(len(entry.frames), entry.height, entry.width)
        except (OSError, ValueError) as error:
            raise PseudoMaskError(f"{self._path(name)} is damaged ({error}); delete {self.directory}") from error
        return dict(zip(entry.frames, maps, strict=True))

    def masks(self, name: str) -> dict[int, ClusterMap]:
        """Read pseudo-objects 1, 2, … and 0 for background, u8 [h, w], by frame number.

        Raises:
            PseudoMaskError: there are none, or they are damaged.
        """
        table = np.zeros(256, dtype=np.uint8)
        for number, cluster in enumerate(self._entry(name).objects, start=1):
            table[cluster] = number
        return {frame: table[clusters] for frame, clusters in self.maps(name).items()}

    @cached_property
    def all_masks(self) -> dict[str, dict[int, ClusterMap]]:
        """The masks of all usable videos, read once."""
        return {name: self.masks(name) for name, entry in self.entries.items() if entry.usable}

    @cached_property
    def all_maps(self) -> dict[str, dict[int, ClusterMap]]:
        """The clusters of all usable videos, read once."""
        return {name: self.maps(name) for name, entry in self.entries.items() if entry.usable}

    def summary(self) -> dict[str, float]:
        """Count videos and usable videos, and average the share of foreground and the flicker over the usable ones."""
        usable = [entry for entry in self.entries.values() if entry.usable]
        area = [sum(entry.facts[cluster]["area"] for cluster in entry.objects) for entry in usable]
        return {
            "videos": len(self.entries),
            "usable": len(usable),
            "foreground": float(np.mean(area)) if area else 0.0,
            "flicker": float(np.mean([entry.flicker for entry in usable])) if usable else 0.0,
        }

    def _entry(self, name: str) -> PseudoMaskEntry:
        if name not in self.entries:
            raise PseudoMaskError(
                f"{self.directory} has no pseudo-masks of {name}; make them with vos-train pseudo-masks"
            )
        return self.entries[name]

    def _path(self, name: str) -> Path:
        return self.directory / f"{hashlib.sha256(name.encode()).hexdigest()[:20]}.png"


def plain_facts(facts: tuple[ClusterFacts, ...]) -> tuple[dict[str, float], ...]:
    """Convert measurements to the form of the index."""
    return tuple(asdict(each) for each in facts)


def _read_index(path: Path) -> list[PseudoMaskEntry]:
    """Read the lines of an index, and drop a last line that a killed process left incomplete."""
    try:
        lines = read_bytes(path, JSON_BYTES).decode("utf-8", "replace").splitlines() if path.exists() else []
    except OSError as error:
        raise PseudoMaskError(f"{path}: cannot be read ({error.strerror})") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(_entry_of(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                raise PseudoMaskError(f"{path}: line {number} is damaged; delete the directory") from error
            kept = "".join(f"{each}\n" for each in lines[:-1])
            write_file(path, kept)
    return entries


def _entry_of(document: dict[str, Any]) -> PseudoMaskEntry:
    sequences = {name: tuple(document[name]) for name in ("frames", "objects", "facts")}
    return PseudoMaskEntry(**{**document, **sequences})
