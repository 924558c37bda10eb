"""Mask encoder, decoder and soft aggregation: any size of frame, objects that do not interfere, golden data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vosrt.errors import OptionError
from vosrt_train.config import EncoderConfig
from vosrt_train.masks.aggregate import aggregate
from vosrt_train.masks.config import MaskNetworkConfig
from vosrt_train.masks.networks import JoiningBlock, MaskEmbedding, ResBlock, build_mask_embedding, context_of, upsample
from vosrt_train.model import build_encoder

ENCODER = EncoderConfig(width=4, key_channels=8)
CONFIG = MaskNetworkConfig(width=4, value_channels=16)


def networks(encoder: EncoderConfig = ENCODER) -> MaskEmbedding:
    return build_mask_embedding(CONFIG, encoder, seed=3).eval()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layer4", [True, False])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (50, 61), (33, 47)])
def test_any_size_of_frame(layer4: bool, height: int, width: int) -> None:
    """Values live on the encoder's grid, logits on a quarter of the frame, for every remainder by 8."""
    config = EncoderConfig(width=4, key_channels=8, layer4=layer4)
    mask = networks(config)
    rgb = random(2, 3, height, width)
    features = build_encoder(config, seed=0).eval()(rgb)
    value = mask.mask_encoder(rgb, torch.rand(2, 3, height, width), context_of(features))
    grid = (-(-height // 8), -(-width // 8))
    assert value.shape == (2, 3, 16, *grid)
    logits = mask.decoder(value, value, features.res3, features.res2)
    assert logits.shape == (2, 3, -(-height // 4), -(-width // 4))
    assert aggregate(upsample(logits, height, width)).shape == (2, 4, height, width)


def test_objects_do_not_see_each_other() -> None:
    """A batch of objects gives what each gives alone; and frames do not mix."""
    mask = networks()
    rgb, masks = random(2, 3, 40, 48), torch.rand(2, 3, 40, 48)
    features = build_encoder(ENCODER, seed=0).eval()(rgb)
    context = context_of(features)
    value = mask.mask_encoder(rgb, masks, context)
    logits = mask.decoder(value, value.flip(2), features.res3, features.res2)
    for frame in range(2):
        one = slice(frame, frame + 1)
        for each in range(3):
            alone = mask.mask_encoder(rgb[one], masks[one, each : each + 1], context[one])
            torch.testing.assert_close(alone[0, 0], value[frame, each], rtol=1e-4, atol=1e-4)
            decoded = mask.decoder(alone, alone.flip(2), features.res3[one], features.res2[one])
            torch.testing.assert_close(decoded[0, 0], logits[frame, each], rtol=1e-4, atol=1e-4)


def test_masks_matter() -> None:
    mask = networks()
    rgb = random(1, 3, 40, 48)
    context = context_of(build_encoder(ENCODER, seed=0).eval()(rgb))
    values = mask.mask_encoder(rgb, torch.stack([torch.zeros(40, 48), torch.ones(40, 48)])[None], context)
    assert (values[0, 0] - values[0, 1]).abs().max() > 1e-3


def test_joining_is_a_block_on_the_concatenation() -> None:
    joining, plain = JoiningBlock(3, 5, 7), ResBlock(8, 7)
    assert plain.shortcut is not None
    with torch.no_grad():
        for whole, of_object, of_frame in (
            (plain.conv1, joining.object1, joining.frame1),
            (plain.shortcut, joining.object_shortcut, joining.frame_shortcut),
        ):
            whole.weight.copy_(torch.cat([of_object.weight, of_frame.weight], dim=1))
            assert whole.bias is not None
            assert of_object.bias is not None
            whole.bias.copy_(of_object.bias)
        plain.conv2.load_state_dict(joining.conv2.state_dict())
    objects, frames = random(2 * 3, 3, 6, 7), random(2, 5, 6, 7, seed=1)
    repeated = frames.repeat_interleave(3, dim=0)
    torch.testing.assert_close(joining(objects, frames), plain(torch.cat([objects, repeated], dim=1)))


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = networks().state_dict()
    torch.manual_seed(2)
    assert all(torch.equal(one[name], tensor) for name, tensor in networks().state_dict().items())
    other = build_mask_embedding(CONFIG, ENCODER, seed=4)
    assert not torch.equal(one["decoder.predict.weight"], other.decoder.predict.weight)


def test_aggregation_equals_the_released_program(shared_data: Path) -> None:
    with np.load(shared_data / "golden" / "mask_embedding_blackswan_s96.npz") as golden:
        for logit, wanted in zip(golden["decoder_logit"], golden["refined_logits"], strict=True):
            found = aggregate(torch.from_numpy(logit)).numpy()[0]
            assert np.abs(found - wanted[:, 0]).max() < 1e-4


def test_aggregation_is_a_product() -> None:
    """The formula holds cell by cell; the softmax of two objects that are sure halves the place."""
    logits = random(2, 3, 4, 5)
    found = aggregate(logits)
    for index in np.ndindex(2, 4, 5):
        p = [1 / (1 + np.exp(-float(logits[index[0], m, index[1], index[2]]))) for m in range(3)]
        p = [(1 - p[0]) * (1 - p[1]) * (1 - p[2]), *p]
        wanted = torch.tensor([np.log(each / (1 - each)) for each in p], dtype=torch.float32)
        torch.testing.assert_close(found[index[0], :, index[1], index[2]], wanted, rtol=1e-4, atol=1e-5)
    both = aggregate(torch.full((1, 2, 1, 1), 30.0)).softmax(1)[0, :, 0, 0]
    torch.testing.assert_close(both, torch.tensor([0.0, 0.5, 0.5]), atol=1e-6, rtol=0)
    nobody = aggregate(torch.full((1, 2, 1, 1), -torch.inf))
    assert nobody.isfinite().all()
    assert nobody.softmax(1)[0, 0, 0, 0] > 0.999


def test_gradients_reach_every_weight() -> None:
    """They equal finite differences in 64 bits."""
    mask = networks().double()
    rgb = random(1, 3, 24, 24).double()
    features = build_encoder(ENCODER, seed=0).eval().double()(rgb)
    masks = torch.rand(1, 2, 24, 24, dtype=torch.double)
    wanted = torch.randint(0, 3, (1, 24, 24), generator=torch.Generator().manual_seed(0))

    def loss() -> Tensor:
        value = mask.mask_encoder(rgb, masks, context_of(features).detach())
        logits = mask.decoder(value, value, features.res3.detach(), features.res2.detach())
        p = torch.sigmoid(upsample(logits, 24, 24))
        p = torch.cat([(1 - p).prod(1, keepdim=True), p], 1)
        return torch.nn.functional.cross_entropy(torch.log(p) - torch.log1p(-p), wanted)

    loss().backward()  # type: ignore[no-untyped-call]
    for name, parameter in mask.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    weights = dict(mask.named_parameters())
    for name in ("mask_encoder.mask.weight", "decoder.predict.weight", "decoder.skip2.weight"):
        parameter = weights[name]
        assert parameter.grad is not None
        place = int(parameter.grad.abs().argmax())
        step = 1e-6
        with torch.no_grad():
            parameter.view(-1)[place] += step
            more = loss()
            parameter.view(-1)[place] -= 2 * step
            less = loss()
            parameter.view(-1)[place] += step
        assert float((more - less) / (2 * step)) == pytest.approx(float(parameter.grad.view(-1)[place]), rel=1e-3)


@pytest.mark.parametrize("change", [{"width": 0}, {"value_channels": 8}])
def test_impossible_shapes_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(OptionError, match=next(iter(change))):
        replace(MaskNetworkConfig(), **change)  # type: ignore[arg-type]
