"""Graphs to export: the networks in the form of the runtime, from bytes of a frame to unit vectors."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vosrt.bundle import Feature
from vosrt.errors import OptionError
from vosrt_train.model import Features
from vosrt_train.model.contract import VisualEncoder

N = TypeVar("N", bound=nn.Module)


class EncoderGraph(nn.Module):
    """The encoder with normalisation inside and batch-norm folded away.

    Colours stay in the order of the frame: it is the stem that has its channels swapped.

    Args:
        encoder: the network; it is copied, not changed.
    """

    def __init__(self, encoder: VisualEncoder, feature: Feature) -> None:
        super().__init__()
        check_feature(encoder, feature)
        self.feature = feature
        self.encoder = fold_batch_norm(copy.deepcopy(encoder).eval())
        stem = self.encoder.stem
        stem.weight = nn.Parameter(stem.weight.flip(1), requires_grad=False)
        mean, deviation = (torch.tensor(values[::-1]) for values in encoder.normalisation)
        scale = 1 / (255 * deviation)
        offset = mean / deviation
        self.register_buffer("scale", scale.view(1, 3, 1, 1))
        self.register_buffer("offset", offset.view(1, 3, 1, 1))

    def forward(self, frames: Tensor) -> Tensor:
        """Embed frames: u8 [n, H, W, 3] BGR -> f32 [n, h, w, K], unit length per cell."""
        return self.embed(frames)[0]

    def embed(self, frames: Tensor) -> tuple[Tensor, Features]:
        """Return the embedding of `forward`, and the maps of the encoder."""
        bgr = frames.permute(0, 3, 1, 2).float()
        features = self.encoder(bgr * self.get_buffer("scale") - self.get_buffer("offset"))
        return _unit_length(_pick(features, self.feature)).permute(0, 2, 3, 1), features


def reference_embedding(encoder: VisualEncoder, feature: Feature, frames: Tensor) -> Tensor:
    """Embed frames by the checkpoint, without the rearrangements of the graph: the reference of comparisons.

    Args:
        encoder: the network as trained, in evaluation mode.
        frames: u8 [n, H, W, 3] BGR.

    Returns:
        f32 [n, h, w, K], unit length per cell.
    """
    rgb = frames.flip(-1).float() / 255
    mean, deviation = (torch.tensor(values) for values in encoder.normalisation)
    rgb = (rgb - mean) / deviation
    with torch.no_grad():
        features = encoder(rgb.permute(0, 3, 1, 2))
    return nn.functional.normalize(_pick(features, feature), dim=1).permute(0, 2, 3, 1)


def check_feature(encoder: VisualEncoder, feature: str) -> None:
    """Refuse a feature that the encoder lacks.

    Raises:
        OptionError: it does.
    """
    have = encoder.config.channels
    if feature not in have:
        raise OptionError(f"this checkpoint has no feature {feature!r}; choose from: {', '.join(have)}")


def default_feature(encoder: VisualEncoder) -> Feature:
    """Return the default feature: res4, as in the paper, or the last one that the encoder has."""
    have = encoder.config.channels
    return next(feature for feature in ("res4", "res3", "key") if feature in have)


def fold_batch_norm(network: N) -> N:
    """Fold every batch-norm into the convolution before it, in place; in evaluation mode only."""
    for module in list(network.modules()):
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return network


def _unit_length(x: Tensor) -> Tensor:
    """Do as `nn.functional.normalize`, whose expansion of the norm would put shape arithmetic into the graph."""
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / length.clamp_min(1e-12)


def _pick(features: object, feature: Feature) -> Tensor:
    return cast(Tensor, getattr(features, feature))
