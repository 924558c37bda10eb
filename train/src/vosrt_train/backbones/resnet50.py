"""ResNet-50 (He et al. 2016) cut for correspondence: no layer4, layer3 at stride 1, an optional 1x1 reduction.

As in Li et al. 2023. Module names below ``backbone`` are torchvision's, so that weights in that naming fit as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vosrt_train.model.contract import Normalised, VisualEncoder
from vosrt_train.model.encoder import Features
from vosrt_train.ranges import limited

_EXPANSION = 4


@dataclass(frozen=True, kw_only=True)
class Config(Normalised):
    """The shape of the network.

    Attributes:
        width: channels of the stem; layer3 has 16 times as many.
        reduction: channels of the key, a 1x1 convolution of layer3; 0 has no key.
    """

    width: int = limited(64, 1, 256, "channels")
    reduction: int = limited(512, 0, 4096, "channels")

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each feature."""
        return {"res3": 16 * self.width} | ({"key": self.reduction} if self.reduction else {})

    @property
    def stride(self) -> int:
        """Pixels per cell: conv1, max-pool and layer2 halve the map."""
        return 8


class _Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut around them; the 3x3 has the stride."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        outputs = _EXPANSION * planes
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if inputs != outputs or stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """f32 [n, inputs, h, w] -> [n, 4 planes, ceil(h / stride), ceil(w / stride)]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return torch.relu(self.bn3(self.conv3(x)) + shortcut)


class _ResNet50(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = _layer(width, width, 3, 1)
        self.layer2 = _layer(4 * width, 2 * width, 4, 2)
        self.layer3 = _layer(8 * width, 4 * width, 6, 1)

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        res2 = self.layer1(self.maxpool(torch.relu(self.bn1(self.conv1(rgb)))))
        return res2, self.layer3(self.layer2(res2))


def _layer(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    first = _Bottleneck(inputs, planes, stride)
    return nn.Sequential(first, *(_Bottleneck(_EXPANSION * planes, planes, 1) for _ in range(blocks - 1)))


class Network(VisualEncoder):
    """The network; res3 is layer3, key its reduction."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = _ResNet50(config.width)
        self.reduction = nn.Conv2d(16 * config.width, config.reduction, 1) if config.reduction else None

    @property
    def stem(self) -> nn.Conv2d:
        """The convolution on the frame."""
        return self.backbone.conv1

    def forward(self, rgb: Tensor) -> Features:
        """Compute the features; see `VisualEncoder`."""
        res2, res3 = self.backbone(rgb)
        return Features(res2, res3, None, None if self.reduction is None else self.reduction(res3))
