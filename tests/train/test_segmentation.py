"""The segmentation loss: what is read, what is shown, what counts, and where gradients go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vosrt.core import reference
from vosrt_train.branches import compute_losses
from vosrt_train.config import TrainConfig
from vosrt_train.data.cache import Cache
from vosrt_train.data.clips import ClipBatch, make_loader
from vosrt_train.distributed import World
from vosrt_train.masks.joint import compute_joint_losses
from vosrt_train.masks.networks import build_mask_embedding, correct
from vosrt_train.masks.segmentation import ClipMasks, SegmentationNetwork, mean_of_usable
from vosrt_train.model import build_encoder
from vosrt_train.network import TrainedNetwork

ConfigOf = Callable[..., TrainConfig]
WORLD = World(torch.device("cpu"))
MASKS = ("segmentation.weight=1", "masks.width=8", "masks.value_channels=16")


@pytest.fixture
def batch(tiny_cache: Cache, tiny_config: ConfigOf) -> ClipBatch:
    first: ClipBatch = next(iter(make_loader(tiny_config().clips, tiny_cache)))
    return first


def networks(config: TrainConfig) -> tuple[TrainedNetwork, SegmentationNetwork]:
    encoder = build_encoder(config.encoder, seed=0)
    masks = build_mask_embedding(config.masks, config.encoder, seed=0)
    return TrainedNetwork(encoder, config.compute).train(), SegmentationNetwork(masks, config).train()


def squares(clips: int = 4) -> ClipMasks:
    """Two squares per clip that stand still."""
    labels = torch.zeros((clips, 3, 48, 48), dtype=torch.uint8)
    labels[:, :, 8:24, 8:24] = 1
    labels[:, :, 24:40, 20:44] = 2
    return ClipMasks(labels, torch.ones(clips, dtype=torch.bool))


def test_gradients_reach_both_networks(batch: ClipBatch, tiny_config: ConfigOf) -> None:
    """L_seg alone reaches the encoder through keys, skip connections and context."""
    config = tiny_config(*MASKS)
    network, follower = networks(config)
    losses = compute_joint_losses(network, follower, batch, squares(), config, WORLD)
    assert losses.segmentation is not None
    assert losses.correspondence is not None
    correspondence = losses.correspondence.terms["space_time"] + 0.1 * losses.correspondence.terms["cross_view"]
    torch.testing.assert_close(losses.total, correspondence + losses.segmentation)
    losses.segmentation.backward()  # type: ignore[no-untyped-call]
    for name, parameter in [*network.named_parameters(), *follower.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("hops", [None, 2])
@pytest.mark.parametrize("change", [(), ("segmentation.coarse=hard",), ("segmentation.rounds=2",)])
def test_it_learns_to_follow_squares(
    batch: ClipBatch, tiny_config: ConfigOf, change: tuple[str, ...], hops: int | None
) -> None:
    config = tiny_config(*MASKS, *change)
    masks = replace(squares(), hops=None if hops is None else torch.full((4,), hops))
    network, follower = networks(config)
    optimiser = torch.optim.Adam([*network.parameters(), *follower.parameters()], lr=3e-3)
    values = []
    for _ in range(15):
        losses = compute_joint_losses(network, follower, batch, masks, config, WORLD)
        assert losses.segmentation is not None
        optimiser.zero_grad()
        losses.segmentation.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        values.append(losses.segmentation.item())
    assert values[-1] < 0.6 * values[0]


def test_a_frozen_encoder_stays_as_it_is(batch: ClipBatch, tiny_config: ConfigOf) -> None:
    """It has no gradient, statistics or loss of correspondence; mask encoder and decoder learn all the same."""
    config = tiny_config(*MASKS, "segmentation.freeze=true")
    network, follower = networks(config)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    losses = compute_joint_losses(network, follower, batch, squares(), config, WORLD)
    losses.total.backward()  # type: ignore[no-untyped-call]
    assert losses.correspondence is None
    assert losses.figures.keys() == {"loss/total", "loss/segmentation"}
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(parameter.grad is not None for parameter in follower.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert compute_losses(network, batch, config, WORLD).correspondence is not None  # before there are masks


def test_a_residual_decoder_begins_with_the_coarse_mask(batch: ClipBatch, tiny_config: ConfigOf) -> None:
    """Untrained, its loss is that of what is propagated, in every round; a decoder from nothing is at chance."""
    found = {}
    for residual in ("false", "true"):
        for rounds in (1, 3):
            config = tiny_config(*MASKS, f"masks.residual={residual}", f"segmentation.rounds={rounds}")
            network, follower = networks(config)
            network.eval()
            losses = compute_joint_losses(network, follower, batch, squares(), config, WORLD)
            assert losses.segmentation is not None
            found[residual, rounds] = losses.segmentation.item()
    assert found["true", 1] == pytest.approx(found["true", 3], abs=1e-5)
    assert found["true", 1] < found["false", 1]


def test_corrections_are_the_runtimes() -> None:
    """With three objects, logits of 0 leave what is above a hundredth as it is."""
    generator = torch.Generator().manual_seed(0)
    soft = torch.softmax(3 * torch.randn((1, 4, 5, 6), generator=generator), dim=1)
    logits = 5 * torch.randn((1, 3, 5, 6), generator=generator)
    ours = correct(soft, logits).softmax(dim=1)[0].permute(1, 2, 0).numpy()
    of_runtime = [each[0].permute(1, 2, 0).numpy() for each in (soft, logits)]
    np.testing.assert_allclose(ours, reference.correct(*of_runtime), atol=1e-5)
    unchanged = correct(soft, torch.zeros_like(logits)).softmax(dim=1)
    torch.testing.assert_close(unchanged, soft, rtol=0, atol=0.03)
    assert unchanged[soft > 0.5].min() > 0.48


def note(shown: list[Tensor], _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    shown.append(inputs[1])


def test_no_gradient_flows_through_coarse_masks(batch: ClipBatch, tiny_config: ConfigOf) -> None:
    """What the mask encoder is shown needs no gradient, and is soft, or hard if asked."""
    for coarse in ("soft", "hard"):
        config = tiny_config(*MASKS, f"segmentation.coarse={coarse}")
        network, follower = networks(config)
        shown: list[Tensor] = []
        follower.masks.mask_encoder.register_forward_pre_hook(partial(note, shown))
        compute_joint_losses(network, follower, batch, squares(), config, WORLD)
        # Frame 0 as it is annotated, coarse frame 1, refined frame 1 for the memory, coarse frame 2.
        assert len(shown) == 4
        assert not any(masks.requires_grad for masks in shown)
        one_hot = [bool(((masks == 0) | (masks == 1)).all()) for masks in shown]
        assert one_hot == ([True, False, False, False] if coarse == "soft" else [True, True, False, True])


def test_with_hops_every_frame_reads_from_the_others(batch: ClipBatch, tiny_config: ConfigOf) -> None:
    """Those come with the masks that were propagated to them beforehand, which need no gradient."""
    config = tiny_config(*MASKS)
    network, follower = networks(config)
    shown: list[Tensor] = []
    follower.masks.mask_encoder.register_forward_pre_hook(partial(note, shown))
    masks = replace(squares(), hops=torch.tensor([0, 1, 2, 3]))
    losses = compute_joint_losses(network, follower, batch, masks, config, WORLD)
    # Frame 0 as it is annotated, frames 1 and 2 as they are remembered, then as they are to be segmented.
    assert len(shown) == 5
    assert not any(each.requires_grad for each in shown)
    assert not torch.equal(shown[1], shown[3])
    assert losses.segmentation is not None
    losses.segmentation.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in [*network.parameters(), *follower.parameters()])


def test_what_cannot_be_followed_does_not_count(batch: ClipBatch, tiny_config: ConfigOf) -> None:
    """An object that is not on frame 0 changes nothing but the pixels that count; a clip without any is left out."""
    config = tiny_config(*MASKS)
    network, follower = networks(config)
    network.eval()
    follower.eval()
    both = squares()
    late = both.labels.clone()
    late[:, 0][late[:, 0] == 2] = 0
    embedding, features = network(batch.frames.flatten(0, 1), with_features=True)
    embedding = embedding.view(4, 3, *embedding.shape[1:])
    as_labelled = follower(batch.frames, embedding, features, late)
    late[:, 1:][late[:, 1:] == 2] = 1  # what the label of such a pixel is does matter where it counts
    as_other = follower(batch.frames, embedding, features, late)
    assert not torch.allclose(as_labelled, as_other)
    nowhere = ClipMasks(torch.zeros_like(both.labels), torch.zeros(4, dtype=torch.bool))
    losses = compute_joint_losses(network, follower, batch, nowhere, config, WORLD)
    assert losses.segmentation is not None
    assert losses.segmentation.item() == 0
    losses.total.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in follower.parameters())


def test_mean_of_usable() -> None:
    losses = torch.tensor([1.0, float("nan"), 3.0])
    assert mean_of_usable(losses, torch.tensor([True, False, True])) == 2
    assert mean_of_usable(losses, torch.zeros(3, dtype=torch.bool)) == 0


def test_bf16_changes_little(batch: ClipBatch, tiny_config: ConfigOf) -> None:
    values = []
    for precision in ("fp32", "bf16"):
        config = tiny_config(*MASKS, f"compute.precision={precision}")
        network, follower = networks(config)
        losses = compute_joint_losses(network, follower, batch, squares(), config, WORLD)
        assert losses.segmentation is not None
        values.append(losses.segmentation.item())
    assert values[1] == pytest.approx(values[0], rel=0.1)
