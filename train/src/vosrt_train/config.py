"""Configurations: frozen dataclasses that travel in the metadata of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from vosrt.errors import OptionError

_MAX_CHANNELS = 1024


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The shape of the encoder (Araslanov et al. 2021, ResNet-18 at stride 8).

    Attributes:
        layer4: False leaves out layer4 and the key head: faster, and feature res3 only.
        width: channels of layer1; layer2, 3 and 4 have 2, 4 and 8 times as many.
        key_channels: channels of the key head.
    """

    layer4: bool = True
    width: int = 64
    key_channels: int = 128

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("key_channels", self.key_channels)):
            if not 1 <= value <= _MAX_CHANNELS:
                raise OptionError(f"{name} is {value}; expected 1 to {_MAX_CHANNELS} channels")

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each feature that this encoder has."""
        if not self.layer4:
            return {"res3": 4 * self.width}
        return {"res3": 4 * self.width, "res4": 8 * self.width, "key": self.key_channels}
