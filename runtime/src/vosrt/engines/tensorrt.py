"""TensorRT without ONNX Runtime: engines that ``vos-export engine`` built, on one CUDA stream of their own."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vosrt.bundle import file_sha256
from vosrt.engines.base import EngineInfo, Input, Sequel
from vosrt.engines.cuda import Cuda, DeviceArray, Event, Recorder, Recordings, Stream
from vosrt.engines.device import DeviceTensor
from vosrt.engines.nvidia import Gpu, find_gpu
from vosrt.engines.static_shape import BATCH_AXIS, Axes, Sizes, StaticShapeEngine, one_line
from vosrt.engines.tensorrt_files import (
    ENGINE_PRECISIONS,
    EnginePrecision,
    EngineRecord,
    EngineTarget,
    Profile,
    choose_engine,
)
from vosrt.engines.tensorrt_flavour import TENSORRT_RTX, Flavour
from vosrt.errors import EngineError, OptionError

CUDA_GRAPH_VARIABLE = "VOSRT_CUDA_GRAPH"


@dataclass(frozen=True)
class Found:
    """What is needed to run engines on this machine.

    Attributes:
        module: ``tensorrt`` or ``tensorrt_rtx``.
        cuda: the CUDA runtime.
        gpu: what they run on.
        version: of everything, for people.
    """

    module: ModuleType
    cuda: Cuda
    gpu: Gpu
    version: str


def find_tensorrt(flavour: Flavour) -> Found:
    """Look for a GPU, a TensorRT and the CUDA bindings, in this order.

    Raises:
        EngineError: there is no GPU, or TensorRT is broken or too old.
        MissingExtraError: TensorRT or the bindings are not installed.
    """
    gpu = find_gpu()
    module = flavour.load()
    version = f"{flavour.name} {module.__version__}, CUDA {gpu.cuda}, {gpu.name} ({gpu.architecture})"
    return Found(module, Cuda(), gpu, version)


class TensorRtEngine(StaticShapeEngine):
    """Runs one graph of a bundle with the TensorRT engine that was built from it.

    Buffers are allocated once per frame size, for the four last sizes. The network is queued on one stream, uploads on
    another beside it.

    Args:
        graph: the ONNX file; the engine is looked for in ``engines/`` beside it.
        axes: see :class:`StaticShapeEngine`; the axes of frames are named ``n``, ``height`` and ``width``.
        flavour: which TensorRT.
        precisions: acceptable ones, best first.
        reason: for :class:`EngineInfo`.
        cuda_graph: record the work of a size once and repeat it with one call, with what follows it where
            :meth:`run_with` is told; None is what the environment variable ``VOSRT_CUDA_GRAPH`` says (``1``, which is
            the default, or ``0``). What cannot be recorded is queued piece by piece, after a warning.

    Raises:
        MissingExtraError: TensorRT or the CUDA bindings are not installed.
        EngineError: no GPU, no engine built for it, or one that does not load.
    """

    def __init__(
        self,
        graph: Path,
        axes: Axes,
        *,
        flavour: Flavour,
        precisions: tuple[EnginePrecision, ...] = ENGINE_PRECISIONS,
        reason: str,
        cuda_graph: bool | None = None,
    ) -> None:
        found = find_tensorrt(flavour)
        self._trt, self._cuda, self._flavour = found.module, found.cuda, flavour
        target = EngineTarget(
            flavour=flavour.name,
            version=str(found.module.__version__),
            architecture=found.gpu.architecture,
            graph_sha256=file_sha256(graph),
        )
        plan, self._record = choose_engine(graph, target, precisions)
        info = EngineInfo(f"{flavour.name}-direct", self._record.precision, found.version, reason)
        super().__init__(graph, axes, info)
        self._cuda_graph = _cuda_graph_wanted() if cuda_graph is None else cuda_graph
        self._stream, self._uploads = self._cuda.create_stream(), self._cuda.create_stream()
        self._queue = threading.Lock()  # of the stream: one run at a time
        self._engine = self._deserialise(plan)
        self._recorder = Recorder(f"the network of {self._record.stem}")

    @property
    def record(self) -> EngineRecord:
        """What the engine was built from and for."""
        return self._record

    @property
    def stream(self) -> int:
        """What the network is queued on, as an integer handle."""
        return self._stream.handle

    @property
    def largest_batch(self) -> int:
        """Frames that it was built to take at once."""
        return self._record.batch

    def smallest_inputs(self) -> dict[str, NDArray[Any]]:
        """Zeros of the smallest frame that the engine takes, to probe it with."""
        height, width = self._record.profiles[0].minimum
        sizes = {"n": 1, "height": height, "width": width}
        shapes = {name: [sizes[axis] if axis else 3 for axis in axes] for name, axes in self._axes.items()}
        return {name: np.zeros(shape, dtype=self._dtype_of(name)) for name, shape in shapes.items()}

    def run_on_device(self, inputs: Mapping[str, Input]) -> dict[str, DeviceTensor]:
        """Run the graph and leave its outputs on the GPU; inputs may be there, whole for work on that same stream.

        The outputs are not awaited: they are whole for work that is queued on their ``stream`` afterwards. They are
        overwritten by the next run with the same shapes.

        Raises:
            EngineError: no profile takes these shapes, or TensorRT failed.
        """
        session: _Session = self._session_for(self._sizes(inputs))
        with self._queue:
            session.enqueue(inputs)
            return session.tensors()

    def run_with(self, inputs: Mapping[str, Input], sequel: Sequel) -> None:
        """Run the graph and, behind it, what follows it; both are one CUDA graph from the second time on.

        Inputs are queued plainly, so that those from the host may come in through two landings by turns. A TensorRT-RTX
        that cannot be recorded keeps the graphs that it records by itself.

        Raises:
            EngineError: no profile takes these shapes, or TensorRT or what follows failed.
        """
        session = self._session_for(self._sizes(inputs))
        with self._queue:
            session.enqueue(inputs, sequel)

    def _create_session(self, sizes: Sizes) -> _Session:
        size_of = dict(sizes)
        height, width = size_of["height"], size_of["width"]
        profiles, batch = self._record.profiles, self.largest_batch
        if (count := size_of.get(BATCH_AXIS, 1)) > batch:
            raise EngineError(
                f"the {self.info.name} engine was built for {batch} frames at once and {count} were given; build it "
                f"for them: {self._command(profiles, count)}"
            )
        fitting = [i for i, profile in enumerate(profiles) if profile.takes(height, width)]
        if not fitting:
            raise EngineError(
                f"the {self.info.name} engine was built for frames of {', '.join(map(str, profiles))} (height x width) "
                f"and takes none of {height}x{width}; build it for that too: "
                f"{self._command([*profiles, f'{height}x{width}'], batch)}"
            )
        shapes = {
            name: tuple(
                size_of[axis] if axis else self._engine.get_tensor_shape(name)[i] for i, axis in enumerate(axes)
            )
            for name, axes in self._axes.items()
        }
        with self._queue:
            context = self._create_context(shapes, fitting[0])
            record = self._cuda_graph and self._is_recordable(context)
            if self._cuda_graph and not record:
                context = self._create_context(shapes, fitting[0], records_itself=True)
            inputs = {name: self._array(context, name) for name in self._names(self._trt.TensorIOMode.INPUT)}
            outputs = {name: self._array(context, name) for name in self._names(self._trt.TensorIOMode.OUTPUT)}
            for name, array in {**inputs, **outputs}.items():
                if not context.set_tensor_address(name, array.pointer):
                    raise self._failure(f"refuses the address of {name!r}")
            network = _Network(self._submitter(context), self._recorder if record else None)
            return _Session(self._cuda, self._stream, self._uploads, network, inputs, outputs)

    def _is_recordable(self, context: Any) -> bool:
        """TensorRT-RTX says so; with TensorRT it turns out."""
        if self._flavour is not TENSORRT_RTX:
            return True
        asked = getattr(context, "is_stream_capturable", None)  # from 1.2 on
        return asked is not None and bool(asked(self._stream.handle))

    def _command(self, sizes: Sequence[Profile | str], batch: int) -> str:
        """What builds an engine for these sizes."""
        at_once = f" --batch {batch}" if batch > 1 else ""
        return (
            f"vos-export engine {self._graph.parent} --flavour {self._flavour.option} "
            f"--sizes {','.join(map(str, sizes))}{at_once}"
        )

    def _run(self, session: _Session, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with self._queue:
            session.enqueue(inputs)
            results = session.download()
        return results.take()  # others may queue their frames meanwhile

    def _deserialise(self, plan: bytes) -> Any:
        runtime = self._trt.Runtime(_log(self._trt))
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"{self.info.name} cannot load {self._record.stem}: {_log(self._trt).last_words}; build it again: "
                f"vos-export engine {self._graph.parent} --flavour {self._flavour.option} --rebuild"
            )
        return engine

    def _create_context(
        self, shapes: Mapping[str, tuple[int, ...]], profile: int, *, records_itself: bool = False
    ) -> Any:
        """A context for inputs of these shapes.

        Args:
            shapes: by name.
            profile: that takes them.
            records_itself: TensorRT-RTX records CUDA graphs on its own.
        """
        if self._flavour is TENSORRT_RTX and self._cuda_graph:
            config = self._engine.create_runtime_config()
            # Kernels for these shapes are compiled before anything is recorded, and not beside the first runs.
            config.dynamic_shapes_kernel_specialization_strategy = (
                self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            if records_itself:
                config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        if context is None:
            raise self._failure("has no memory for a context on this GPU")
        if not context.set_optimization_profile_async(profile, self._stream.handle):
            raise self._failure(f"cannot switch to profile {profile}")
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._failure(f"refuses the shape {list(shape)} of {name!r}")
        if missing := context.infer_shapes():
            raise self._failure(f"does not know the shapes of {', '.join(missing)}")
        self._stream.wait()
        return context

    def _submitter(self, context: Any) -> Callable[[], None]:
        def submit() -> None:
            if not context.execute_async_v3(self._stream.handle):
                raise self._failure("cannot run")

        return submit

    def _names(self, mode: Any) -> list[str]:
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        return [name for name in names if self._engine.get_tensor_mode(name) == mode]

    def _dtype_of(self, name: str) -> np.dtype[Any]:
        dtype: np.dtype[Any] = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        return dtype

    def _array(self, context: Any, name: str) -> DeviceArray:
        return self._cuda.device_array(tuple(context.get_tensor_shape(name)), self._dtype_of(name))

    def _failure(self, what: str) -> EngineError:
        return EngineError(f"{self.info.name} {what}: {_log(self._trt).last_words}")


@dataclass
class _Landing:
    """Where one frame's inputs come in from the host: pinned memory, then the GPU's.

    Attributes:
        pinned: by name; free once ``uploaded`` is reached.
        arrays: by name, on the GPU; free once ``taken`` is reached.
        uploaded: the copy to the GPU is done.
        taken: the network has its own copy.
    """

    pinned: dict[str, NDArray[Any]]
    arrays: dict[str, DeviceArray]
    uploaded: Event
    taken: Event


@dataclass
class _Results:
    """Where one run's outputs go on the host.

    Attributes:
        arrays: by name, pinned.
        written: the copy from the GPU is done.
        lock: held from the run until its caller has its own copy.
    """

    arrays: dict[str, NDArray[Any]]
    written: Event
    lock: threading.Lock

    def take(self) -> dict[str, NDArray[Any]]:
        """The outputs once they are there, and room for another run."""
        try:
            self.written.wait()
            return {name: array.copy() for name, array in self.arrays.items()}
        finally:
            self.lock.release()


@dataclass(frozen=True)
class _Network:
    """A network that is queued on a stream, alone or with what follows it.

    The first time, TensorRT prepares itself; the second time it may be recorded.

    Attributes:
        submit: queues it.
        recorder: of CUDA graphs; None records nothing.
    """

    submit: Callable[[], None]
    recorder: Recorder | None

    def run_alone(self, stream: Stream, recordings: Recordings) -> None:
        if self.recorder is None:
            self.submit()
        else:
            self.recorder.run(stream, recordings, None, self.submit)

    def run_with(
        self, stream: Stream, sequel: Sequel, identity: object, outputs: Callable[[], dict[str, DeviceTensor]]
    ) -> None:
        def both() -> None:
            self.submit()
            sequel.queue(outputs())

        if self.recorder is None:
            both()
        elif self.recorder.run(stream, sequel.recordings, (identity, sequel.kind), both):
            sequel.launched()


class _Session:
    """Buffers of one frame size, and the work on them.

    Inputs come in by turns through two landings, on a stream of their own: while the network computes on one frame, the
    next is uploaded. The network's own buffers never change, so that its work can be recorded once.

    Args:
        cuda: where the buffers come from.
        stream: what the network is queued on.
        uploads: what uploads are queued on.
        network: what is queued between inputs and outputs.
        inputs: by name.
        outputs: by name.
    """

    def __init__(
        self,
        cuda: Cuda,
        stream: Stream,
        uploads: Stream,
        network: _Network,
        inputs: dict[str, DeviceArray],
        outputs: dict[str, DeviceArray],
    ) -> None:
        self._cuda, self._stream, self._uploads, self._network = cuda, stream, uploads, network
        self._inputs = inputs
        self._landings = tuple(self._landing() for _ in range(2))
        self.outputs = outputs
        self._results: tuple[_Results, ...] = ()  # made by the first run whose outputs come to the host
        self._runs = 0
        self._recordings = Recordings()  # of the network alone
        self._identity = object()  # of these buffers: a recording with others' does not fit

    def tensors(self) -> dict[str, DeviceTensor]:
        """The outputs, for whoever queues work on them."""
        return {
            name: DeviceTensor(
                pointer=array.pointer,
                shape=array.shape,
                dtype=array.dtype,
                device="cuda",
                owner=(self, self._stream),
                stream=self._stream.handle,
            )
            for name, array in self.outputs.items()
        }

    def enqueue(self, inputs: Mapping[str, Input], sequel: Sequel | None = None) -> None:
        """Queue the inputs' way to the network, the network, and what follows it."""
        for name, array in self._inputs.items():
            if inputs[name].dtype != array.dtype:
                raise EngineError(f"{name!r} is {inputs[name].dtype}; expected {array.dtype}")
        on_host = {name: each for name, each in inputs.items() if isinstance(each, np.ndarray)}
        if on_host:
            self._upload(on_host)
        for name, each in inputs.items():
            if isinstance(each, DeviceTensor):
                self._stream.copy(each.pointer, self._inputs[name])
        if sequel is None:
            self._network.run_alone(self._stream, self._recordings)
        else:
            self._network.run_with(self._stream, sequel, self._identity, self.tensors)
        self._runs += 1

    def download(self) -> _Results:
        """Queue the outputs' way to the host, behind the network."""
        if not self._results:
            self._results = tuple(self._result() for _ in range(2))
        results = self._results[self._runs % 2]
        results.lock.acquire()
        try:
            for name, array in self.outputs.items():
                self._stream.download(array, results.arrays[name])
            self._stream.record(results.written)
        except BaseException:
            results.lock.release()
            raise
        return results

    def _upload(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        landing = self._landings[self._runs % 2]
        landing.uploaded.wait()
        for name, array in inputs.items():
            np.copyto(landing.pinned[name], array)
        self._uploads.wait_for(landing.taken)
        for name in inputs:
            self._uploads.upload(landing.pinned[name], landing.arrays[name])
        self._uploads.record(landing.uploaded)
        self._stream.wait_for(landing.uploaded)
        for name in inputs:
            self._stream.copy(landing.arrays[name].pointer, self._inputs[name])
        self._stream.record(landing.taken)

    def _landing(self) -> _Landing:
        cuda, inputs = self._cuda, self._inputs
        return _Landing(
            pinned={name: cuda.pinned_array(array.shape, array.dtype) for name, array in inputs.items()},
            arrays={name: cuda.device_array(array.shape, array.dtype) for name, array in inputs.items()},
            uploaded=cuda.create_event(),
            taken=cuda.create_event(),
        )

    def _result(self) -> _Results:
        arrays = {name: self._cuda.pinned_array(array.shape, array.dtype) for name, array in self.outputs.items()}
        return _Results(arrays, self._cuda.create_event(), threading.Lock())


@cache
def _log(trt: ModuleType) -> Any:
    """TensorRT's log, of which the last errors are kept for messages; one per library, since it accepts no second."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: deque[str] = deque(maxlen=8)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self._errors.append(message)

        @property
        def last_words(self) -> str:
            return one_line(Exception(self._errors[-1])) if self._errors else "TensorRT gave no reason"

    return Log()


def _cuda_graph_wanted() -> bool:
    value = os.environ.get(CUDA_GRAPH_VARIABLE, "1")
    if value not in ("0", "1"):
        raise OptionError(f"{CUDA_GRAPH_VARIABLE} is {value!r}; expected 1 or 0")
    return value == "1"
