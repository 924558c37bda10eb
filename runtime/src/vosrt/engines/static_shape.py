"""What engines share that compile a graph for each input size."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from vosrt.engines.base import EngineInfo, Input
from vosrt.errors import EngineError
from vosrt.onnx_file import Graph, as_graph

Axes: TypeAlias = Mapping[str, Sequence[str | None]]
Sizes: TypeAlias = tuple[tuple[str, int], ...]

BATCH_AXIS = "n"

_FRAME_SIZES = 4


class StaticShapeEngine(ABC):
    """Runs one graph, with shapes made static per session.

    That lets back ends plan memory and pick kernels ahead; sessions of the last frame sizes are kept, one per
    size of a batch.

    Args:
        graph: what to run; a path is read once, on creation.
        axes: per input, the names of its dynamic axes, None for fixed ones.
        info: what `info` says.
    """

    def __init__(self, graph: Graph | Path, axes: Axes, info: EngineInfo) -> None:
        self._graph = as_graph(graph)
        self._axes = axes
        self._info = info
        self._sessions: OrderedDict[Sizes, dict[Sizes, Any]] = OrderedDict()  # by what is not the batch, then by all
        self._lock = threading.Lock()

    @property
    def info(self) -> EngineInfo:
        """What runs and why."""
        return self._info

    def describe_as(self, precision: str) -> None:
        """Have `info` name the number format of a quantised graph."""
        self._info = replace(self._info, precision=precision)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph; the first run with new shapes takes longer.

        Raises:
            EngineError: the graph cannot be loaded or run.
        """
        return self._run(self._session_for(self._sizes(inputs)), inputs)

    def probe(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once and forget the session, to know early whether it can run at all.

        Returns:
            The outputs by name.

        Raises:
            EngineError: it cannot.
        """
        return self._run(self._create_session(self._sizes(inputs)), inputs)

    def probe_loading(self, sizes: Mapping[str, int]) -> None:
        """Load the graph once for some sizes of its named axes, and forget the session.

        Raises:
            EngineError: it cannot be loaded.
        """
        self._create_session(tuple(sorted(sizes.items())))

    @abstractmethod
    def _create_session(self, sizes: Sizes) -> Any:
        """Compile the graph for these sizes of its named axes."""

    @abstractmethod
    def _run(self, session: Any, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a session; several threads may do so at the same time."""

    def _sizes(self, inputs: Mapping[str, Input]) -> Sizes:
        """Sizes of the named axes."""
        sizes: dict[str, int] = {}
        for name, axes in self._axes.items():
            array = inputs.get(name)
            if array is None or len(array.shape) != len(axes):
                given = {key: list(value.shape) for key, value in inputs.items()}
                raise EngineError(f"{self._graph.name} needs {name!r} with axes {list(axes)}; given {given}")
            sizes.update({axis: size for axis, size in zip(axes, array.shape, strict=True) if axis})
        return tuple(sorted(sizes.items()))

    def _session_for(self, sizes: Sizes) -> Any:
        frame = tuple(each for each in sizes if each[0] != BATCH_AXIS)
        with self._lock:
            sessions = self._sessions.get(frame, {})
            session = sessions.get(sizes) or self._create_session(sizes)
            sessions[sizes] = session
            self._sessions[frame] = sessions
            self._sessions.move_to_end(frame)
            if len(self._sessions) > _FRAME_SIZES:
                self._sessions.popitem(last=False)
            return session


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
