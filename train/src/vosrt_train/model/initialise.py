"""Initialisation of weights from a seed."""

from __future__ import annotations

import math
import zlib
from typing import TypeVar

import numpy as np
import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def initialise(network: M, seed: int) -> M:
    """Initialise the weights of a network in place, and return it.

    The distributions are those of torchvision's ResNet and of PyTorch's convolution; linear layers and free parameters
    of a transformer are normal with deviation 0.02 (Dosovitskiy et al. 2021). Each tensor has its own generator, seeded
    by its name, so that an encoder without layer4 has the same weights as the whole one.

    Args:
        network: of convolutions, linear layers, norms, and free parameters.
        seed: any non-negative integer.
    """
    with torch.no_grad():
        for name, module in network.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                _initialise_convolution(module, _generator(seed, name))
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            else:
                for own, parameter in module.named_parameters(recurse=False):
                    normal = _generator(seed, f"{name}.{own}").standard_normal(tuple(parameter.shape))
                    is_bias = isinstance(module, nn.Linear) and own == "bias"
                    parameter.copy_(torch.from_numpy(normal * (0 if is_bias else 0.02)))
    return network


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _initialise_convolution(conv: nn.Conv2d, random: np.random.Generator) -> None:
    """Draw normal weights after He et al. 2015 by fan-out; with a bias, uniform ones within 1 / sqrt(fan-in)."""
    outputs, inputs, height, width = conv.weight.shape
    shape = tuple(conv.weight.shape)
    if conv.bias is None:
        weight = random.standard_normal(shape) * math.sqrt(2 / (outputs * height * width))
    else:
        bound = 1 / math.sqrt(inputs * height * width)
        weight = random.uniform(-bound, bound, shape)
        conv.bias.copy_(torch.from_numpy(random.uniform(-bound, bound, outputs)))
    conv.weight.copy_(torch.from_numpy(weight))
