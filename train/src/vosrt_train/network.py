"""The network in training: frames in bytes to the embedding that the losses compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vosrt.engines.openvino import processor_has_bf16
from vosrt_train.config import Arithmetic, BatchNormMode, ComputeConfig
from vosrt_train.model import Encoder, Features
from vosrt_train.pixels import normalise


class TrainedNetwork(nn.Module):
    """The encoder with normalisation before and after it.

    The embedding is the key; without layer4, which the key needs, it is res3.

    Args:
        encoder: shares its weights with this network.
        config: precision and memory format.
    """

    def __init__(self, encoder: Encoder, config: ComputeConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self._precision = config.precision
        self._format = memory_format(config)

    def forward(self, rgb: Tensor, *, with_features: bool = False) -> Tensor | tuple[Tensor, Features]:
        """Embed frames.

        Args:
            rgb: u8 [n, 3, H, W].
            with_features: return all feature maps, too.

        Returns:
            f32 [n, K, h, w] of unit length per cell; with features, also the maps in the precision of the encoder.
        """
        pixels = normalise(rgb).contiguous(memory_format=self._format)
        with torch.autocast(rgb.device.type, torch.bfloat16, enabled=uses_bf16(self._precision, rgb.device)):
            features = self.encoder(pixels)
        embedding = features.res3 if features.key is None else features.key
        unit = nn.functional.normalize(embedding.float(), dim=1)
        return (unit, features) if with_features else unit


def uses_bf16(precision: Arithmetic, device: torch.device) -> bool:
    """Whether convolutions are in bf16. ``"auto"`` takes it where the device has it natively: emulated, it is slow."""
    if precision != "auto":
        return precision == "bf16"
    return processor_has_bf16() if device.type == "cpu" else torch.cuda.is_bf16_supported(including_emulation=False)


def memory_format(config: ComputeConfig) -> torch.memory_format:
    """Return the memory format of feature maps and weights."""
    return torch.channels_last if config.channels_last else torch.contiguous_format


@contextmanager
def batch_norm_mode(network: nn.Module, mode: BatchNormMode) -> Iterator[None]:
    """Let the batch-norms of a network in training use their running statistics within the context (``"eval"``)."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [norm.training for norm in norms]
    for norm in norms:
        norm.train(norm.training and mode == "train")
    try:
        yield
    finally:
        for norm, training in zip(norms, before, strict=True):
            norm.train(training)
