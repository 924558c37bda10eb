"""Writing files so that nothing of the user's is lost: whole files or none, one writer a folder, no link followed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from vosrt.errors import InputError, OutputError, WorkError
from vosrt.text import to_json

LOCK = ".vosrt-lock"  # exists while a run writes into the folder
_NEW_FILE = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK_BYTES = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextmanager
def writing(path: Path, remedy: str = "is there space left?") -> Iterator[None]:
    """Turn what can go wrong while ``path`` is written into one clear error.

    Args:
        remedy: end of the line.

    Raises:
        WorkError: the system refused.
    """
    try:
        yield
    except OSError as error:
        raise WorkError(f"{path}: cannot be written ({error.strerror or error}); {remedy}") from error


def open_new(name: str | Path, folder: int | None = None) -> BinaryIO:
    """Create a file for writing and reading, unbuffered; an existing one or a link under this name is an error.

    Args:
        name: of the file, relative to ``folder``.
        folder: descriptor of the folder; None is the working directory.

    Raises:
        OSError: the file exists or cannot be created.
    """
    return os.fdopen(os.open(name, _NEW_FILE, 0o666, dir_fd=folder), "w+b", buffering=0)


def open_folder(name: str | Path, folder: int | None = None, *, follow: bool = False) -> int:
    """Open a folder and return its descriptor, which reaches its files even after its path was renamed.

    Args:
        name: of the folder, relative to ``folder``.
        folder: descriptor of the folder above; None is the working directory.
        follow: accept a link to a folder.

    Raises:
        OSError: it does not exist, or is a file or a link.
    """
    return os.open(name, _FOLDER | (0 if follow else os.O_NOFOLLOW), dir_fd=folder)


def write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write all of ``data`` to an unbuffered file, which may take only a part at a time."""
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view) :]


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file under another name, and give it its own once it is whole and on the disk.

    A crash or a power cut at any moment leaves the old file or the new one. A link under the name is replaced, not
    followed.

    Args:
        path: of the file; its folder exists.

    Yields:
        The new file, open for writing.

    Raises:
        OSError: it cannot be written; the old file stands.
    """
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    file = open_new(part)
    try:
        with file:
            yield file
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path | int) -> None:
    """Have the names in a folder survive a power cut.

    Args:
        folder: its path or descriptor.
    """
    descriptor = folder if isinstance(folder, int) else open_folder(folder, follow=True)
    try:
        with suppress(OSError):  # some network file systems cannot
            os.fsync(descriptor)
    finally:
        if descriptor is not folder:
            os.close(descriptor)


def write_file(path: Path, data: bytes | str) -> None:
    """Write a small file with `replacing`; text is UTF-8.

    Raises:
        WorkError: it cannot be written; the old file stands.
    """
    with writing(path), replacing(path) as file:
        write_all(file, data.encode() if isinstance(data, str) else data)


def as_json(document: Any) -> str:
    """Format a JSON document for people."""
    return to_json(document, indent=2) + "\n"


def sha256_of(file: BinaryIO) -> str:
    """Hash an open file from its beginning; 64 hexadecimal digits."""
    file.seek(0)
    digest = hashlib.sha256()
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def plain_name(name: str, origin: str) -> str:
    """Return a name that came from a file if it names something inside a folder and nothing else.

    Args:
        origin: the file that it came from, for the message.

    Raises:
        InputError: it is empty, leads elsewhere, or cannot be a name.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise InputError(f"{origin}: names {name!r}; expected a plain name, which leads to no other folder")
    return name


def check_writable(folder: Path, remedy: str = "choose another folder with -o") -> bool:
    """Find out, without touching anything, whether a folder for results exists or could be created.

    Args:
        folder: need not exist.
        remedy: end of the line where the user may not write.

    Returns:
        Whether it exists.

    Raises:
        OutputError: it is a file, or the user may not write into it.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        above = "" if existing == folder else f"{existing} "
        raise OutputError(f"{folder}: {above}is a file; expected a folder for the results")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: {existing} is not writable; {remedy}")
    return existing == folder


_BUSY = "{folder}: another run (process {process}) is writing there; wait for it, or choose another folder with -o"


@contextmanager
def locked(folder: Path, busy: str = _BUSY) -> Iterator[None]:
    """Hold a folder for this process alone; it is created, and removed again if it stays empty.

    The system gives the lock back however the process ends.

    Args:
        busy: message for when it is held, with ``{folder}`` and ``{process}``.

    Raises:
        OutputError: another process holds it, or it cannot be created.
    """
    created: list[Path] = []
    try:
        missing = folder
        while not missing.exists():
            created.append(missing)
            missing = missing.parent
        folder.mkdir(parents=True, exist_ok=True)
        handle = _hold(folder, busy)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}); choose another folder with -o") from error
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()  # while it is held: who opens it next sees that it has gone
        os.close(handle)
        with suppress(OSError):  # the folder is not empty, and may stay
            for path in created:
                path.rmdir()


def _hold(folder: Path, busy: str) -> int:
    path = folder / LOCK
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.lstat()):
                    os.ftruncate(handle, 0)
                    os.write(handle, f"{os.getpid()}\n".encode())
                    return handle
            os.close(handle)  # its holder removed it between the two lines
        except BlockingIOError:
            process = _owner(handle)
            os.close(handle)
            raise OutputError(busy.format(folder=folder, process=process)) from None
        except BaseException:
            os.close(handle)
            raise


def _owner(handle: int) -> str:
    """Number of the process that holds a lock; it writes it right after it took the lock."""
    for _ in range(20):
        if number := os.pread(handle, 20, 0).decode("ascii", "replace").strip():
            return number
        time.sleep(0.01)
    return "unknown"


def is_regular(name: str, folder: int) -> bool:
    """Return whether a name in a folder is a file, and not a link to one."""
    try:
        return stat.S_ISREG(os.lstat(name, dir_fd=folder).st_mode)
    except FileNotFoundError:
        return False
