"""Networks in PyTorch as engines whose outputs stay on the GPU, for machines without another such engine."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vosrt import Model, load_bundle
from vosrt.arrays import DeviceKind, DeviceTensor
from vosrt.bundle import Manifest
from vosrt.engines.base import EngineInfo, Input, Sequel

PAPER = "paper"  # in place of a bundle: the paper's network with random weights, which do not change its speed
Network = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class TorchEngine:
    """Runs a network, in fp16 on a GPU; a `vosrt.engines.base.SequelEngine`.

    On a GPU the work of a size is captured when it comes for the second time, with what follows it where
    `run_with` is given. What cannot be captured is queued piece by piece, and ``refused`` says why.

    Args:
        network: inputs by name -> outputs by name, f32 without gaps, on its device.
        device: of the network. The processor stands in for an emulated GPU, whose memory is the host's.
        recorded: False captures nothing.
    """

    def __init__(self, network: Network, device: torch.device, *, recorded: bool = True) -> None:
        self._network, self._device = network, device
        self._half = device.type == "cuda"
        self._recorded = recorded and self._half
        self.refused = ""
        self._lock = threading.Lock()
        self._inputs: dict[Any, dict[str, Tensor]] = {}
        self._graphs: dict[Any, Any] = {}
        if self._half:
            self._queue, self._private = torch.cuda.Stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self.stream = self._queue.cuda_stream

    device: DeviceKind = "cuda"  # so that outputs stay there

    @property
    def info(self) -> EngineInfo:
        """What runs and why."""
        precision = "fp16" if self._half else "fp32"
        return EngineInfo("torch", precision, f"torch {torch.__version__}", "it was asked for")

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the network on host arrays."""
        given = {name: torch.from_numpy(array).to(self._device) for name, array in inputs.items()}
        return {name: output.cpu().numpy() for name, output in self._compute(given).items()}

    def run_on_device(self, inputs: Mapping[str, Input]) -> dict[str, DeviceTensor]:
        """As `run`, from host memory or the GPU's, and left there; the next run overwrites it."""
        if not self._half:
            return self._tensors(self._compute({name: self._view(array) for name, array in inputs.items()}), None)
        with self._lock, torch.cuda.stream(self._queue):
            key, own = self._bring(inputs)
            if key not in self._graphs or not self._recorded:
                self._graphs[key] = None
                return self._tensors(self._compute(own), self.stream)
            if self._graphs[key] is None:
                self._graphs[key] = self._capture(lambda: self._compute(own))
            graph, outputs = self._graphs[key] or (None, {})
            if graph is None:
                return self._tensors(self._compute(own), self.stream)
            graph.replay()
            return self._tensors(outputs, self.stream)

    def run_with(self, inputs: Mapping[str, Input], sequel: Sequel) -> None:
        """Run the network and, behind it, what follows it; both are one CUDA graph from the second time on."""
        with self._lock, torch.cuda.stream(self._queue):
            key, own = self._bring(inputs)
            kind, graphs = (key, sequel.kind), sequel.graphs

            def work() -> dict[str, Tensor]:
                outputs = self._compute(own)
                sequel.queue(self._tensors({**own, **outputs}, torch.cuda.current_stream(self._device).cuda_stream))
                return outputs

            if not self._recorded or kind not in graphs:
                graphs[kind] = None
                work()
                return
            if graphs[kind] is None:
                graphs[kind] = self._capture(work)
                if graphs[kind] is None:
                    work()
                    return
            graphs[kind][0].replay()
            sequel.replayed()

    def _capture(self, work: Callable[[], dict[str, Tensor]]) -> tuple[Any, dict[str, Tensor]] | None:
        """Return a graph and the arrays that it writes; None where that failed, and then nothing more is captured."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._private, capture_error_mode="relaxed"):
                outputs = work()
        except Exception as error:  # whatever fails in between, frames go on without it
            self._recorded, self.refused = False, " ".join(f"{type(error).__name__}: {error}".split())[:200]
            return None
        return graph, outputs

    def _bring(self, inputs: Mapping[str, Input]) -> tuple[Any, dict[str, Tensor]]:
        """Copy inputs to where graphs read them, on the current stream."""
        key = tuple((name, array.shape) for name, array in inputs.items())
        if key not in self._inputs:
            self._inputs[key] = {
                name: torch.empty(array.shape, dtype=getattr(torch, array.dtype.name), device=self._device)
                for name, array in inputs.items()
            }
        for name, array in inputs.items():
            self._inputs[key][name].copy_(self._view(array), non_blocking=True)
        return key, self._inputs[key]

    def _view(self, array: Input) -> Tensor:
        """An array that is not copied."""
        if isinstance(array, np.ndarray):
            return torch.from_numpy(array)
        if self._half:
            return torch.as_tensor(_Plain(array), device=self._device)
        memory = (ctypes.c_char * (int(np.prod(array.shape)) * array.dtype.itemsize)).from_address(array.pointer)
        return torch.from_numpy(np.frombuffer(memoryview(memory), array.dtype).reshape(array.shape))

    def _tensors(self, outputs: Mapping[str, Tensor], stream: int | None) -> dict[str, DeviceTensor]:
        return {
            name: DeviceTensor(
                pointer=output.data_ptr(),
                shape=tuple(output.shape),
                dtype=np.dtype(np.float32),
                device="cuda",
                device_id=self._device.index or 0,
                stream=stream,
                owner=output,
            )
            for name, output in outputs.items()
        }

    @torch.inference_mode()
    def _compute(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._network(inputs)


class _Plain:
    """An array for PyTorch that names no stream: the caller has ordered the work on it."""

    def __init__(self, array: DeviceTensor) -> None:
        plain = replace(array, stream=None, hand_over=None)
        self.__cuda_array_interface__ = plain.__cuda_array_interface__


def torch_model(bundle: str, *, recorded: bool = True) -> Model:
    """The runtime on device ``"cuda"`` around a bundle's networks in PyTorch, on the first GPU, or the processor.

    Args:
        bundle: a folder, the name of a packaged one, or `PAPER`.
        recorded: networks are captured as CUDA graphs.

    Raises:
        NotImplementedError: PyTorch stands in for no operator of the bundle.
        OptionError: there is no libvosrt_cuda.
    """
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if bundle == PAPER:
        manifest, network = paper_network(device)
        return Model(
            manifest, {"encoder": TorchEngine(network, device, recorded=recorded)}, source=bundle, device="cuda"
        )
    from benchmarks.kernels.onnx_in_torch import OnnxInTorch

    opened = load_bundle(bundle)
    engines = {
        role: TorchEngine(
            OnnxInTorch(opened.graph(role).content, device, half=device.type == "cuda"), device, recorded=recorded
        )
        for role, file in opened.manifest.graphs.items()
        if file.quantised is None  # PyTorch has the network in fp16 on a GPU
    }
    return Model(opened.manifest, engines, source=bundle, device="cuda")


def paper_network(device: torch.device) -> tuple[Manifest, Network]:
    """The network and the settings of the paper: a whole ResNet-18, 512 channels."""
    from vosrt.types import PropagationOptions
    from vosrt_export.graphs import EncoderGraph
    from vosrt_train.config import EncoderConfig
    from vosrt_train.model import build_encoder

    known = load_bundle("default").manifest
    spec = replace(known.encoder, feature="res4", channels=512)
    graph = EncoderGraph(build_encoder(EncoderConfig(), seed=0), "res4").eval().to(device)
    kind = torch.float16 if device.type == "cuda" else torch.float32
    encoder: Any = graph.encoder.to(dtype=kind, memory_format=torch.channels_last)  # type: ignore[call-overload]
    scale, offset = graph.get_buffer("scale"), graph.get_buffer("offset")

    def network(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        bgr = inputs[spec.input_name].permute(0, 3, 1, 2).float()
        feature = encoder((bgr * scale - offset).to(kind)).res4.float()
        return {spec.output_name: functional.normalize(feature, dim=1).permute(0, 2, 3, 1).contiguous()}

    manifest = replace(
        known, name="paper settings", trained=False, encoder=spec, graphs={}, inference=PropagationOptions()
    )
    return manifest, network
