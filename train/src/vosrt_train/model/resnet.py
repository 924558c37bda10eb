"""ResNet-18 whose last two layers keep their resolution: every map after layer2 is at stride 8.

Module names are torchvision's, so that weights in that naming load as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, of the kind ``conv``, with a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int, conv: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if inputs != outputs or stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        """f32 [n, inputs, h, w] -> [n, outputs, ceil(h / stride), ceil(w / stride)]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet18(nn.Module):
    """The backbone: strides 2 (conv1), 2 (max-pool), 1, 2, 1, 1; no pooling or classifier at the end.

    Args:
        width: channels of layer1.
        layer4: whether to have layer4.
        conv: kind of the convolutions that look at neighbours.
    """

    def __init__(self, width: int, *, layer4: bool, conv: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            return nn.Sequential(BasicBlock(inputs, outputs, stride, conv), BasicBlock(outputs, outputs, 1, conv))

        self.conv1 = conv(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = layer(width, width, 1)
        self.layer2 = layer(width, 2 * width, 2)
        self.layer3 = layer(2 * width, 4 * width, 1)
        self.layer4 = layer(4 * width, 8 * width, 1) if layer4 else None

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compute res2, res3 and res4.

        Args:
            rgb: f32 [n, 3, H, W], normalised with the mean and deviation of ImageNet.

        Returns:
            f32 [n, width, ceil(H / 4), ceil(W / 4)], f32 [n, 4 width, h, w] and f32 [n, 8 width, h, w] (None without
            layer4), h = ceil(H / 8).
        """
        x = self.maxpool(torch.relu(self.bn1(self.conv1(rgb))))
        res2 = self.layer1(x)
        res3 = self.layer3(self.layer2(res2))
        return res2, res3, None if self.layer4 is None else self.layer4(res3)
