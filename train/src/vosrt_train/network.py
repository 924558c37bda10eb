"""The network that is trained: from bytes of frames to the embedding that the losses compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vosrt_train.config import BatchNormMode, ComputeConfig
from vosrt_train.model import Encoder, Features
from vosrt_train.pixels import normalise


class TrainedNetwork(nn.Module):
    """The encoder with normalisation before and after it.

    The embedding is the key; without layer4, which the key needs, it is res3.

    Args:
        encoder: shares its weights with this network.
        config: precision and layout.
    """

    def __init__(self, encoder: Encoder, config: ComputeConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self._bf16 = config.precision == "bf16"
        self._format = memory_format(config)

    def forward(self, rgb: Tensor, *, with_features: bool = False) -> Tensor | tuple[Tensor, Features]:
        """Embed frames.

        Args:
            rgb: u8 [n, 3, H, W].
            with_features: return all maps besides.

        Returns:
            f32 [n, K, h, w], unit length per cell, and the encoder's maps in its precision.
        """
        pixels = normalise(rgb).contiguous(memory_format=self._format)
        with torch.autocast(rgb.device.type, torch.bfloat16, enabled=self._bf16):
            features = self.encoder(pixels)
        embedding = features.res3 if features.key is None else features.key
        unit = nn.functional.normalize(embedding.float(), dim=1)
        return (unit, features) if with_features else unit


def memory_format(config: ComputeConfig) -> torch.memory_format:
    """How feature maps and weights lie in memory."""
    return torch.channels_last if config.channels_last else torch.contiguous_format


@contextmanager
def batch_norm_mode(network: nn.Module, mode: BatchNormMode) -> Iterator[None]:
    """Have the batch-norms of a network in training use their running statistics for a while (``"eval"``)."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [norm.training for norm in norms]
    for norm in norms:
        norm.train(norm.training and mode == "train")
    try:
        yield
    finally:
        for norm, training in zip(norms, before, strict=True):
            norm.train(training)
