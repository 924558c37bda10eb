"""An engine in a process of its own, for bundles from strangers: what crashes it does not end the program.

Both sides speak over pipes: four bytes of length, a JSON object, and the arrays that it announces. Nothing that comes
from the child is executed, unpickled or allocated without a bound.
"""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vosrt.bundle import EncoderSpec
from vosrt.engines.base import LARGEST_BATCH, Engine, EngineInfo, largest_batch
from vosrt.errors import EngineError, OptionError, VosrtError
from vosrt.onnx_file import Graph
from vosrt.text import one_line
from vosrt.types import ModelPrecision

_GRAPH = "graph"
_DTYPES = {name: np.dtype(name) for name in ("uint8", "float16", "float32")}
_MAX_HEADER = 1 << 16
_MAX_ARRAYS = 16
_MAX_BYTES = (1 << 31) - 1  # of an array, as of a graph
_MAX_RANK = 8
_MAX_TEXT = 2000

Arrays = dict[str, NDArray[Any]]


def isolated_encoder(
    graph: Graph | Sequence[Graph],
    spec: EncoderSpec,
    *,
    engine: str,
    precision: ModelPrecision,
    threads: int,
) -> Engine:
    """Start a process that runs an encoder; see `vosrt.engines.select.create_encoder_engine`."""
    graphs = [graph] if isinstance(graph, Graph) else graph
    options = {"engine": engine, "precision": precision, "threads": threads}
    return IsolatedEngine(graphs, {"spec": asdict(spec), "options": options})


def isolated_mask_engine(graph: Graph, role: str, encoder: EngineInfo, *, threads: int = 0) -> Engine:
    """Start a process that runs a mask network; see `vosrt.engines.select.create_mask_engine`."""
    return IsolatedEngine([graph], {"role": role, "encoder": asdict(encoder), "options": {"threads": threads}})


class IsolatedEngine:
    """Runs another engine in a child process, which ends with this object or with the program.

    The child's memory is bounded, and it has no network where the system permits that.

    Args:
        graphs: what to run, or one network in several precisions.
        order: what the child is to create, as JSON.

    Raises:
        OptionError: what is asked for cannot be had.
        EngineError: the engine cannot run the graph, or its process ended.
    """

    def __init__(self, graphs: Sequence[Graph], order: Mapping[str, Any]) -> None:
        self._lock = threading.Lock()
        # The child must find what this process would.
        code = f"import sys; sys.path[:] = {sys.path!r}\nfrom vosrt._fence import fence; fence()\n"
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"{code}from vosrt.engines.isolated import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # last words of libraries that crash
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,  # Ctrl-C is for this process
        )
        self._end = weakref.finalize(self, _end, self._process)
        files = [{"path": str(each.path), "quantised": each.quantised} for each in graphs]
        contents = {f"{_GRAPH} {i}": np.frombuffer(each.content, np.uint8) for i, each in enumerate(graphs)}
        ready, _ = self._ask({**order, "graphs": files}, contents)
        name, precision, version, reason = (_text(ready.get(key)) for key in ("name", "precision", "version", "reason"))
        self._info = EngineInfo(name, precision, version, f"{reason}; in a process of its own")
        batch = ready.get("largest_batch")
        self.largest_batch = batch if type(batch) is int and 1 <= batch <= LARGEST_BATCH else 1

    @property
    def info(self) -> EngineInfo:
        """What runs in the child and why."""
        return self._info

    @property
    def process_id(self) -> int:
        """Of the child."""
        return self._process.pid

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the graph in the child.

        Raises:
            EngineError: it failed, or the child ended.
        """
        return self._ask({}, inputs)[1]

    def _ask(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> tuple[dict[str, Any], Arrays]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            try:
                _send(self._process.stdin, header, arrays)
                answer, results = _receive(self._process.stdout)
            except (OSError, EOFError, ValueError) as error:  # ValueError: an answer that is none, or a closed pipe
                self._end()
                raise EngineError(self._last_words()) from error
        if "error" in answer:
            raise (OptionError if answer.get("wrong_input") is True else EngineError)(_text(answer["error"]))
        return answer, results

    def _last_words(self) -> str:
        code = self._process.returncode
        why = f"by {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"with code {code}"
        return (
            f"the isolated engine's process ended {why}; "
            "its memory ran out, or the bundle crashes the engine: take the bundle from its maker again"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a child, unless it has ended by itself."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # what was not sent yet cannot be
                pipe.close()  # also tells the child
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve() -> None:
    """Be the child: create the engine that is asked for, then run it until the parent closes the pipe or ends."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    asked: queue.SimpleQueue[tuple[dict[str, Any], Arrays]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    engine: Engine | None = None
    while True:
        header, arrays = asked.get()
        try:
            if engine is None:
                engine = _create(header, arrays)
                answer, results = {**asdict(engine.info), "largest_batch": largest_batch(engine)}, Arrays()
            else:
                answer, results = {}, engine.run(arrays)
        except VosrtError as error:
            answer, results = {"error": str(error)[:_MAX_TEXT], "wrong_input": error.exit_code == 2}, {}
        except MemoryError:
            answer, results = {"error": "the isolated engine ran out of memory; use a smaller --size"}, {}
        _send(output, answer, results)


def _listen(asked: queue.SimpleQueue[tuple[dict[str, Any], Arrays]]) -> None:
    """Read what the parent asks; when it is gone, end at once, also while the engine works."""
    pipe = os.fdopen(0, "rb")
    try:
        while True:
            asked.put(_receive(pipe))
    finally:
        os._exit(0)


def _create(header: dict[str, Any], contents: Arrays) -> Engine:
    from vosrt.engines.select import create_encoder_engine, create_mask_engine

    options, graphs = header["options"], list[Graph]()
    for number, file in enumerate(header["graphs"]):
        graphs.append(Graph(Path(file["path"]), contents.pop(f"{_GRAPH} {number}").tobytes(), file["quantised"]))
    if "spec" in header:
        return create_encoder_engine(graphs, EncoderSpec(**header["spec"]), **options)
    return create_mask_engine(graphs[0], header["role"], EngineInfo(**header["encoder"]), **options)


def _send(pipe: BinaryIO | Any, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    shapes = [[name, array.dtype.name, list(array.shape)] for name, array in whole.items()]
    text = json.dumps({**header, "arrays": shapes}).encode()
    pipe.write(len(text).to_bytes(4, "little") + text)
    for array in whole.values():
        pipe.write(array.reshape(-1).view(np.uint8).data)
    pipe.flush()


def _receive(pipe: BinaryIO | Any) -> tuple[dict[str, Any], Arrays]:
    """Read one message.

    Raises:
        EOFError: the other side is gone.
        ValueError: it is no message, or a larger one than any that is needed.
    """
    length = int.from_bytes(_read(pipe, 4), "little")
    if length > _MAX_HEADER:
        raise ValueError(length)
    try:
        header = json.loads(_read(pipe, length))
    except RecursionError as error:
        raise ValueError("no header") from error
    if not isinstance(header, dict) or not isinstance(header.get("arrays"), list):
        raise ValueError("no header")
    arrays = Arrays()
    for announced in header["arrays"][:_MAX_ARRAYS]:
        name, dtype, shape = _announced(announced)
        arrays[name] = np.frombuffer(_read(pipe, math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
    return header, arrays


def _announced(announced: Any) -> tuple[str, np.dtype[Any], list[int]]:
    if not isinstance(announced, list) or len(announced) != 3:
        raise ValueError("no array")
    name, dtype, shape = announced
    if not (isinstance(name, str) and isinstance(dtype, str) and dtype in _DTYPES):
        raise ValueError("no array")
    if not isinstance(shape, list) or len(shape) > _MAX_RANK:
        raise ValueError("no array")
    if not all(type(side) is int and 0 <= side <= _MAX_BYTES for side in shape):
        raise ValueError("no shape")
    if math.prod(shape) * _DTYPES[dtype].itemsize > _MAX_BYTES:
        raise ValueError("too large")
    return name, _DTYPES[dtype], shape


def _read(pipe: BinaryIO | Any, count: int) -> bytearray:
    """Read so many bytes, with memory that grows as they come."""
    data = bytearray()
    while len(data) < count:
        part = pipe.read(min(count - len(data), 1 << 24))
        if not part:
            raise EOFError
        data += part
    return data


def _text(value: Any) -> str:
    return one_line(str(value))[:_MAX_TEXT]
