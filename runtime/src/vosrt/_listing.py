"""The results of one run in one folder, and the list that says which of its files are ours.

``.vosrt.jsonl`` is written as the run goes: a line with the run and its settings, a line per file (name, size, SHA-256)
before the file gets its name, and a last line once the result is complete. Only files that still look as it says are
ever replaced or removed; everything else in the folder belongs to the user.

A new result beside an old one is written into ``.vosrt-unfinished`` and takes the old one's place when it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vosrt._files import (
    LOCK,
    is_regular,
    open_folder,
    plain_name,
    sha256_of,
    sync_folder,
    writing,
)
from vosrt._reading import JSON_BYTES, open_regular
from vosrt.errors import InputError, OutputError

LIST = ".vosrt.jsonl"
UNFINISHED = ".vosrt-unfinished"  # a new result, while it is written beside an old one
FINISHED = ".vosrt-finished"  # the same when it is complete and about to take the old one's place
CHECKPOINT = ".vosrt-checkpoint"
SCHEMA = 1
OWN = frozenset({LOCK, LIST, UNFINISHED, FINISHED, CHECKPOINT})
Mark = tuple[int, str]  # bytes and SHA-256 of a file


@dataclass
class Listing:
    """Content of ``.vosrt.jsonl``.

    Attributes:
        run: name of the run, random.
        files: per name, what it looked like whenever it was written.
        growing: temporary names of files that are or were being written.
        folders: sequences that are complete.
        complete: the run came to its end.
        length: bytes of whole lines.
    """

    run: str
    command: str
    settings: dict[str, Any]
    files: dict[str, set[Mark]] = field(default_factory=dict)
    growing: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    complete: bool = False
    length: int = 0

    def add(self, line: dict[str, Any], origin: str) -> None:
        """Take in one line after the first.

        Raises:
            InputError: a name in it leads out of the folder.
        """
        if "file" in line:
            name = checked_name(line["file"], origin)
            self.files.setdefault(name, set()).add((int(line["size"]), str(line["sha256"])))
        elif "growing" in line:
            self.growing.add(checked_name(line["growing"], origin))
        elif "folder" in line:
            self.folders.add(checked_name(line["folder"], origin))
            for name, (size, digest) in line["files"].items():
                inside = f"{line['folder']}/{plain_name(name, origin)}"
                self.files.setdefault(inside, set()).add((int(size), str(digest)))
        self.complete = bool(line.get("complete", False))


def read_listing(folder: Path) -> Listing | None:
    """Read the list of a folder; None where it has none. A last line that is cut short is left out.

    Raises:
        OutputError: it is damaged, or made by a newer vosrt.
    """
    path = folder / LIST
    try:
        with open_regular(path, JSON_BYTES, follow=False) as file:
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror}); choose another folder with -o") from error
    if not lines:
        return None
    try:
        head, *rest = (json.loads(line) for line in lines)
        if head["vosrt"] != SCHEMA:
            raise OutputError(f"{path}: has schema {head['vosrt']}; this vosrt reads {SCHEMA}; upgrade vosrt")
        listing = Listing(str(head["run"]), str(head["command"]), dict(head["settings"]))
        for line in rest:
            listing.add(line, str(path))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{path}: is damaged ({type(error).__name__}), so nothing here is replaced; choose another folder with -o"
        ) from error
    except InputError as error:
        raise OutputError(str(error)) from error
    listing.length = sum(len(line) + 1 for line in lines)
    return listing


def checked_name(name: Any, origin: str) -> str:
    for part in str(name).split("/"):
        plain_name(part, origin)
    return str(name)


def remove_listed(path: Path, listing: Listing) -> None:
    """Remove the files of a result that still look as listed, folders that are empty then, and the list."""
    _remove_files(path, listing, set())
    for name in (CHECKPOINT, LIST):
        with suppress(FileNotFoundError):
            (path / name).unlink()


def _remove_files(path: Path, listing: Listing, kept: set[str]) -> None:
    """Remove what ``listing`` says, but not ``kept``, and folders that are empty then."""
    for name in sorted(listing.files.keys() | listing.growing):
        with suppress(FileNotFoundError, NotADirectoryError), parent_of(path, name) as (folder, last):
            if name in kept:
                continue
            if name in listing.growing or looks_as_listed(folder, last, name, listing):
                remove(last, folder)
    for name in sorted(_folders_of(listing), reverse=True):
        with suppress(OSError), parent_of(path, name) as (folder, last):
            _remove_parts(last, folder, listing.run)
            os.rmdir(last, dir_fd=folder)
    _remove_parts(path, None, listing.run)


def _remove_parts(name: str | Path, above: int | None, run: str) -> None:
    """Remove the remains of a killed run from a folder; its name is unique to that run."""
    folder = open_folder(name, above, follow=above is None)
    try:
        for entry in os.listdir(folder):
            if entry.endswith(f".{run}.part"):
                remove(entry, folder)
    finally:
        os.close(folder)


def remove(name: str, folder: int) -> None:
    """Remove a file, a link or a folder with its content; links are not followed."""
    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        shutil.rmtree(name, dir_fd=folder)
    else:
        os.unlink(name, dir_fd=folder)


def take_place(path: Path) -> None:
    """Put the complete result in ``.vosrt-finished`` where the old one is. Goes on where a killed process stopped."""
    finished = path / FINISHED
    new, old = read_listing(finished), read_listing(path)
    if new is not None:
        with writing(path):
            if old is not None and old.run != new.run:
                _remove_files(path, old, kept=set(new.files))
            for name in sorted(new.files):
                _move(finished, path, name, old)
            for folder in {Path(name).parent for name in new.files}:
                sync_folder(path / folder)
            with suppress(FileNotFoundError):
                (path / CHECKPOINT).unlink()
            os.replace(finished / LIST, path / LIST)
            sync_folder(path)
    prune(finished)


def is_own(path: Path) -> bool:
    """Return whether the path is a folder and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def prune(path: Path) -> None:
    """Remove folders of ours that are empty."""
    for folder, _, _ in os.walk(path, topdown=False):
        with suppress(OSError):
            os.rmdir(folder)


def _move(finished: Path, path: Path, name: str, old: Listing | None) -> None:
    with suppress(FileNotFoundError), parent_of(finished, name) as (source, last):
        if not is_regular(last, source):
            return
        with parent_of(path, name, create=True) as (folder, _):
            if exists(last, folder) and not (old is not None and looks_as_listed(folder, last, name, old)):
                raise not_ours(path / name)
            os.replace(last, last, src_dir_fd=source, dst_dir_fd=folder)


def changed_names(path: Path, listing: Listing) -> Iterator[str]:
    """Names of listed files that exist and are not as listed."""
    for name in sorted(listing.files):
        with suppress(FileNotFoundError, NotADirectoryError), parent_of(path, name) as (folder, last):
            if exists(last, folder) and not looks_as_listed(folder, last, name, listing):
                yield name


def looks_as_listed(folder: int, last: str, name: str, listing: Listing) -> bool:
    """Return whether a file is what the list says of ``name``, by size first and then by hash."""
    marks = listing.files.get(name, set())
    if not is_regular(last, folder):
        return False
    with os.fdopen(os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        return any(size == each for each, _ in marks) and (size, sha256_of(file)) in marks


@contextmanager
def parent_of(root: Path, name: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
    """Descriptor of the folder that ``name`` is in, reached without following links, and the last part of the name."""
    *above, last = name.split("/")
    folder = open_folder(root, follow=True)
    try:
        for part in above:
            if create:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=folder)
            inner = open_folder(part, folder)
            os.close(folder)
            folder = inner
        yield folder, last
    finally:
        os.close(folder)


def _folders_of(listing: Listing) -> set[str]:
    """Folders below the root that hold listed files."""
    names = {*listing.files, *listing.growing}
    return {str(parent) for name in names for parent in PurePosixPath(name).parents} - {"."} | listing.folders


def exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def growing_name(last: str) -> str:
    return f".{last}.part"


def beside_of(name: str, other: str) -> str:
    """The name of a file in the folder of ``name``."""
    return str(PurePosixPath(name).with_name(other))


def not_ours(path: Path) -> OutputError:
    return OutputError(f"{path}: is not a file that this run wrote, so it is not replaced; move it away")
