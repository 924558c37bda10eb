"""The encoder: backbone and key head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vosrt_train.config import EncoderConfig
from vosrt_train.model.contract import VisualEncoder
from vosrt_train.model.initialise import initialise
from vosrt_train.model.resnet import ResNet18


@dataclass(frozen=True)
class Features:
    """Feature maps of n frames, not normalised.

    Attributes:
        res2: f32 [n, width, ceil(H / 4), ceil(W / 4)].
        res3: f32 [n, 4 width, h, w].
        res4: f32 [n, 8 width, h, w]; None without layer4.
        key: f32 [n, key_channels, h, w]; None without layer4.
    """

    res2: Tensor
    res3: Tensor
    res4: Tensor | None = None
    key: Tensor | None = None

    def take(self, frames: Tensor) -> Features:
        """Take the maps of some frames, i64 [m]. Gradient flows through."""
        maps = (self.res2, self.res3, self.res4, self.key)
        return Features(*(None if each is None else each[frames] for each in maps))  # type: ignore[arg-type]


class KeyHead(nn.Module):
    """Two 1x1 convolutions that project res4 to the key."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 1)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, outputs, 1)

    def forward(self, res4: Tensor) -> Tensor:
        """f32 [n, inputs, h, w] -> [n, outputs, h, w]."""
        key: Tensor = self.conv2(torch.relu(self.bn1(self.conv1(res4))))
        return key


class Encoder(VisualEncoder):
    """The network of Araslanov et al. 2021; see `build_encoder` for one with weights."""

    config: EncoderConfig

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNet18(config.width, layer4=config.layer4)
        self.emb_q = KeyHead(8 * config.width, config.key_channels) if config.layer4 else None

    @property
    def stem(self) -> nn.Conv2d:
        """The convolution on the frame."""
        return self.backbone.conv1

    def forward(self, rgb: Tensor) -> Features:
        """Compute the features of frames.

        Args:
            rgb: f32 [n, 3, H, W], normalised with the mean and deviation of ImageNet.
        """
        res2, res3, res4 = self.backbone(rgb)
        return Features(res2, res3, res4, None if self.emb_q is None else self.emb_q(res4))


def empty_encoder(config: EncoderConfig) -> Encoder:
    """Build an encoder without weights; draw no random numbers."""
    with torch.device("meta"):
        encoder = Encoder(config)
    return encoder.to_empty(device="cpu")


def build_encoder(config: EncoderConfig, *, seed: int) -> Encoder:
    """Build an untrained encoder whose weights depend on the configuration and the seed alone; see `initialise`.

    Args:
        seed: any non-negative integer.
    """
    return initialise(empty_encoder(config), seed)
