"""CUDA graphs: work that comes again and again is captured once and replayed with one call."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, TypeAlias

from vosrt.cuda.runtime import BindingsRuntime, CudaQueue
from vosrt.errors import EngineError, VosrtError

logger = logging.getLogger(__name__)

_MOST_GRAPHS = 8  # kinds of work: two sets of labels, and what comes when objects change
_MOST_FAILURES = 3  # in a row: a capture may also fail because of others, and then the next one works

Graphs: TypeAlias = "OrderedDict[Hashable, Graph | None]"
"""Graphs by the kind of work that was captured, the last used one at the end; None: done once, not captured."""


class Graph:
    """Captured work, replayed with one call; freed with the object."""

    def __init__(self, runtime: BindingsRuntime, captured: Any) -> None:
        self._runtime = runtime
        try:
            self._runnable = runtime.cuda("cudaGraphInstantiate", captured, 0)
        finally:
            runtime.cuda("cudaGraphDestroy", captured)
        weakref.finalize(self, runtime.api.cudaGraphExecDestroy, self._runnable).atexit = False

    def replay(self, stream: CudaQueue) -> None:
        """Queue it once more."""
        self._runtime.cuda("cudaGraphLaunch", self._runnable, stream.stream)


class Recorder:
    """Captures work as CUDA graphs. Not safe for use by several threads at the same time.

    Work that cannot be captured (some networks cannot) is queued piece by piece; after a few failures in a row, a
    warning is logged and this recorder captures nothing more.

    Args:
        name: of whose work it is, for the warning.

    Attributes:
        refused: why nothing more is captured; None as long as that works.
    """

    def __init__(self, runtime: BindingsRuntime, name: str) -> None:
        self._runtime, self._name = runtime, name
        self._private: CudaQueue | None = None
        self._failures = 0
        self.refused: str | None = None

    def run(self, stream: CudaQueue, graphs: Graphs, kind: Hashable, work: Callable[[CudaQueue], None]) -> bool:
        """Queue work the first time, capture it the second time, and from then on replay the graph.

        Args:
            graphs: of the caller. It clears them when they no longer fit; beyond eight kinds, what was not used
                for longest is forgotten.
            kind: a graph fits as long as this is the same.
            work: queues it on the stream that it gets.

        Returns:
            Whether a graph was replayed: ``work`` itself was then not done, but captured now or earlier.
        """
        if self.refused is None and kind in graphs:
            graphs.move_to_end(kind)
            graph = graphs[kind]
            if graph is None:
                graph, why = self._capture(work)
                if graph is None:
                    work(stream)  # if this fails too, the work is to blame and not its capture
                    self._count_failure(why, graphs)
                    return False
                self._failures, graphs[kind] = 0, graph
            graph.replay(stream)
            return True
        work(stream)
        if self.refused is None:
            graphs[kind] = None
            if len(graphs) > _MOST_GRAPHS:
                graphs.popitem(last=False)
        return False

    def _capture(self, work: Callable[[CudaQueue], None]) -> tuple[Graph | None, str]:
        """Return a graph, or why there is none.

        The stream is used for nothing else: on a shared one, what other threads queue meanwhile would become part of
        the graph, and their waits would fail. The mode is relaxed because the garbage collector may free memory of the
        GPU on this thread in between, which spoils a stricter capture.
        """
        runtime = self._runtime
        if self._private is None:
            self._private = CudaQueue(runtime)
        stream = self._private
        relaxed = runtime.api.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        try:
            runtime.cuda("cudaStreamBeginCapture", stream.stream, relaxed)
            try:
                work(stream)
            except BaseException:
                with suppress(EngineError):  # the stream must not stay in capture
                    runtime.cuda("cudaGraphDestroy", runtime.cuda("cudaStreamEndCapture", stream.stream))
                raise
            return Graph(runtime, runtime.cuda("cudaStreamEndCapture", stream.stream)), ""
        except VosrtError as error:
            self._private = None  # it may still be in capture
            return None, str(error)

    def _count_failure(self, why: str, graphs: Graphs) -> None:
        self._failures += 1
        if self._failures == _MOST_FAILURES:
            graphs.clear()
            self.refused = why
            logger.warning(
                "%s cannot be recorded as a CUDA graph, so its work is queued piece by piece: %s", self._name, why
            )
