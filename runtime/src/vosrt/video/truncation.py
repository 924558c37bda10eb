"""Check whether a file is shorter than its structure says, as an interrupted download or copy is."""

from __future__ import annotations

import os
import re
import struct
from typing import BinaryIO

_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"
_CLUSTER = b"\x1f\x43\xb6\x75"
# What else lies in a segment: its index, its description, and padding.
_BESIDE_CLUSTERS = re.compile(
    rb"\x11\x4d\x9b\x74|\x15\x49\xa9\x66|\x16\x54\xae\x6b|\x1c\x53\xbb\x6b|\x19\x41\xa4\x69|"
    rb"\x10\x43\xa7\x70|\x12\x54\xc3\x67|\xec|\xbf"
)
_MOST_BOXES = 100_000  # a fragmented file of many hours has two a second
_TAIL = 64  # bytes at the end in which a GIF's trailer lies, followed by padding


def is_cut_off(path: str) -> bool:
    """Return whether bytes are missing at the end of an MP4, QuickTime, Matroska, WebM, AVI or GIF file.

    Args:
        path: a readable, seekable file; any other kind gives False.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(12)
        if head.startswith(_EBML):
            return _matroska_end(file) > size
        if head[:4] == b"RIFF" and head[8:] == b"AVI ":
            return _riff_end(file, size) > size
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
            return _boxes_end(file, size) > size
        if head[:4] == b"GIF8":
            file.seek(max(0, size - _TAIL))
            return not file.read().rstrip(b"\0").endswith(b";")
    return False


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Return where the last top-level box of an ISO base media file ends."""
    place = 0
    for _ in range(_MOST_BOXES):
        file.seek(place)
        header = file.read(16)
        if len(header) < 8:
            break
        length = struct.unpack(">I", header[:4])[0]
        if length == 1 and len(header) == 16:
            length = struct.unpack(">Q", header[8:])[0]
        if length < 8 or not header[4:8].isascii():  # 0 is "to the end"; anything else is no box
            break
        place += length
        if place >= size:
            break
    return place


def matroska_clusters_end(path: str) -> int:
    """Return where the clusters of a Matroska file end, in bytes: behind them there is no frame.

    Returns:
        The size of the file where its elements cannot be followed so far, as behind damage.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        end = min(_matroska_end(file), size)  # the reader stands where the segment begins
        last, place = 0, file.tell()
        while place < end:
            name = file.read(1)
            name += file.read(max(0, 8 - name[0].bit_length()))
            length = _read_vint(file)
            if length is None or not (name == _CLUSTER or _BESIDE_CLUSTERS.fullmatch(name)):
                return size
            place = file.tell() + length
            last = place if name == _CLUSTER else last
            file.seek(place)
    return min(last, size) or size


def _matroska_end(file: BinaryIO) -> int:
    """Read up to where the segment of a Matroska file begins, and return where it ends; 0 where that is unknown."""
    file.seek(4)
    length = _read_vint(file)
    if length is None:
        return 0
    file.seek(length, os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return 0
    length = _read_vint(file)
    return 0 if length is None else file.tell() + length


def _read_vint(file: BinaryIO) -> int | None:
    """Read an EBML length; None if it is unknown (all bits are set) or damaged."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    bits = 7 * (more + 1)
    value = int.from_bytes(first + file.read(more), "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value


def _riff_end(file: BinaryIO, size: int) -> int:
    """Return where the last chunk of an AVI file ends: larger ones consist of several."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        name, length = struct.unpack("<4sI", file.read(8))
        if name != b"RIFF" or not length:  # a recorder that crashed left 0
            break
        place += 8 + length + length % 2
    return place - 1  # the last chunk may lack its padding
