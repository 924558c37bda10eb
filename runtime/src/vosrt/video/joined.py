"""Recordings that were joined by appending one file to another, of formats whose readers take the first one alone."""

from __future__ import annotations

import mmap
import struct

# What such a file begins with: version, flags and length of the header of FLV; the GUID of the header object of ASF.
_BEGINNINGS = {
    "flv": tuple(b"FLV\x01" + bytes([flags]) + b"\0\0\0\x09" for flags in (1, 4, 5)),
    "asf": (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),),
}


def end_of_part(path: str, start: int) -> int | None:
    """Return where a recording ends in an MP4 or QuickTime file, and the next one begins.

    Args:
        start: where the recording begins, in bytes.

    Returns:
        The offset in bytes; None if it is the last one, or the file is of another kind.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = start
        while place + 16 <= len(data):
            length, name = struct.unpack(">I4s", data[place : place + 8])
            if (name == b"ftyp") != (place == start):
                return place if place > start else None
            if length == 1:
                length = struct.unpack(">Q", data[place + 8 : place + 16])[0]
            if length < 8:  # 0 is "to the end"; anything else is no box
                return None
            place += length
    return None


def next_part(path: str, container_format: str, start: int, read_to: int) -> int | None:
    """Return where the next recording begins in a file.

    Args:
        container_format: FFmpeg's short name of it.
        start: where the recording that was read begins, in bytes.
    """
    if container_format == "mov":
        return end_of_part(path, start)
    if container_format not in _BEGINNINGS:
        return None
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        places = [data.find(beginning, read_to) for beginning in _BEGINNINGS[container_format]]
    return min((place for place in places if place > 0), default=None)
