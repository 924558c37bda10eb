"""The running average of the weights, which a training validates, saves and exports."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from vosrt_train.masks.networks import MaskEmbedding
from vosrt_train.model import Encoder


@dataclass(frozen=True)
class Networks:
    """The networks of one training.

    Attributes:
        masks: mask encoder and decoder; None where the training learns correspondence alone.
    """

    encoder: Encoder
    masks: MaskEmbedding | None = None

    @property
    def all(self) -> nn.Module:
        """All networks as one module."""
        return self.encoder if self.masks is None else nn.ModuleList([self.encoder, self.masks])


class WeightAverage:
    """Exponential moving average of weights and batch-norm statistics (Polyak and Juditsky 1992).

    Single steps at a high learning rate scatter around a better point; their average is near it without the rate
    having to fall first, so that a long training gives a good network at any moment.

    Args:
        networks: networks in training; the average starts at their weights.
        decay: share of the average that one step keeps, 0 to 1; with 0, `networks` are the networks in training.
    """

    def __init__(self, networks: Networks, decay: float) -> None:
        self.networks = copy.deepcopy(networks) if decay else networks
        self._decay = decay
        pairs = zip(self.networks.all.state_dict().values(), networks.all.state_dict().values(), strict=True)
        self._pairs = list(pairs) if decay else []

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after one more step to the average."""
        for kept, fresh in self._pairs:
            if kept.is_floating_point():
                kept.lerp_(fresh, 1 - self._decay)
            else:  # the batch-norms count their batches
                kept.copy_(fresh)
