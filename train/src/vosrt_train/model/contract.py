"""What every visual encoder is to the rest of the system, and all it has to be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

from torch import Tensor, nn


class VisualConfig(Protocol):
    """The shape of an encoder: a frozen dataclass of numbers and flags, which travels in a checkpoint's metadata.

    Every value has a default, and impossible ones raise OptionError.
    """

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each feature that the encoder gives: of some among ``res3``, ``res4`` and ``key``."""

    @property
    def stride(self) -> int:
        """Pixels per cell of these features; a frame's last row and column of cells may reach beyond it."""


class VisualEncoder(nn.Module, ABC):
    """A network from frames to feature maps.

    Attributes:
        config: its shape.
    """

    config: Any  # VisualConfig

    @property
    @abstractmethod
    def stem(self) -> nn.Conv2d:
        """The convolution that sees the frame, and nothing else does: its inputs are red, green, blue."""

    @abstractmethod
    def forward(self, rgb: Tensor) -> Any:
        """Compute the features of frames of any size.

        Args:
            rgb: f32 [n, 3, H, W], normalised with the mean and deviation of ImageNet.

        Returns:
            An object with an attribute per feature of ``config.channels``: f32 [n, channels, ceil(H / stride),
            ceil(W / stride)], not normalised.
        """
