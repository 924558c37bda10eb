"""Clips of ``vos-run batch``: what its arguments name, and the marks of each."""

from __future__ import annotations

import csv
import glob
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

from vosrt._files import plain_name
from vosrt._reading import read_text
from vosrt.cli.stores import find_clips, is_on_store, marks_beside
from vosrt.errors import OptionError, SourceError
from vosrt.video.container import is_url
from vosrt.video.finding import find_sources
from vosrt.video.masks import MASK_SUFFIXES
from vosrt.video.source import ARRAY_SUFFIXES, TIFF_SUFFIXES

_MARKS = ("mask", "points", "box", "polygon")  # several in one cell are separated by spaces, files by ";"
_NUMBERS = ("start", "end")
COLUMNS = ("source", "name", *_MARKS, *_NUMBERS, "direction")


@dataclass(frozen=True)
class Clip:
    """One video of a batch.

    Attributes:
        source: as for ``vos-run SOURCE``.
        name: of its folder of results, different from all others.
        options: of ``vos-run`` for this clip, by the names of its arguments.
        named: the user chose the name.
    """

    source: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    named: bool = False


def list_clips(given: Iterable[str], marks: Path | None) -> list[Clip]:
    """Return the clips that the arguments name.

    Args:
        given: manifests (``.csv``), lists of paths (``.txt``), patterns, videos, and folders;
            the last three also on stores.
        marks: folder that holds ``STEM.png``, ``STEM.json`` or a folder ``STEM`` for the clip of that stem; None looks
            beside each clip.

    Raises:
        OptionError: nothing is named, or a manifest is wrong.
        SourceError: a file or folder does not exist or holds no video.
    """
    if marks is not None and not marks.is_dir():
        raise OptionError(f"--marks {marks}: is no folder; expected the folder with the marks of the clips")
    clips: list[Clip] = []
    for text in given:
        path = Path(text)
        if path.suffix.lower() == ".csv":
            clips += _read_manifest(path)
            continue
        if path.suffix.lower() == ".txt":
            lines = (line.strip() for line in _read(path).splitlines())
            listed = [line for line in lines if line and line[0] != "#"]
            found = [(line if is_url(line) else str(path.parent / line), _short(line)) for line in listed]
        elif is_on_store(text):
            found = [(url, _short(url)) for url in find_clips(text)]
        elif path.exists():
            found = _found_in(path)
        else:
            found = [(each, each) for each in sorted(glob.glob(text, recursive=True))]
            if not found:
                raise SourceError(f"{text}: no such file; expected videos, a folder, a pattern, a .txt or a .csv file")
        for source, name in found:
            beside = marks is None and is_on_store(source)
            clips.append(Clip(source, name, marks_beside(source) if beside else _marks_of(Path(source), marks)))
    if not clips:
        raise OptionError("the batch is empty; expected at least one clip")
    return _named(clips)


def _found_in(path: Path) -> list[tuple[str, str]]:
    """Paths and names of the videos in a folder; pictures that lie beside videos are their marks."""
    if path.is_file() and path.suffix.lower() in TIFF_SUFFIXES + ARRAY_SUFFIXES:
        return [(str(path), path.name)]
    sources, _ = find_sources(path)
    with_videos = {source.path.parent for source in sources if not source.images}
    clips = [source for source in sources if not (source.images and source.path in with_videos)]
    if not clips:
        raise SourceError(f"{path}: holds no videos; expected video files, or folders of frames, at any depth")
    return [(str(source.path), source.name) for source in clips]


def _marks_of(source: Path, folder: Path | None) -> dict[str, Any]:
    """The marks that lie under the stem of a clip in ``folder``, or beside it."""
    stem = (folder or source.parent) / (source.name if source.is_dir() else source.stem)
    if folder is not None and stem.is_dir():
        return {"mask": [str(stem)]}
    masks = [str(file) for suffix in sorted(MASK_SUFFIXES) if (file := stem.with_name(stem.name + suffix)).is_file()]
    polygons = stem.with_name(stem.name + ".json")
    named = [file for file in masks if Path(file) != source]
    return {"mask": named} if named else {"polygon": [str(polygons)]} if polygons.is_file() else {}


def _named(clips: list[Clip]) -> list[Clip]:
    """Give every clip a plain name of its own: its stem, or more of its path where stems are alike."""
    stems = [clip.name if clip.named else Path(clip.name).stem for clip in clips]
    often = Counter(stems)
    names = [
        stem if clip.named or often[stem] == 1 else re.sub(r"[/\\]+", "-", clip.name.lstrip("./"))
        for clip, stem in zip(clips, stems, strict=True)
    ]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        chosen = all(clip.named for clip, name in zip(clips, names, strict=True) if name == twice[0])
        names_file = "give them names in a .csv file (columns source, name)"
        remedy = "change the column name in one row" if chosen else names_file
        raise OptionError(f"two clips are called {twice[0]}; {remedy}")
    return [replace(clip, name=plain_name(name, clip.source)) for clip, name in zip(clips, names, strict=True)]


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: {getattr(error, 'strerror', None) or error}; expected a list in UTF-8") from error


def _read_manifest(path: Path) -> list[Clip]:
    text = _read(path)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)  # spreadsheets save what their language takes
    rows = csv.DictReader(StringIO(text, newline=""), delimiter=delimiter)
    rows.fieldnames = columns = [name.strip().lower() for name in rows.fieldnames or ()]
    unknown = [name for name in columns if name not in COLUMNS]
    if "source" not in columns or unknown:
        what = f"has a column {unknown[0]!r}" if unknown else "has no column 'source'"
        raise OptionError(f"{path}: {what}; expected source and any of {', '.join(COLUMNS[1:])}")
    clips = []
    for number, row in enumerate(rows, start=2):
        cells = {name: (cell or "").strip() for name, cell in row.items() if isinstance(name, str)}
        if not cells["source"] or None in row:
            what = "more cells than columns" if None in row else "no source"
            raise OptionError(f"{path}: line {number} has {what}; expected a path in the column source")
        clips.append(_clip_of(path, number, cells))
    return clips


def _clip_of(path: Path, number: int, cells: dict[str, str]) -> Clip:
    options: dict[str, Any] = {}
    for name in _MARKS:
        if cells.get(name):
            files = name in ("mask", "polygon")
            parts = [part.strip() for part in (cells[name].split(";") if files else cells[name].split())]
            options[name] = [_beside(path, part) if files else part for part in parts if part]
    for name in _NUMBERS:
        if cells.get(name):
            if not cells[name].isdecimal():
                raise OptionError(f"{path}: line {number}: {name} is {cells[name]!r}; expected the number of a frame")
            options[name] = int(cells[name])
    if cells.get("direction"):
        options["direction"] = cells["direction"]
    source = cells["source"] if is_url(cells["source"]) else str(path.parent / cells["source"])
    if cells.get("name"):
        return Clip(source, cells["name"], options, named=True)
    return Clip(source, _short(cells["source"]), options)


def _beside(manifest: Path, text: str) -> str:
    """A file of a manifest, whose path begins where the manifest lies; ``"37:late.png"`` keeps its number."""
    match = re.fullmatch(r"(\d+:)?(.+)", text)
    number, name = (match[1] or "", match[2]) if match else ("", text)
    return text if is_url(name) else f"{number}{manifest.parent / name}"


def _short(source: str) -> str:
    """A URL without its scheme, which names of results do not show."""
    return source.rsplit("://", 1)[-1]
