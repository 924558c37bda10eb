"""Further encoders, for export: each module of this package is a kind that checkpoints may name.

Such a module holds a dataclass ``Config`` (a `VisualConfig`) and a class ``Network`` (a `VisualEncoder`) built from it.
The kind that training makes, ``resnet18``, is `vosrt_train.model`.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import cast

import torch

from vosrt.errors import OptionError
from vosrt_train.config import EncoderConfig
from vosrt_train.model.contract import VisualConfig, VisualEncoder
from vosrt_train.model.encoder import Encoder
from vosrt_train.model.initialise import initialise

DEFAULT_KIND = "resnet18"


def kinds() -> tuple[str, ...]:
    """Return all kinds of encoders, resnet18 first."""
    return DEFAULT_KIND, *sorted(each.name for each in pkgutil.iter_modules(__path__))


def default_config(kind: str) -> VisualConfig:
    """Return the default configuration of a kind.

    Raises:
        OptionError: the kind does not exist.
    """
    return EncoderConfig() if kind == DEFAULT_KIND else cast(VisualConfig, _module_of(kind).Config())


def kind_of(config: VisualConfig) -> str:
    """Return the kind of a configuration."""
    return DEFAULT_KIND if isinstance(config, EncoderConfig) else type(config).__module__.rpartition(".")[2]


def empty_network(config: VisualConfig) -> VisualEncoder:
    """Build an encoder without weights; draw no random numbers."""
    with torch.device("meta"):
        if isinstance(config, EncoderConfig):
            network: VisualEncoder = Encoder(config)
        else:
            network = _module_of(kind_of(config)).Network(config)
    return network.to_empty(device="cpu")


def build_network(config: VisualConfig, *, seed: int) -> VisualEncoder:
    """Build an untrained encoder whose weights depend on the configuration and the seed alone."""
    return initialise(empty_network(config), seed)


def _module_of(kind: str) -> ModuleType:
    if kind not in kinds()[1:]:  # the name comes from a checkpoint, which must not import other modules
        raise OptionError(f"no encoder of kind {str(kind)[:40]!r}; this vosrt knows {', '.join(kinds())}")
    return importlib.import_module(f"{__name__}.{kind}")
