"""A narrow network out of a wide one, by least squares."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vosrt_train.config import EncoderConfig
from vosrt_train.model import Encoder, build_encoder
from vosrt_train.narrow import narrow
from vosrt_train.pixels import normalise


def frames(count: int, seed: int) -> Tensor:
    """Blurred noise: u8 [count, 3, 72, 88]."""
    coarse = torch.rand(count, 3, 36, 44, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(255 * coarse, (72, 88), mode="bilinear").byte()


def network(width: int, seed: int) -> Encoder:
    """An encoder whose batch-norms do something."""
    encoder = build_encoder(EncoderConfig(layer4=False, width=width), seed=seed)
    random = torch.Generator().manual_seed(seed)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=random)
            nn.init.uniform_(module.bias, -0.3, 0.3, generator=random)
    return encoder.eval()


def res3(encoder: Encoder, seen: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = encoder.eval()(normalise(seen)).res3
    return found


def unexplained(wide: Encoder, encoder: Encoder, seen: Tensor) -> float:
    """Share of the wide map's variance that no linear map of the narrow one gives."""
    theirs, ours = (res3(each, seen).transpose(0, 1).flatten(1).T.double() for each in (wide, encoder))
    ours = torch.cat([ours, torch.ones(len(ours), 1)], 1)
    rest = theirs - ours @ torch.linalg.lstsq(ours, theirs).solution
    return float(rest.square().sum() / (theirs - theirs.mean(0)).square().sum())


def test_the_same_width_gives_the_same_network() -> None:
    """Whatever the weights were before: on frames that the fit has not seen, too; modes stay as they were."""
    wide, encoder = network(4, 1), network(4, 2).train()
    narrow(wide, encoder, frames(24, 0))
    assert encoder.training
    assert not wide.training
    ours, theirs = (res3(each, frames(2, 1)) for each in (encoder, wide))
    assert (ours - theirs).square().mean() < 1e-4 * theirs.var()


def test_channels_that_follow_from_others_are_not_missed() -> None:
    """A network of 4 inside one of 8, whose other channels are copies, comes out whole."""
    small, wide, encoder = network(4, 3), network(8, 0), network(4, 5)
    for (name, source), target in zip(small.state_dict().items(), wide.state_dict().values(), strict=True):
        if name.endswith("num_batches_tracked"):
            continue
        twice = torch.cat([source, source])
        if source.dim() == 4 and source.shape[1] != 3:  # both copies feed the next convolution
            twice = torch.cat([twice, twice], 1) / 2
        target.copy_(twice)
    narrow(wide, encoder, frames(24, 0))
    assert unexplained(wide, encoder, frames(4, 1)) < 1e-3


def test_half_the_channels_are_nearer_than_chance() -> None:
    wide, other = network(16, 1), frames(4, 1)
    encoder = network(8, 2)
    by_chance = unexplained(wide, encoder, other)
    narrow(wide, encoder, frames(24, 0))
    assert unexplained(wide, encoder, other) < 0.7 * by_chance


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_training_goes_on_with_either_kind_of_statistics(mode: str) -> None:
    """The batch-norms' running statistics are those of the frames."""
    wide, encoder, seen = network(8, 1), network(4, 2), frames(24, 0)
    narrow(wide, encoder, seen)
    right = res3(encoder, seen)
    encoder.train(mode == "train")
    with torch.no_grad():
        assert torch.allclose(encoder(normalise(seen)).res3, right, atol=1e-3)
