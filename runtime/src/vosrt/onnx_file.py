"""ONNX files of bundles, each read once; libvosrt looks into them before any engine does.

A matching hash says that a file is the one its maker wrote, not that the maker meant well: what a graph may hold and
compute is in ``onnx_file.hpp`` and ``onnx_rules.cpp``.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from vosrt.core.native import libvosrt
from vosrt.errors import BundleError

MAX_BYTES = (1 << 31) - 1  # what protobuf can hold


@dataclass(frozen=True)
class Graph:
    """An ONNX file that was read once: engines are given these bytes and never its path.

    Attributes:
        path: where it was read from, for messages and for what lies beside it.
        quantised: the number format that it is quantised in, as its bundle says; None for other graphs.
    """

    path: Path
    content: bytes = field(repr=False)
    quantised: str | None = None

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.path.name

    @cached_property
    def sha256(self) -> str:
        """Hash of the content as 64 lower-case hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in the order of the file; the operators are not checked.

        Raises:
            BundleError: it is no ONNX file, or it holds something that no graph of a bundle may hold.
        """
        names = libvosrt().read_bytes("vosrt_graph_outputs", self.content, len(self.content), os.fsencode(self.path))
        return tuple(name.decode() for name in names.split(b"\0")[:-1])


def as_graph(graph: Graph | Path) -> Graph:
    """The graph, read from its file, once, if only that is given.

    Raises:
        BundleError: it cannot be read, or is no regular file of 1 to `MAX_BYTES` bytes.
    """
    if isinstance(graph, Graph):
        return graph
    try:
        # Opening a pipe would wait for a writer.
        with open(graph, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{graph} is no regular file; copy the whole bundle again")
            if not 0 < status.st_size <= MAX_BYTES:
                raise BundleError(f"{graph} has {status.st_size} bytes; a graph has 1 to {MAX_BYTES}")
            return Graph(graph, file.read(status.st_size))
    except OSError as error:
        raise BundleError(f"{graph} cannot be read: {error.strerror or error}") from error


def joined(graph: Graph, added: Graph, embedding: str) -> Graph:
    """Append a file to a graph: protobuf merges both into one message.

    Args:
        added: further nodes, weights and outputs.
        embedding: if ``added`` declares this output, those of ``graph`` become tensors inside it (``value_info``).

    Raises:
        BundleError: one is no ONNX file, or holds something that graphs of a bundle may not hold.
    """
    parts = [part for each in (graph, added) for part in (each.content, len(each.content))]
    names = embedding.encode(), os.fsencode(added.path)
    return replace(added, content=libvosrt().read_bytes("vosrt_graph_append", *parts, *names))
