"""ResNet-18 without layer4 whose convolutions see the picture mirrored beyond its border: CRW, Jabri et al. 2020.

Module names below ``backbone`` are torchvision's, so that weights in that naming fit as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vosrt_train.model.contract import Normalised, VisualEncoder
from vosrt_train.model.encoder import Features
from vosrt_train.model.resnet import ResNet18
from vosrt_train.ranges import limited


@dataclass(frozen=True, kw_only=True)
class Config(Normalised):
    """The shape of the network.

    Attributes:
        width: channels of layer1; layer3 has 4 times as many.
    """

    width: int = limited(64, 1, 1024, "channels")

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each feature."""
        return {"res3": 4 * self.width}

    @property
    def stride(self) -> int:
        """Pixels per cell."""
        return 8


class _MirroredConv(nn.Conv2d):
    """PyTorch's ``padding_mode="reflect"`` in slices, which bundles may hold."""

    def forward(self, x: Tensor) -> Tensor:
        """f32 [n, inputs, h, w] -> [n, outputs, ceil(h / stride), ceil(w / stride)]; h and w exceed the padding."""
        reach = range(1, int(self.padding[0]) + 1)
        x = torch.cat([*(x[:, :, i : i + 1] for i in reversed(reach)), x, *(x[:, :, -i - 1 : -i] for i in reach)], 2)
        x = torch.cat([*(x[..., i : i + 1] for i in reversed(reach)), x, *(x[..., -i - 1 : -i] for i in reach)], 3)
        return nn.functional.conv2d(x, self.weight, self.bias, self.stride)


class Network(VisualEncoder):
    """The network; res3 is layer3."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNet18(config.width, layer4=False, conv=_MirroredConv)

    @property
    def stem(self) -> nn.Conv2d:
        """The convolution on the frame."""
        return self.backbone.conv1

    def forward(self, rgb: Tensor) -> Features:
        """Compute the features; see `VisualEncoder`."""
        res2, res3, _ = self.backbone(rgb)
        return Features(res2, res3)
