"""The encoder: sizes, strides, names, initialisation, and agreement with the released program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.fakes.programs import printed_by
from vosrt.bundle import EncoderSpec
from vosrt.errors import OptionError
from vosrt_train.config import EncoderConfig
from vosrt_train.model import Encoder, build_encoder

SMALL = EncoderConfig(width=4, key_channels=6)
SMALL_WITHOUT_LAYER4 = EncoderConfig(width=4, layer4=False)


PINNED = [0.24704775, 0.063662201, 0.012910759, 0.14292563, -0.11473286]


def weights(encoder: Encoder) -> dict[str, torch.Tensor]:
    return dict(encoder.state_dict())


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [(480, 854, (60, 107)), (1, 1, (1, 1)), (8, 9, (1, 2)), (64, 65, (8, 9)), (97, 170, (13, 22))],
)
def test_sizes_follow_the_convolution_arithmetic(height: int, width: int, grid: tuple[int, int]) -> None:
    """Nothing is padded to a multiple of 8, and the bundle's formula gives the same grid."""
    with torch.no_grad():
        features = build_encoder(SMALL, seed=0).eval()(torch.zeros(2, 3, height, width))
    assert features.res3.shape == (2, 16, *grid)
    assert features.res4.shape == (2, 32, *grid)
    assert features.key.shape == (2, 6, *grid)
    assert EncoderSpec(channels=6, feature="key").grid(height, width) == grid


def test_layer3_and_layer4_keep_their_resolution() -> None:
    """Every convolution has stride 1, the 1x1 shortcuts included."""
    backbone = build_encoder(SMALL, seed=0).backbone
    for layer in (backbone.layer3, backbone.layer4):
        assert layer is not None
        convolutions = [module for module in layer.modules() if isinstance(module, nn.Conv2d)]
        assert len(convolutions) == 5
        assert {conv.kernel_size for conv in convolutions} == {(3, 3), (1, 1)}
        assert all(conv.stride == (1, 1) for conv in convolutions)


def test_names_are_those_of_torchvision() -> None:
    """Released weights load without renaming beyond their prefix."""
    expected = {"backbone.conv1.weight", "emb_q.conv1.weight", "emb_q.conv2.weight"}
    expected |= {"emb_q.conv1.bias", "emb_q.conv2.bias"}
    norms = ["backbone.bn1", "emb_q.bn1"]
    for layer in range(1, 5):
        for block in range(2):
            prefix = f"backbone.layer{layer}.{block}"
            expected |= {f"{prefix}.conv1.weight", f"{prefix}.conv2.weight"}
            norms += [f"{prefix}.bn1", f"{prefix}.bn2"]
        if layer > 1:
            expected.add(f"backbone.layer{layer}.0.downsample.0.weight")
            norms.append(f"backbone.layer{layer}.0.downsample.1")
    for norm in norms:
        expected |= {f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")}
        expected.add(f"{norm}.num_batches_tracked")
    assert set(weights(build_encoder(SMALL, seed=0))) == expected


def test_full_size_has_the_parameters_of_resnet18() -> None:
    """It has 11 689 512 less the classifier, plus the key head."""
    count = sum(p.numel() for p in Encoder(EncoderConfig()).parameters())
    head = 512 * 512 + 512 + 2 * 512 + 512 * 128 + 128
    assert count == 11_689_512 - (512 * 1000 + 1000) + head


def test_without_layer4_there_is_res3_only() -> None:
    encoder = build_encoder(SMALL_WITHOUT_LAYER4, seed=0).eval()
    features = encoder(torch.zeros(1, 3, 16, 16))
    assert features.res3.shape == (1, 16, 2, 2)
    assert features.res4 is None
    assert features.key is None
    assert encoder.config.channels == {"res3": 16}
    assert not any("layer4" in name or "emb_q" in name for name in weights(encoder))


def test_without_layer4_is_a_part_of_the_whole() -> None:
    """Dropping layer4 changes no other weight."""
    whole, part = weights(build_encoder(SMALL, seed=3)), weights(build_encoder(SMALL_WITHOUT_LAYER4, seed=3))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in part.items())


def test_the_seed_alone_determines_the_weights() -> None:
    """Weights depend on the seed alone, and the global generator is not drawn from."""
    torch.manual_seed(1)
    first = weights(build_encoder(SMALL, seed=0))
    torch.manual_seed(2)
    np.random.seed(2)
    state = torch.get_rng_state()
    second = weights(build_encoder(SMALL, seed=0))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = weights(build_encoder(SMALL, seed=1))
    changed = {name for name in first if not torch.equal(first[name], other[name])}
    assert changed == {name for name in first if "conv" in name or "downsample.0" in name or name.startswith("emb_q.c")}


def test_another_process_gives_the_same_weights() -> None:
    """They are pinned, as the default bundle is made from this seed."""
    script = (
        "from vosrt_train.config import EncoderConfig; from vosrt_train.model import build_encoder\n"
        "w = build_encoder(EncoderConfig(width=4, key_channels=6), seed=0).state_dict()\n"
        "print(*w['backbone.conv1.weight'].flatten()[:3].tolist(), *w['emb_q.conv2.bias'][:2].tolist())"
    )
    here = weights(build_encoder(SMALL, seed=0))
    there = [float(number) for number in printed_by(script).split()]
    assert there[:3] == here["backbone.conv1.weight"].flatten()[:3].tolist()
    assert there[3:] == here["emb_q.conv2.bias"][:2].tolist()
    np.testing.assert_allclose(there, PINNED, rtol=1e-6)


def test_weights_have_the_intended_scale() -> None:
    """He initialisation by fan-out keeps the variance through a ReLU."""
    weight = weights(build_encoder(EncoderConfig(layer4=False), seed=0))["backbone.layer3.0.conv1.weight"]
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    assert abs(weight.mean().item()) < 1e-3


@pytest.mark.parametrize("options", [{"width": 0}, {"width": -4}, {"width": 100_000}, {"key_channels": 0}])
def test_impossible_configurations_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(OptionError, match="expected 1 to"):
        EncoderConfig(**options)  # type: ignore[arg-type]


def test_agrees_with_the_released_program(shared_data: Path) -> None:
    """With the released program's random weights (seed 0), res4 of a real frame is what that program computed."""
    golden = np.load(shared_data / "golden" / "label_propagation_blackswan_s96.npz")
    backbone = Encoder(EncoderConfig()).backbone
    _draw_like_torchvision(backbone, torch.Generator().manual_seed(0))
    with torch.no_grad():
        res4 = backbone.eval()(torch.from_numpy(golden["net_input"][:2]))[2]
    assert res4 is not None
    np.testing.assert_allclose(nn.functional.normalize(res4, dim=1).numpy(), golden["res4"][:2], atol=1e-6)


def _draw_like_torchvision(backbone: nn.Module, generator: torch.Generator) -> None:
    """Construction draws every weight once (the classifier's too), initialisation draws the convolutions again."""
    convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    for weight in [*(conv.weight for conv in convolutions), torch.empty(1000, 512), torch.empty(1000)]:
        torch.empty_like(weight).uniform_(generator=generator)
    for conv in convolutions:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu", generator=generator)
