"""TensorRT without ONNX Runtime: engines that ``vos-export engine`` built, on one CUDA stream of their own."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vosrt.arrays import DeviceKind, DeviceTensor
from vosrt.bundle import bundle_word
from vosrt.cuda.graph import Graphs, Recorder
from vosrt.cuda.runtime import BindingsRuntime, CudaEvent, CudaQueue
from vosrt.cuda.transfer import DoubleBuffer, Download
from vosrt.engines.base import EngineInfo, Input, Sequel
from vosrt.engines.mask_axes import MASK_AXES
from vosrt.engines.nvidia import Gpu, find_gpu
from vosrt.engines.registry import Registration, encoder_factory
from vosrt.engines.static_shape import BATCH_AXIS, Axes, Sizes, StaticShapeEngine
from vosrt.engines.tensorrt_files import (
    ENGINE_PRECISIONS,
    EnginePrecision,
    EngineRecord,
    EngineTarget,
    Profile,
    choose_engine,
)
from vosrt.engines.tensorrt_flavour import TENSORRT, TENSORRT_RTX, Flavour
from vosrt.errors import EngineError, OptionError
from vosrt.onnx_file import Graph, as_graph
from vosrt.text import reason_of
from vosrt.types import ModelPrecision

CUDA_GRAPH_VARIABLE = "VOSRT_CUDA_GRAPH"


@dataclass(frozen=True)
class Found:
    """What is needed to run engines on this machine.

    Attributes:
        module: ``tensorrt`` or ``tensorrt_rtx``.
    """

    module: ModuleType
    cuda: BindingsRuntime
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
    return Found(module, BindingsRuntime(), gpu, version)


class TensorRtEngine(StaticShapeEngine):
    """Runs one graph of a bundle with the TensorRT engine that was built from it.

    Buffers are allocated once per frame size, for the four last sizes. The network is queued on one stream, uploads on
    another beside it.

    Args:
        graph: the ONNX file; the engine is looked for in ``engines/`` beside it and in the user's cache.
        axes: see `StaticShapeEngine`; those of an encoder are named ``n``, ``height`` and ``width``, those of
            mask networks are `MASK_AXES`.
        precisions: acceptable ones, best first.
        cuda_graph: record the work of a size once and repeat it with one call, with what follows it where
            `run_with` is given; None is what the environment variable ``VOSRT_CUDA_GRAPH`` says (``1``, which is
            the default, or ``0``). What cannot be recorded is queued piece by piece, after a warning.

    Raises:
        MissingExtraError: TensorRT or the CUDA bindings are not installed.
        EngineError: no GPU, no engine built for it, or one that does not load.
    """

    def __init__(
        self,
        graph: Graph | Path,
        axes: Axes,
        *,
        flavour: Flavour,
        precisions: tuple[EnginePrecision, ...] = ENGINE_PRECISIONS,
        reason: str,
        cuda_graph: bool | None = None,
    ) -> None:
        graph, found = as_graph(graph), find_tensorrt(flavour)
        self._trt, self._cuda, self._flavour = found.module, found.cuda, flavour
        target = EngineTarget(
            flavour=flavour.name,
            version=str(found.module.__version__),
            architecture=found.gpu.architecture,
            graph_sha256=graph.sha256,
            graph=next((role for role, each in MASK_AXES.items() if each == axes), "encoder"),
        )
        plan, self._record = choose_engine(graph.path, target, precisions)
        info = EngineInfo(flavour.name, self._record.precision, found.version, reason)
        super().__init__(graph, axes, info)
        self._cuda_graph = _cuda_graph_wanted() if cuda_graph is None else cuda_graph
        self._stream, self._uploads = CudaQueue(self._cuda), CudaQueue(self._cuda)
        self._queue = threading.Lock()  # of the stream: one run at a time
        self._engine = self._deserialise(plan)
        self._recorder = Recorder(self._cuda, f"the network of {self._record.stem}")

    device: DeviceKind = "cuda"

    @property
    def record(self) -> EngineRecord:
        """What the engine was built from and for."""
        return self._record

    @property
    def stream(self) -> int:
        """What the network is queued on, as an integer handle."""
        return self._stream.stream

    @property
    def largest_batch(self) -> int:
        """Frames that it was built to take at once; of a mask network, objects."""
        return self._record.batch

    @property
    def smallest_frame(self) -> tuple[int, int]:
        """Rows and columns of the smallest frame that it was built to take, in pixels."""
        return self._record.profiles[0].minimum

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
            return session.tensors(self._stream)

    def run_with(self, inputs: Mapping[str, Input], sequel: Sequel) -> None:
        """Run the graph and, behind it, what follows it; both are one CUDA graph from the second time on.

        Inputs are copied outside the graph, so that those from the host may come in through two buffers. A TensorRT-RTX
        that cannot be captured keeps the graphs that it captures by itself.

        Raises:
            EngineError: no profile takes these shapes, or TensorRT or what follows failed.
        """
        session = self._session_for(self._sizes(inputs))
        with self._queue:
            session.enqueue(inputs, sequel)

    def _create_session(self, sizes: Sizes) -> _Session:
        size_of = dict(sizes)
        step = 1 if "height" in size_of else 4  # of the decoder, which has no frames, the map res2 tells the size
        height, width = (size_of[axis] for axis in (("height", "width") if step == 1 else ("h2", "w2")))
        profiles, batch = self._record.profiles, self.largest_batch
        what = "frames at once" if self._record.graph == "encoder" else "objects"
        if (count := size_of.get(BATCH_AXIS, size_of.get("objects", 1))) > batch:
            raise EngineError(
                f"the {self.info.name} engine was built for {batch} {what} and {count} were given; build it "
                f"for them: {self._command(profiles, count)}"
            )
        fitting = [i for i, profile in enumerate(profiles) if profile.takes(height, width, step)]
        height, width = step * height, step * width
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
            self._cuda.select()
            context, config = self._create_context(shapes, fitting[0])
            record = self._cuda_graph and self._is_recordable(context)
            if self._cuda_graph and not record:
                context, config = self._create_context(shapes, fitting[0], records_itself=True)
            inputs = {name: self._array(context, name) for name in self._names(self._trt.TensorIOMode.INPUT)}
            outputs = {name: self._array(context, name) for name in self._names(self._trt.TensorIOMode.OUTPUT)}
            for name, array in {**inputs, **outputs}.items():
                if not context.set_tensor_address(name, array.pointer):
                    raise self._failure(f"refuses the address of {name!r}")
            network = _Network(context, config, self._cuda.select, self._failure, self._recorder if record else None)
            return _Session(self._stream, self._uploads, network, inputs, outputs)

    def _is_recordable(self, context: Any) -> bool:
        """TensorRT-RTX says so; with TensorRT it turns out."""
        if self._flavour is not TENSORRT_RTX:
            return True
        asked = getattr(context, "is_stream_capturable", None)  # from 1.2 on
        return asked is not None and bool(asked(self._stream.stream))

    def _command(self, sizes: Sequence[Profile | str], batch: int) -> str:
        """What builds an engine for these sizes."""
        option = "--batch" if self._record.graph == "encoder" else "--objects"
        at_once = f" {option} {batch}" if batch > 1 else ""
        return (
            f"vos-export engine {bundle_word(self._graph.path.parent)} --flavour {self._flavour.option} "
            f"--sizes {','.join(map(str, sizes))}{at_once}"
        )

    def _run(self, session: _Session, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with self._queue:
            session.enqueue(inputs)
            results = session.download()
        return dict(zip(session.outputs, results.take(), strict=True))  # others may queue their frames meanwhile

    def _deserialise(self, plan: bytes) -> Any:
        self._cuda.select()
        runtime = self._trt.Runtime(_log(self._trt))
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"{self.info.name} cannot load {self._record.stem}: {_log(self._trt).last_words}; build it again: "
                f"vos-export engine {bundle_word(self._graph.path.parent)} --flavour {self._flavour.option} --rebuild"
            )
        return engine

    def _create_context(
        self, shapes: Mapping[str, tuple[int, ...]], profile: int, *, records_itself: bool = False
    ) -> tuple[Any, Any]:
        """Return a context for inputs of these shapes, and the configuration that has to live as long.

        Args:
            shapes: by name.
            records_itself: TensorRT-RTX records CUDA graphs on its own.
        """
        config = None
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
        try:  # these two raise where others give False
            if not context.set_optimization_profile_async(profile, self._stream.stream):
                raise self._failure(f"cannot switch to profile {profile}")
            for name, shape in shapes.items():
                if not context.set_input_shape(name, shape):
                    raise self._failure(f"refuses the shape {list(shape)} of {name!r}")
            if missing := context.infer_shapes():
                raise self._failure(f"does not know the shapes of {', '.join(missing)}")
        except RuntimeError as error:
            raise self._failure(f"cannot prepare {dict(shapes)} ({reason_of(error)})") from error
        self._stream.wait()
        return context, config

    def _names(self, mode: Any) -> list[str]:
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        return [name for name in names if self._engine.get_tensor_mode(name) == mode]

    def _dtype_of(self, name: str) -> np.dtype[Any]:
        dtype: np.dtype[Any] = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        return dtype

    def _array(self, context: Any, name: str) -> DeviceTensor:
        return self._stream.allocate(tuple(context.get_tensor_shape(name)), self._dtype_of(name), name)

    @property
    def _failure(self) -> Callable[[str], EngineError]:
        """Makes errors with TensorRT's last words. It does not hold the engine, so that there is no cycle."""
        name, log = self.info.name, _log(self._trt)
        return lambda what: EngineError(f"{name} {what}: {log.last_words}")


@dataclass(frozen=True)
class _Network:
    """A network that is queued on a stream, alone or with what follows it.

    The first time, TensorRT prepares itself; the second time it may be captured.

    Attributes:
        config: what the context was made with; it has to live as long.
        select: makes its GPU the calling thread's.
        recorder: of CUDA graphs; None captures nothing.
    """

    context: Any
    config: Any
    select: Callable[[], None]
    failure: Callable[[str], EngineError]
    recorder: Recorder | None

    def submit(self, stream: CudaQueue) -> None:
        """Queue it."""
        if not self.context.execute_async_v3(stream.stream):
            raise self.failure("cannot run")

    def run(self, stream: CudaQueue, graphs: Graphs, kind: Hashable, work: Callable[[CudaQueue], None]) -> bool:
        """Queue work that contains it, as one graph if possible; see `Recorder.run`."""
        self.select()
        if self.recorder is not None:
            return self.recorder.run(stream, graphs, kind, work)
        work(stream)
        return False


class _Session:
    """Buffers of one frame size, and the work on them.

    Inputs come in through two buffers, on a stream of their own: while the network computes on one frame, the next is
    uploaded. The network's own arrays never change, so that its work can be captured once.

    Args:
        network: what is queued between inputs and outputs.
        inputs: by name.
        outputs: by name.
    """

    def __init__(
        self,
        stream: CudaQueue,
        uploads: CudaQueue,
        network: _Network,
        inputs: dict[str, DeviceTensor],
        outputs: dict[str, DeviceTensor],
    ) -> None:
        self._stream, self._uploads, self._network = stream, uploads, network
        self._inputs, self.outputs = inputs, outputs
        self._incoming, self._outgoing = DoubleBuffer(stream.runtime), DoubleBuffer(stream.runtime)
        self._staged = tuple(_Staged(uploads, inputs) for _ in range(2))
        self._runs = 0
        self._graphs: Graphs = OrderedDict()  # of the network alone
        self._identity = object()  # of these arrays: a graph with others' does not fit

    def tensors(self, stream: CudaQueue) -> dict[str, DeviceTensor]:
        """Return the outputs for others who queue work on them, on a stream."""
        return self._on(stream, self.outputs)

    def _on(self, stream: CudaQueue, arrays: Mapping[str, DeviceTensor]) -> dict[str, DeviceTensor]:
        return {name: replace(each, owner=(self, stream), stream=stream.stream) for name, each in arrays.items()}

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
                self._stream.copy(each, self._inputs[name])
        if sequel is None:
            self._network.run(self._stream, self._graphs, None, self._network.submit)
        else:
            self._run_with(sequel)
        self._runs += 1

    def _run_with(self, sequel: Sequel) -> None:
        def both(stream: CudaQueue) -> None:
            self._network.submit(stream)
            sequel.queue(self._on(stream, {**self._inputs, **self.outputs}))

        if self._network.run(self._stream, sequel.graphs, (self._identity, sequel.kind), both):
            sequel.replayed()

    def download(self) -> Download:
        """Queue the outputs' way to the host, behind the network."""
        return self._outgoing.download(list(self.outputs.values()), self._stream)

    def _upload(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        staged = self._staged[self._runs % 2]
        self._incoming.upload(inputs, staged.arrays, self._uploads, after=staged.taken)
        self._stream.wait_for(self._incoming.newest.copied)
        for name in inputs:
            self._stream.copy(staged.arrays[name], self._inputs[name])
        self._stream.record(staged.taken)


class _Staged:
    """Where one frame's inputs arrive on the GPU.

    Attributes:
        arrays: by name; free once ``taken`` is reached.
        taken: the network has its own copy.
    """

    def __init__(self, uploads: CudaQueue, inputs: Mapping[str, DeviceTensor]) -> None:
        self.arrays = {name: uploads.allocate(each.shape, each.dtype, name) for name, each in inputs.items()}
        self.taken = CudaEvent(uploads.runtime)


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
            return reason_of(Exception(self._errors[-1])) if self._errors else "TensorRT gave no reason"

    return Log()


def _cuda_graph_wanted() -> bool:
    value = os.environ.get(CUDA_GRAPH_VARIABLE, "1")
    if value not in ("0", "1"):
        raise OptionError(f"{CUDA_GRAPH_VARIABLE} is {value!r}; expected 1 or 0")
    return value == "1"


def _registration(flavour: Flavour, gpu: str, rank: int) -> Registration:
    def create(graph: Graph, axes: Axes, *, precision: ModelPrecision, threads: int, reason: str) -> TensorRtEngine:
        narrow = ENGINE_PRECISIONS if precision == "auto" else (precision,)
        return TensorRtEngine(graph, axes, flavour=flavour, precisions=narrow, reason=reason)

    def create_mask_network(
        graph: Graph, axes: Axes, *, precision: ModelPrecision, threads: int, reason: str
    ) -> TensorRtEngine:
        # Only encoders are quantised: a mask network computes in the precision that it was built for.
        given: ModelPrecision = "auto" if precision in ("int8", "fp8") else precision
        return create(graph, axes, precision=given, threads=threads, reason=reason)

    return Registration(
        name=flavour.name,
        needs=f"{gpu}, its package, and an engine that vos-export engine built",
        devices=("cuda",),
        precisions=ENGINE_PRECISIONS,
        factory=encoder_factory(create),
        mask_factory=create_mask_network,
        find=lambda: find_tensorrt(flavour).version,
        rank=rank,
        former_names=(f"{flavour.name}-direct",),
    )


ENGINE = _registration(TENSORRT, "an NVIDIA GPU", 1)
RTX_ENGINE = _registration(TENSORRT_RTX, "an NVIDIA RTX GPU", 2)
