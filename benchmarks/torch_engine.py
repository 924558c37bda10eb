"""An encoder in PyTorch as an engine whose embeddings stay on the GPU, for machines that have no other engine there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vosrt import Model, load_bundle
from vosrt.bundle import EncoderSpec
from vosrt.engines.base import EngineInfo, Input
from vosrt.engines.device import DeviceTensor
from vosrt.errors import OptionError
from vosrt_train.bundle_weights import load_trainable
from vosrt_train.model.contract import VisualEncoder
from vosrt_train.pixels import normalise


class TorchEngine:
    """Runs an encoder, in fp16 on a GPU; a `vosrt.engines.base.DeviceEngine`.

    Args:
        encoder: in evaluation mode afterwards.
        spec: names of input and output, and the feature.
        device: where it runs. The processor stands in for an emulated GPU, whose memory is the host's.
    """

    def __init__(self, encoder: VisualEncoder, spec: EncoderSpec, device: torch.device) -> None:
        self._encoder = encoder.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._spec, self._device = spec, device
        self._half = device.type == "cuda"

    @property
    def info(self) -> EngineInfo:
        """What runs and why."""
        precision = "fp16" if self._half else "fp32"
        return EngineInfo("torch", precision, f"torch {torch.__version__}", "it was asked for")

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Embed frames u8 [n, H, W, 3] BGR as f32 [n, h, w, K], in host memory."""
        frames = torch.from_numpy(inputs[self._spec.input_name]).to(self._device)
        return {self._spec.output_name: self._embed(frames).cpu().numpy()}

    def run_on_device(self, inputs: Mapping[str, Input]) -> dict[str, DeviceTensor]:
        """As :meth:`run`, from host memory or the GPU's, and left there: whole, and memory of its own."""
        given = inputs[self._spec.input_name]
        frames = torch.from_numpy(given) if isinstance(given, np.ndarray) else torch.as_tensor(given)
        embedding = self._embed(frames.to(self._device))
        if self._half:
            torch.cuda.synchronize(self._device)
        tensor = DeviceTensor(
            pointer=embedding.data_ptr(),
            shape=tuple(embedding.shape),
            dtype=np.dtype(np.float32),
            device="cuda",
            device_id=self._device.index or 0,
            owner=embedding,
        )
        return {self._spec.output_name: tensor}

    @torch.inference_mode()
    def _embed(self, frames: torch.Tensor) -> torch.Tensor:
        pixels = normalise(frames.flip(-1).permute(0, 3, 1, 2))
        with torch.autocast(self._device.type, torch.float16, enabled=self._half):
            feature = getattr(self._encoder(pixels), self._spec.feature)
        return torch.nn.functional.normalize(feature.float(), dim=1).permute(0, 2, 3, 1).contiguous()


def torch_model(bundle: str) -> Model:
    """The runtime on device ``"cuda"`` around a bundle's encoder in PyTorch, on the first GPU, or the processor.

    Raises:
        OptionError: the bundle has further networks, or there is no libvosrt_cuda.
    """
    manifest = load_bundle(bundle).manifest
    if manifest.masks is not None:
        raise OptionError(f"{bundle} refines masks; the engine 'torch' runs encoders alone")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    engine = TorchEngine(load_trainable(bundle).encoder, manifest.encoder, device)
    return Model(manifest, {"encoder": engine}, source=bundle, device="cuda")
