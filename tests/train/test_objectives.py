"""The losses of other methods and the colours of the view: read as loops, and at points where the answer is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vosrt.errors import OptionError
from vosrt_train.branches import compute_losses
from vosrt_train.config import TrainConfig
from vosrt_train.data.cache import Cache
from vosrt_train.data.clips import ClipSampler, make_loader
from vosrt_train.data.views import View, apply_to_frames
from vosrt_train.distributed import World
from vosrt_train.model import build_encoder
from vosrt_train.network import TrainedNetwork
from vosrt_train.reconstruction import drop_channel, lab_to_rgb, reconstruction_loss, rgb_to_lab
from vosrt_train.walk import palindrome_loss

ConfigOf = Callable[..., TrainConfig]
CLIPS, FRAMES, CHANNELS, HEIGHT, WIDTH = 2, 4, 5, 3, 4
WHOLE = View(torch.zeros(CLIPS, dtype=torch.bool), torch.ones(CLIPS), torch.zeros(CLIPS, 2))
PART = View(torch.tensor([True, False]), torch.tensor([0.6, 1.0]), torch.tensor([[0.3, 0.1], [0.0, 0.0]]))


def random_maps(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return F.normalize(torch.randn(*shape, CHANNELS, HEIGHT, WIDTH, generator=generator, dtype=torch.float64), dim=-3)


def naive_walk(main: Tensor, start: Tensor, view: View, tau: float) -> float:
    cells, losses = view.cells(HEIGHT, WIDTH), []
    for b in range(CLIPS):
        frames = [frame.flatten(1).T for frame in (start[b], *main[b, 1:])]
        for t in range(1, FRAMES):
            path = [*range(t + 1), *range(t - 1, -1, -1)]
            chance = torch.eye(HEIGHT * WIDTH, dtype=main.dtype)
            for place, (origin, target) in enumerate(itertools.pairwise(path)):
                to = main[b, 0].flatten(1).T if place == len(path) - 2 else frames[target]
                chance = chance @ (frames[origin] @ to.T / tau).softmax(1)
            losses += [-math.log(chance[i, cells[b, i]]) for i in range(HEIGHT * WIDTH)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("view", [WHOLE, PART])
def test_the_walk_equals_its_loops(view: View) -> None:
    main, start = random_maps(CLIPS, FRAMES), random_maps(CLIPS).roll(1, -1)
    loss = palindrome_loss(main, start, view, temperature=0.3)
    assert loss.item() == pytest.approx(naive_walk(main, start, view, 0.3))


def test_walks_between_distinct_cells_that_stay_in_place_cost_nothing() -> None:
    """Every cell has a channel of its own in all frames; features that move between frames do not matter either."""
    still = torch.eye(HEIGHT * WIDTH).view(1, 1, -1, HEIGHT, WIDTH).expand(CLIPS, FRAMES, -1, -1, -1)
    moving = torch.stack([frame.roll(t, -1) for t, frame in enumerate(still.unbind(1))], dim=1)
    for main in (still, moving):
        assert palindrome_loss(main, main[:, 0], WHOLE, temperature=0.05).item() < 1e-5
    lost = main.clone()
    lost[:, 2] = lost[:, 2, :, :1, :1]  # all cells of one frame look alike, so a walker through it forgets its place
    assert palindrome_loss(lost, main[:, 0], WHOLE, temperature=0.05).item() > 1


def test_dropped_edges_follow_the_seed() -> None:
    main = random_maps(CLIPS, FRAMES).requires_grad_()

    def loss(seed: int, dropout: float) -> Tensor:
        return palindrome_loss(main, main[:, 0], WHOLE, temperature=0.3, dropout=dropout, seed=seed)

    assert torch.equal(loss(1, 0.3), loss(1, 0.3))
    assert not torch.equal(loss(1, 0.3), loss(2, 0.3))
    (gradient,) = torch.autograd.grad(loss(1, 0.9), main)
    assert gradient.isfinite().all()


def test_lab_is_that_of_opencv_and_returns() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    expected = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    frames = torch.from_numpy(rgb).permute(2, 0, 1)
    lab = rgb_to_lab(frames)
    assert np.abs(lab.permute(1, 2, 0).numpy() - expected).max() < 0.5  # OpenCV interpolates in tables
    torch.testing.assert_close(
        rgb_to_lab(torch.full((3, 1, 1), 255))[:, 0, 0], torch.tensor([100.0, 0, 0]), atol=1e-2, rtol=0
    )
    assert (lab_to_rgb(lab).int() - frames.int()).abs().max() <= 1


def test_a_dropped_channel_is_gone_and_the_others_stay() -> None:
    """Colours of low saturation remain within sRGB without one of their channels."""
    frames = torch.randint(100, 140, (2, 1, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    before, after = rgb_to_lab(frames), rgb_to_lab(drop_channel(frames, torch.tensor([1, 2])))
    for clip, dropped in enumerate((1, 2)):
        assert after[clip, :, dropped].abs().max() < 0.8
        for kept in {0, 1, 2} - {dropped}:
            torch.testing.assert_close(after[clip, :, kept], before[clip, :, kept], atol=0.8, rtol=0)


@pytest.mark.parametrize("radius", [1, 12])
def test_the_reconstruction_equals_its_loops(radius: int) -> None:
    main = random_maps(CLIPS, FRAMES)
    generator = torch.Generator().manual_seed(1)
    shape = (CLIPS, FRAMES, 3, 8 * HEIGHT, 8 * WIDTH)
    frames = torch.randint(256, shape, generator=generator).to(torch.uint8)
    channel = torch.tensor([2, 1])
    small = F.adaptive_avg_pool2d(frames.flatten(0, 1).float(), (HEIGHT, WIDTH))
    lab = rgb_to_lab(small).view(CLIPS, FRAMES, 3, HEIGHT, WIDTH) / 6.4
    losses = []
    for b in range(CLIPS):
        for t in range(1, FRAMES):
            for y in range(HEIGHT):
                for x in range(WIDTH):
                    near = [
                        (v, u) for v in range(HEIGHT) for u in range(WIDTH) if max(abs(v - y), abs(u - x)) <= radius
                    ]
                    weight = torch.stack([(main[b, t, :, y, x] @ main[b, t - 1, :, v, u]) / 0.3 for v, u in near])
                    colours = torch.stack([lab[b, t - 1, channel[b], v, u] for v, u in near])
                    error = abs((weight.softmax(0) @ colours.double() - lab[b, t, channel[b], y, x]).item())
                    losses.append(error**2 / 2 if error < 1 else error - 0.5)
    loss = reconstruction_loss(main, frames, channel, temperature=0.3, radius=radius)
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_colours_of_the_view_change_and_its_place_does_not(tiny_cache: Cache, tiny_config: ConfigOf) -> None:
    plain = ClipSampler(tiny_config().clips, tiny_cache)
    colourful = ClipSampler(replace(tiny_config().clips, photometric=0.4), tiny_cache)
    one, other = plain.clip(0, 1), colourful.clip(0, 1)
    assert np.array_equal(one.frames, other.frames)
    assert other.parameters.view_colour is not None
    assert replace(other.parameters, view_colour=None) == one.parameters
    assert all(0.6 <= factor <= 1.4 for factor in other.parameters.view_colour)

    frames = torch.full((2, 1, 3, 4, 4), 100, dtype=torch.uint8)
    frames[:, :, 0] = 120
    view = replace(WHOLE, colour=torch.tensor([[1.5, 1.0, 1.0], [1.0, 1.0, 0.0]]))
    seen = apply_to_frames(frames, view)
    assert seen[0, 0, :, 0, 0].tolist() == [180, 150, 150]  # brighter by half
    assert seen[1, 0, :, 0, 0].tolist() == [106, 106, 106]  # grey
    assert torch.equal(apply_to_frames(frames, replace(view, colour=torch.ones(2, 3))), frames)
    grey = view[1:].colour
    assert grey is not None
    assert grey.tolist() == [[1.0, 1.0, 0.0]]


def test_frames_in_the_order_of_time_are_the_same_frames(tiny_cache: Cache, tiny_config: ConfigOf) -> None:
    shuffled = ClipSampler(tiny_config().clips, tiny_cache).clip(0, 0).parameters
    ordered = ClipSampler(replace(tiny_config().clips, order="time"), tiny_cache).clip(0, 0).parameters
    assert list(ordered.frame_ids) == sorted(shuffled.frame_ids)
    assert replace(ordered, frame_ids=shuffled.frame_ids) == shuffled


def test_a_walk_needs_frames_in_order_and_some_loss_has_a_weight(tiny_config: ConfigOf) -> None:
    with pytest.raises(OptionError, match=r'clips\.order is "random"; loss\.walk follows .* set clips\.order="time"'):
        tiny_config("loss.walk=1")
    with pytest.raises(OptionError, match="all weights of the table loss are 0"):
        tiny_config("loss.space_time=0", "loss.cross_view=0")
    assert tiny_config("loss.walk=1", 'clips.order="time"').loss.walk == 1


@pytest.mark.parametrize(
    ("weights", "names"),
    [
        (("loss.walk=1", 'clips.order="time"'), {"space_time", "cross_view", "walk"}),
        (("loss.reconstruction=1", "loss.space_time=0", "loss.cross_view=0"), {"reconstruction"}),
        (("loss.walk=2", 'clips.order="time"', "loss.space_time=0", "loss.cross_view=0"), {"walk"}),
    ],
)
def test_a_step_has_the_losses_that_have_a_weight(
    weights: tuple[str, ...], names: set[str], tiny_cache: Cache, tiny_config: ConfigOf
) -> None:
    config = tiny_config(*weights)
    network = TrainedNetwork(build_encoder(config.encoder, seed=0), config.compute).train()
    batch = next(iter(make_loader(config.clips, tiny_cache)))
    losses = compute_losses(network, batch, config, World(torch.device("cpu")))
    assert losses.correspondence is not None
    terms = losses.correspondence.terms
    assert set(terms) == names
    expected = sum(getattr(config.loss, name) * term for name, term in terms.items())
    torch.testing.assert_close(losses.total, torch.as_tensor(expected))
    losses.total.backward()  # type: ignore[no-untyped-call]
    norms = [weight.grad.norm().item() for weight in network.parameters() if weight.grad is not None]
    assert norms
    assert all(math.isfinite(norm) for norm in norms)
    assert max(norms) > 0
