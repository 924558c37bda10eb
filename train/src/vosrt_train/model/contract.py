"""Interface of a visual encoder to training and export."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from vosrt_train.pixels import DEVIATION_RGB, MEAN_RGB
from vosrt_train.ranges import Checked, limited

Colour = tuple[float, float, float]


class VisualConfig(Protocol):
    """The shape of an encoder: a frozen dataclass of numbers and flags, which travels in a checkpoint's metadata.

    Every value has a default, and values out of range raise OptionError.
    """

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each feature of the encoder, some of ``res3``, ``res4`` and ``key``."""

    @property
    def stride(self) -> int:
        """Pixels per cell of these features; a frame's last row and column of cells may reach beyond it."""


@dataclass(frozen=True, kw_only=True)
class Normalised(Checked):
    """Base of the shape of an encoder that may be of others, with their normalisation.

    Attributes:
        mean: red, green and blue, 0 to 1, that are subtracted from a frame.
        deviation: red, green and blue, 0 to 1, by which it is divided then.
    """

    mean: tuple[float, float, float] = limited((0.485, 0.456, 0.406), 0, 1)
    deviation: tuple[float, float, float] = limited((0.229, 0.224, 0.225), 0.001, 1)


class VisualEncoder(nn.Module, ABC):
    """A network from frames to feature maps."""

    config: Any  # VisualConfig

    @property
    def normalisation(self) -> tuple[Colour, Colour]:
        """Mean and deviation of red, green and blue, 0 to 1, that frames are normalised with: those of ImageNet."""
        config = self.config
        return (config.mean, config.deviation) if isinstance(config, Normalised) else (MEAN_RGB, DEVIATION_RGB)

    @property
    @abstractmethod
    def stem(self) -> nn.Conv2d:
        """The only convolution on the frame itself; its inputs are red, green, blue."""

    @abstractmethod
    def forward(self, rgb: Tensor) -> Any:
        """Compute the features of frames of any size.

        Args:
            rgb: f32 [n, 3, H, W], normalised as `normalisation` says.

        Returns:
            An object with an attribute per feature of ``config.channels``: f32 [n, channels, ceil(H / stride),
            ceil(W / stride)], not normalised.
        """
