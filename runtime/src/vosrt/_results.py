"""Writing the results of one run into one folder, of which `vosrt._listing` keeps the list."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

from vosrt._files import (
    check_writable,
    is_regular,
    open_folder,
    open_new,
    plain_name,
    replacing,
    sha256_of,
    sync_folder,
    write_all,
    writing,
)
from vosrt._listing import (
    CHECKPOINT,
    FINISHED,
    LIST,
    OWN,
    SCHEMA,
    UNFINISHED,
    Listing,
    Mark,
    beside_of,
    changed_names,
    checked_name,
    exists,
    growing_name,
    is_own,
    looks_as_listed,
    not_ours,
    parent_of,
    prune,
    read_listing,
    remove,
    remove_listed,
    take_place,
)
from vosrt._reading import WEIGHTS_BYTES, open_regular
from vosrt.errors import OutputError
from vosrt.locking import Closing
from vosrt.text import to_json


class Target(Protocol):
    """Folder that sinks write to: a result or one folder of it."""

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, such as ``masks/00000.png``, or nothing.

        Raises:
            WorkError: the system refused; the message names the file.
            OutputError: a file of the user has this name.
        """

    def append(self, name: str) -> Growing:
        """Open a file that grows with the frames and gets its name when it is closed.

        Raises:
            WorkError: as for `write`.
            OutputError: likewise.
        """


class Growing:
    """File that grows with the frames, under a temporary name; its content is whole up to the last `keep`."""

    def __init__(self, results: Results, name: str, file: BinaryIO) -> None:
        self._results, self.name, self._file = results, name, file
        self._kept = file.seek(0, os.SEEK_END)

    def write(self, data: bytes | memoryview) -> int:
        """Append; returns the number of bytes, all of them.

        Raises:
            WorkError: the system refused; the file was cut back to the last `keep`.
        """
        with self._results.failing(self.name):
            try:
                write_all(self._file, data)
            except OSError:
                with suppress(OSError):
                    self._file.truncate(self._kept)
                    self._file.seek(self._kept)
                raise
        return len(memoryview(data).cast("B"))

    def keep(self) -> None:
        """Declare what was written so far whole."""
        self._kept = self._file.tell()

    def sync(self) -> int:
        """Have what was written survive a power cut; returns its length in bytes."""
        with self._results.failing(self.name):
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Give the file its name.

        Raises:
            WorkError: the system refused.
        """
        self._results.finish(self.name, self._file)

    def read_back(self) -> BinaryIO:
        """The file from its beginning, for reading."""
        self._file.seek(0)
        return self._file

    def discard(self) -> None:
        """Remove the file, whose content has gone into another.

        Raises:
            WorkError: the system refused.
        """
        self.abandon()
        self._results.drop(self.name)

    def abandon(self) -> None:
        """Leave the file under its temporary name, from which a resumed run goes on."""
        self._results.forget(self.name)
        self._file.close()


class Results(Closing):
    """The files of one run, written into a folder that this process holds (`vosrt._files.locked`).

    The folder and its list appear with the first file.

    Args:
        command: such as ``"vos-run"``.
        settings: what the result is made with; JSON.
        listing: of the run that is continued; None begins one.
        beside: list of the old result around ``path``, whose files give way when this result is complete.
        adding: the files do not belong to the result of the list: it stays as complete as it is.
    """

    def __init__(
        self,
        path: Path,
        command: str,
        settings: dict[str, Any],
        *,
        listing: Listing | None = None,
        beside: Listing | None = None,
        adding: bool = False,
    ) -> None:
        self.path = path
        self._adding = adding
        self._listing = listing or Listing(secrets.token_hex(8), command, settings)
        self._continued = listing is not None
        self._beside = beside
        self._list: BinaryIO | None = None
        self._folders: dict[str, int] = {}
        self._open: dict[str, Growing] = {}
        self._lengths: dict[str, int] = {}  # of growing files, to go on from
        self._mutex = threading.RLock()

    @property
    def started(self) -> bool:
        """Return whether something was written."""
        return self._list is not None or self._continued

    @property
    def folders(self) -> set[str]:
        """Complete sequences that are still in their place."""
        return {name for name in self._listing.folders if (self.path / name).is_dir()}

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file or nothing; see `Target`."""
        with self.whole(name) as file:
            write_all(file, data)

    @contextmanager
    def whole(self, name: str) -> Iterator[BinaryIO]:
        """Open a file that gets its name when it is whole and on the disk; raises as `Target.write` does."""
        folder, last = self._place(name)
        with self.failing(name):
            part = self._part(last)
            with suppress(FileNotFoundError):
                os.unlink(part, dir_fd=folder)  # of a killed process: the name is unique to its run
            try:
                with open_new(part, folder) as file:
                    yield file
                    os.fsync(file.fileno())
                    size = os.fstat(file.fileno()).st_size
                    self._note({"file": name, "size": size, "sha256": sha256_of(file)})
                os.replace(part, last, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with suppress(OSError):
                    os.unlink(part, dir_fd=folder)
                raise

    @property
    def is_complete(self) -> bool:
        """Return whether the run came to its end."""
        return self._listing.complete

    def write_json(self, name: str, document: dict[str, Any]) -> None:
        """Write a JSON document as `write` does."""
        self.write(name, (to_json(document, indent=2) + "\n").encode())

    def append(self, name: str) -> Growing:
        """Open a file that grows; a resumed run continues a file that its checkpoint knows."""
        folder, last = self._place(name)
        part, kept = growing_name(last), self._lengths.pop(name, None)
        with self.failing(name):
            if kept is None:
                self._clear(folder, part, name)
                self._note({"growing": beside_of(name, part)})
                file = open_new(part, folder)
            else:
                file = self._reopen(folder, part, name, kept)
            growing = self._open[name] = Growing(self, name, file)
            return growing

    def set_aside(self, name: str) -> BinaryIO | None:
        """Rename the growing file of an interrupted run and open it for reading; None if none exists.

        For files that are copied on resuming, and not continued in place. `drop_aside` removes it afterwards.
        """
        folder, last = self._place(name)
        part, aside = growing_name(last), f".{last}.earlier"
        self._lengths.pop(name, None)
        with self.failing(name):
            if not is_regular(aside, folder):
                self._note({"growing": beside_of(name, aside)})
                for each in (part, last):
                    if is_regular(each, folder):
                        os.rename(each, aside, src_dir_fd=folder, dst_dir_fd=folder)
                        break
                else:
                    return None
            return os.fdopen(os.open(aside, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder), "rb")

    def drop_aside(self, name: str) -> None:
        """Remove what `set_aside` kept."""
        folder, last = self._place(name)
        with self.failing(name), suppress(FileNotFoundError):
            os.unlink(f".{last}.earlier", dir_fd=folder)

    @contextmanager
    def folder(self, name: str) -> Iterator[Target]:
        """A folder of files that gets its name when all of them are written, as a sequence of a data set.

        Args:
            name: such as ``"bear"`` or ``"Annotations/bear"``.

        Raises:
            WorkError: the system refused.
            OutputError: the user has a folder of this name.
        """
        above, last = self._place(name)
        part = growing_name(last)
        with self.failing(name):
            self._clear(above, part, name)
            self._note({"growing": beside_of(name, part)})
            os.mkdir(part, dir_fd=above)
            inside = open_folder(part, above)
        try:
            group = _Folder(self, name, inside)
            yield group
            with self.failing(name):
                sync_folder(inside)
                self._note({"folder": name, "files": group.files})
                os.rename(part, last, src_dir_fd=above, dst_dir_fd=above)
                sync_folder(above)
        except BaseException:
            with suppress(OSError):
                shutil.rmtree(part, dir_fd=above)
            raise
        finally:
            os.close(inside)

    def save_checkpoint(self, document: dict[str, Any], session: bytes) -> None:
        """Keep what a resumed run needs: the lengths of growing files, ``document`` and the stream's session.

        Raises:
            WorkError: the system refused; the checkpoint before stands.
        """
        lengths = {name: growing.sync() for name, growing in self._open.items()}
        head = {"lengths": lengths, **document, "sha256": hashlib.sha256(session).hexdigest()}
        with self.failing(CHECKPOINT), self._mutex:
            for folder in self._folders.values():
                sync_folder(folder)
            if self._list is not None:
                os.fsync(self._list.fileno())
            with replacing(self.path / CHECKPOINT) as file:
                write_all(file, json.dumps(head).encode() + b"\n")
                write_all(file, session)

    def load_checkpoint(self) -> tuple[dict[str, Any], bytes] | None:
        """Read the checkpoint of the run that is continued; None if it had none.

        Growing files that are opened after this go on from the checkpoint.

        Raises:
            OutputError: it is damaged.
        """
        path = self.path / CHECKPOINT
        try:
            with open_regular(path, WEIGHTS_BYTES, follow=False) as file:
                head, session = json.loads(file.readline()), file.read()
            if hashlib.sha256(session).hexdigest() != head.pop("sha256"):
                raise ValueError("its hash is another")
            self._lengths = {str(name): int(length) for name, length in head.pop("lengths").items()}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(
                f"{path}: is damaged ({error}), so the run cannot go on; begin again with --overwrite"
            ) from error
        return dict(head), session

    def finish(self, name: str, file: BinaryIO) -> None:
        """Give a growing file its name; called by `Growing.close`."""
        folder, last = self._place(name)
        with self.failing(name), file:
            self.forget(name)
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
            self._note({"file": name, "size": size, "sha256": sha256_of(file)})
            os.replace(growing_name(last), last, src_dir_fd=folder, dst_dir_fd=folder)

    def drop(self, name: str) -> None:
        """Remove the file that grew under a temporary name; called by `Growing.discard`."""
        folder, last = self._place(name)
        with self.failing(name), suppress(FileNotFoundError):
            os.unlink(growing_name(last), dir_fd=folder)

    def drop_checkpoint(self) -> None:
        """Remove the checkpoint of a run that cannot go on."""
        with self.failing(CHECKPOINT), suppress(FileNotFoundError):
            (self.path / CHECKPOINT).unlink()

    def forget(self, name: str) -> None:
        """Leave a growing file out of further checkpoints."""
        self._open.pop(name, None)

    def complete(self) -> None:
        """Declare the result complete; where it was written beside an old one, it takes that one's place.

        Raises:
            WorkError: the system refused.
        """
        with self.failing(""):
            for folder in self._folders.values():
                sync_folder(folder)
            self._note({"complete": True})
            if self._list is not None:
                os.fsync(self._list.fileno())
            self.drop_checkpoint()
            sync_folder(self.path)
            self.close()
            if self._beside is not None:
                os.rename(self.path, self.path.with_name(FINISHED))
                sync_folder(self.path.parent)
                take_place(self.path.parent)

    def close(self) -> None:
        """Release the folder's descriptors. Files that still grow keep their temporary names."""
        for growing in list(self._open.values()):
            growing.abandon()
        for folder in self._folders.values():
            os.close(folder)
        self._folders.clear()
        if self._list is not None:
            self._list.close()
            self._list = None
            self._continued = True

    @contextmanager
    def failing(self, name: str) -> Iterator[None]:
        """Turn what goes wrong with a file into one error that names it."""
        with writing(self.path / name):
            yield

    def _part(self, last: str) -> str:
        """A temporary name, which fits however long ``last`` is."""
        return f".{hashlib.sha256(os.fsencode(last)).hexdigest()[:8]}.{self._listing.run}.part"

    def _note(self, line: dict[str, Any]) -> None:
        """Append a line to the list, which is created with the first one."""
        with self._mutex:
            if self._list is None:
                self._list = self._open_list()
            if self._adding:
                line = {**line, "complete": self._listing.complete}
            write_all(self._list, json.dumps(line).encode() + b"\n")
            self._listing.add(line, LIST)

    def _open_list(self) -> BinaryIO:
        path = self.path / LIST
        if self._continued:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            file: BinaryIO = os.fdopen(descriptor, "r+b", buffering=0)
            file.truncate(self._listing.length)  # a killed process may have left half a line
            file.seek(0, os.SEEK_END)
            return file
        head = {
            "vosrt": SCHEMA,
            "run": self._listing.run,
            "command": self._listing.command,
            "settings": self._listing.settings,
        }
        file = open_new(path)
        write_all(file, json.dumps(head).encode() + b"\n")
        return file

    def _place(self, name: str) -> tuple[int, str]:
        """Descriptor of the folder that ``name`` is in, created if need be, and the last part of the name."""
        *above, last = PurePosixPath(checked_name(name, "the result")).parts
        with self.failing(name), self._mutex:
            key = ""
            if key not in self._folders:
                if self._beside is not None:
                    with suppress(FileExistsError):
                        self.path.mkdir()
                self._folders[key] = open_folder(self.path, follow=self._beside is None)
                if self._list is None:
                    self._list = self._open_list()
            for part in above:
                folder, key = self._folders[key], f"{key}/{part}"
                if key not in self._folders:
                    with suppress(FileExistsError):
                        os.mkdir(part, dir_fd=folder)
                    self._folders[key] = open_folder(part, folder)
            self._refuse_the_users(name, self._folders[key], last)
            return self._folders[key], last

    def _refuse_the_users(self, name: str, folder: int, last: str) -> None:
        """Refuse a name that a file of the user has, in this folder or in that of the result."""
        if exists(last, folder) and not looks_as_listed(folder, last, name, self._listing):
            raise not_ours(self.path / name)
        if self._beside is None or name in self._beside.files or name in self._beside.folders:
            return
        if os.path.lexists(self.path.parent / name):
            raise not_ours(self.path.parent / name)

    def _clear(self, folder: int, part: str, name: str) -> None:
        """Remove what a killed process left under a growing file's temporary name."""
        if not exists(part, folder):
            return
        if beside_of(name, part) not in self._listing.growing:
            raise not_ours(self.path / beside_of(name, part))
        remove(part, folder)

    def _reopen(self, folder: int, part: str, name: str, kept: int) -> BinaryIO:
        last = PurePosixPath(name).name
        if not is_regular(part, folder) and is_regular(last, folder):
            os.rename(last, part, src_dir_fd=folder, dst_dir_fd=folder)
        file = os.fdopen(os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder), "r+b", buffering=0)
        if os.fstat(file.fileno()).st_size < kept:
            file.close()
            raise OutputError(f"{self.path / name}: is shorter than the checkpoint says; begin again with --overwrite")
        file.truncate(kept)
        return file


class _Folder:
    """A folder of a result while it is written."""

    def __init__(self, results: Results, name: str, folder: int) -> None:
        self._results, self._name, self._folder = results, name, folder
        self.files: dict[str, Mark] = {}

    def write(self, name: str, data: bytes) -> None:
        with (
            self._results.failing(f"{self._name}/{name}"),
            open_new(plain_name(name, self._name), self._folder) as file,
        ):
            write_all(file, data)
            os.fsync(file.fileno())
        self.files[name] = len(data), hashlib.sha256(data).hexdigest()

    def append(self, name: str) -> Growing:
        raise NotImplementedError(f"{name}: files do not grow in a folder that is renamed")


@contextmanager
def open_results(
    path: Path, command: str, settings: dict[str, Any], *, overwrite: bool = False, resume: bool = False
) -> Iterator[Results]:
    """Open a folder that this process holds and `check_results` accepts for the results of a run.

    Args:
        path: the folder; exists.
        command: such as ``"vos-run"``.
        settings: what the results are made with; JSON.
        overwrite: replace an old result when the new one is complete.
        resume: continue an unfinished result of the same settings, if one exists.

    Raises:
        OutputError: it holds something that is not replaced, or an unfinished result of other settings.
    """
    old, unfinished = read_listing(path), path / UNFINISHED
    fresh = read_listing(unfinished) if is_own(unfinished) else None
    if fresh is not None and resume and fresh.settings == settings:
        results = Results(unfinished, command, settings, listing=fresh, beside=old or Listing("", "", {}))
    elif old is not None and overwrite:
        if fresh is not None:
            remove_listed(unfinished, fresh)
        prune(unfinished)
        results = Results(unfinished, command, settings, beside=old)
    elif old is not None:
        check_settings(path, old.settings, settings)
        results = Results(path, command, settings, listing=old)
    else:
        results = Results(path, command, settings)
    with results:
        yield results


def check_results(path: Path, *, overwrite: bool = False, resume: bool = False) -> Listing | None:
    """Find out, without changing anything, whether a folder can take results; finish a replacement that was killed.

    Args:
        path: the folder; need not exist.
        overwrite: as for `open_results`.
        resume: likewise.

    Returns:
        The list of the results that are in it.

    Raises:
        OutputError: it cannot.
    """
    if not check_writable(path):
        return None
    for name in (UNFINISHED, FINISHED):
        if os.path.lexists(path / name) and not is_own(path / name):
            raise not_ours(path / name)
    if is_own(path / FINISHED):
        take_place(path)
    old = read_listing(path)
    strangers = sorted({entry.name for entry in path.iterdir()} - OWN)
    if old is None:
        if not strangers:
            return None
        if not (overwrite or resume):
            raise OutputError(f"{path}: is not empty; choose another folder or an empty one")
        raise OutputError(
            f"{path}: holds {strangers[0]} but no list ({LIST}) of an earlier run, so nothing in it is replaced; move "
            "the files away, or choose another folder with -o"
        )
    if not (overwrite or resume):
        state = "results" if old.complete else "an unfinished result; go on with --resume"
        raise OutputError(
            f"{path}: is not empty, it holds {state}; replace with --overwrite, or choose another with -o"
        )
    if overwrite and (changed := next(changed_names(path, old), None)) is not None:
        raise OutputError(
            f"{path / changed}: was changed since {old.command} wrote it, so nothing is replaced; move it away, or "
            "choose another folder with -o"
        )
    return old


@contextmanager
def files_beside(path: Path, command: str) -> Iterator[Results]:
    """Open a folder that this process holds for a few files beside its other content; a later run may replace them.

    Args:
        path: the folder; exists.
        command: such as ``"vos-eval score"``.

    Raises:
        OutputError: its list is damaged.
    """
    with Results(path, command, {}, listing=read_listing(path), adding=True) as results:
        yield results


def check_replaceable(path: Path, names: Iterable[str]) -> None:
    """Refuse names under which the user has files of his own, before any work is done.

    Raises:
        OutputError: a file exists that no run wrote, or that was changed since.
    """
    listing = read_listing(path) or Listing("", "", {})
    for name in names:
        with suppress(FileNotFoundError), parent_of(path, name) as (folder, last):
            if exists(last, folder) and not looks_as_listed(folder, last, name, listing):
                raise not_ours(path / name)


def check_settings(path: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to mix results of different settings.

    Raises:
        OutputError: they differ; the message names the first difference.
    """
    for name in {**then, **now}:
        if (old := then.get(name)) != (new := now.get(name)):
            raise OutputError(
                f"{path}: holds results made with {name} = {_shown(old, new)}, this run has {_shown(new, old)}; "
                "choose another folder with -o, or --overwrite"
            )


def _shown(value: Any, other: Any) -> str:
    """A setting in few words: of two dictionaries only what differs, of two hashes their beginning."""
    if isinstance(value, dict) and isinstance(other, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if other.get(key) != item) or "nothing else"
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
