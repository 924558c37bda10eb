"""Configurations of the mask embedding (Li et al. 2023): its networks.

`MaskNetworkConfig` travels in the metadata of a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

from vosrt_train.ranges import check_range as _check


@dataclass(frozen=True, kw_only=True)
class MaskNetworkConfig:
    """The shape of mask encoder and decoder.

    Attributes:
        width: channels of layer1 of the mask encoder; layer2 and 3 have 2 and 4 times as many.
        value_channels: of a mask embedding; the decoder has as many, then a half, then a quarter.
    """

    width: int = 64
    value_channels: int = 512

    def __post_init__(self) -> None:
        _check("masks.width", self.width, 1, 1024, "channels")
        _check("masks.value_channels", self.value_channels, 16, 4096, "channels")
