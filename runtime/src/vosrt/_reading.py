"""Reading files of strangers: of bounded size, and never from what does not end.

Every failure is an `OSError` whose ``strerror`` says what is wrong, so that readers handle it like a missing file.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

MIB = 1 << 20
# What the largest honest files need several times over; JSON takes about ten times its size in memory.
LIST_BYTES = 16 * MIB
JSON_BYTES = 128 * MIB
IMAGE_BYTES = 1024 * MIB
WEIGHTS_BYTES = 16 * 1024 * MIB


class RefusedFileError(OSError):
    """A file is no file, or too large."""

    def __str__(self) -> str:
        """Say why, without number and name: messages begin with the path."""
        return str(self.strerror)


def open_regular(path: Path, most: int, *, follow: bool = True) -> BinaryIO:
    """Open a regular file of at most `most` bytes; unless `follow`, no link.

    Raises:
        OSError: it is missing, larger, a folder, a pipe or a device.
    """
    # Without O_NONBLOCK, opening a pipe without a writer would block.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise RefusedFileError(errno.EINVAL, "is a folder, pipe or device; expected a file", str(path))
        if status.st_size > most:
            raise _too_large(path, status.st_size, most)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def check_regular(path: Path, most: int) -> None:
    """Check a file that a library opens by its path; see `open_regular`."""
    open_regular(path, most).close()


def read_bytes(path: Path, most: int) -> bytes:
    """Return the content of a file; see `open_regular`."""
    with open_regular(path, most) as file:
        content = file.read(most + 1)
    if len(content) > most:  # it grew, or is one of /proc, whose sizes are 0
        raise _too_large(path, len(content), most)
    return content


def read_text(path: Path, most: int = LIST_BYTES) -> str:
    """Return the content of a UTF-8 file, without the mark that Windows puts in front.

    Raises:
        OSError: see `open_regular`.
        ValueError: it is not UTF-8.
    """
    return read_bytes(path, most).decode("utf-8-sig")


def read_json(path: Path, most: int = JSON_BYTES) -> Any:
    """Return the document in a JSON file.

    Raises:
        OSError: see `open_regular`.
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(read_text(path, most))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file; its pixels are not decoded yet.

    Raises:
        OSError: see `open_regular`; or it is no image, or one of more pixels than Pillow decodes.
    """
    # Pillow warns of damage that it reads over. It warns of large pictures too, but callers compare sizes with those of
    # the frames before anything is decoded.
    with open_regular(path, IMAGE_BYTES) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(file)
        except Image.DecompressionBombError:
            most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
            raise RefusedFileError(
                errno.EFBIG, f"has more than {most} megapixels, the most that is read of an image; shrink it", str(path)
            ) from None
        with image:
            yield image


@contextmanager
def silenced() -> Iterator[None]:
    """Drop what native code prints meanwhile: libtiff tells standard error what the caller says in an error of its own.

    This holds for all threads of the process.
    """
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _too_large(path: Path, size: int, most: int) -> RefusedFileError:
    return RefusedFileError(errno.EFBIG, f"has {size:,} bytes; at most {most:,} are read", str(path))
