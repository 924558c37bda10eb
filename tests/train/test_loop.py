"""One step and a short training: which pass has gradients, what the options do, what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)
from torch import Tensor, nn

from vosrt.errors import WorkError
from vosrt_train.branches import compute_losses
from vosrt_train.checkpoint import load_checkpoint
from vosrt_train.config import TrainConfig
from vosrt_train.data.cache import Cache
from vosrt_train.data.clips import ClipBatch, make_loader
from vosrt_train.data.views import apply_to_frames, warp_to_view
from vosrt_train.distributed import World
from vosrt_train.loop import train
from vosrt_train.losses import cross_view_loss, sample_anchors, sample_points, space_time_loss
from vosrt_train.model import build_encoder
from vosrt_train.network import TrainedNetwork, batch_norm_mode
from vosrt_train.pictures import nearest_neighbour_picture, pseudo_label_picture
from vosrt_train.run import Task

WORLD = World(torch.device("cpu"))
ConfigOf = Callable[..., TrainConfig]


@pytest.fixture
def batch(tiny_cache: Cache, tiny_config: ConfigOf) -> ClipBatch:
    first: ClipBatch = next(iter(make_loader(tiny_config().clips, tiny_cache)))
    return first


class Recorder(nn.Module):
    """Passes frames to a network and notes how many came, and whether gradients were on."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.passes: list[tuple[int, bool]] = []

    def forward(self, frames: Tensor, **options: bool) -> Any:
        self.passes.append((len(frames), torch.is_grad_enabled()))
        return self.network(frames, **options)


def tiny_network(config: TrainConfig) -> TrainedNetwork:
    return TrainedNetwork(build_encoder(config.encoder, seed=0), config.compute)


def scalars(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "scalars.jsonl").read_text().splitlines()]


def test_only_the_main_branch_and_frame_0_have_gradients(batch: ClipBatch, tiny_config: ConfigOf) -> None:
    """In supplement B.1, 2 later frames of 4 clips have none; 3 frames and the seen frame 0 of each have one."""
    config = tiny_config()
    network = Recorder(tiny_network(config).train())
    losses = compute_losses(network, batch, config, WORLD)
    assert network.passes == [(4 * 2, False), (4 * 3 + 4, True)]
    losses.total.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_one_pass_is_as_good_as_two_branches(batch: ClipBatch, tiny_config: ConfigOf) -> None:
    """With batch-norms that do not look at the batch, the losses are those of two whole branches (figure 5)."""
    config = tiny_config()
    network = tiny_network(config).eval()
    losses = compute_losses(network, batch, config, WORLD)
    main = network(batch.frames.flatten(0, 1)).unflatten(0, (4, 3))
    regular = network(apply_to_frames(batch.frames, batch.view).flatten(0, 1)).unflatten(0, (4, 3))
    anchors = sample_anchors(main, batch.anchor_shift, grid=4)
    space_time = space_time_loss(main, regular, batch.view, anchors)
    cross_view = cross_view_loss(*sample_points(main, regular, batch.view, batch.point_shift, grid=2))
    assert losses.correspondence is not None
    torch.testing.assert_close(losses.correspondence.terms["space_time"], space_time)
    torch.testing.assert_close(losses.correspondence.terms["cross_view"], cross_view)
    torch.testing.assert_close(losses.total, space_time + 0.1 * cross_view)


def test_batch_norm_of_the_regularising_branch(tiny_config: ConfigOf, batch: ClipBatch) -> None:
    """With "eval" it takes the running statistics and leaves them alone; afterwards everything is in training again."""
    counts = {}
    for mode in ("train", "eval"):
        config = tiny_config(f"compute.regular_batch_norm={mode}")
        network = tiny_network(config).train()
        compute_losses(network, batch, config, WORLD)
        counts[mode] = int(network.encoder.backbone.bn1.num_batches_tracked or 0)
        assert all(module.training for module in network.modules())
    assert counts == {"train": 2, "eval": 1}
    network = tiny_network(tiny_config()).eval()
    with batch_norm_mode(network, "train"):
        assert not any(module.training for module in network.modules())


def test_embeddings_have_unit_length_in_fp32(tiny_config: ConfigOf, batch: ClipBatch) -> None:
    """They have it also where convolutions are in bf16, for key with layer4 and res3 without."""
    for changes, channels in (
        ((), 8),
        (("compute.precision=bf16",), 8),
        (("encoder.layer4=false", "compute.channels_last=false"), 32),
    ):
        embedding = tiny_network(tiny_config(*changes))(batch.frames[0])
        assert embedding.shape == (3, channels, 6, 6)
        assert embedding.dtype == torch.float32
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3, 6, 6))


def test_precision_and_layout_change_little(tiny_config: ConfigOf, batch: ClipBatch) -> None:
    """bf16 is within its accuracy, the layout of the maps within rounding."""
    exact = compute_losses(tiny_network(tiny_config()), batch, tiny_config(), WORLD)
    for change, tolerance in (("compute.precision=bf16", 0.05), ("compute.channels_last=false", 1e-4)):
        config = tiny_config(change)
        losses = compute_losses(tiny_network(config), batch, config, WORLD)
        torch.testing.assert_close(losses.total, exact.total, rtol=tolerance, atol=0)


def test_training_lowers_the_loss_and_writes_everything_down(
    tiny_cache: Cache, tiny_config: ConfigOf, tmp_path: Path
) -> None:
    """Forty steps on drifting textures leave checkpoint, scalars with speeds, and TensorBoard pictures."""
    config = tiny_config("schedule.steps=40", "log.every=10", "log.pictures=20", "optimiser.learning_rate=3e-3")
    progress = train(Task(config, tiny_cache, tmp_path, quiet=True), build_encoder(config.encoder, seed=0), WORLD)
    assert (progress.step, progress.total_steps, progress.best) == (40, 40, None)

    lines = scalars(tmp_path)
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert lines[-1]["loss/total"] < 0.9 * lines[0]["loss/total"]
    assert all(line["speed/frames_per_s"] > 0 and 0 <= line["speed/waiting_share"] < 1 for line in lines)

    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss/space_time")] == [10, 20, 30, 40]
    names = [f"{kind}/{clip}" for kind in ("nearest_neighbours", "pseudo_labels") for clip in (0, 1)]
    assert sorted(board.Tags()["images"]) == names
    assert [event.step for event in board.Images("pseudo_labels/0")] == [20, 40]

    checkpoint = load_checkpoint(tmp_path / "last.safetensors")
    assert checkpoint.training.trained
    assert "40 steps of 4 clips of 3 frames at 48 pixels, 6 videos" in checkpoint.training.summary
    assert not (tmp_path / "best.safetensors").exists()


def test_not_a_number_stops_the_training(tiny_cache: Cache, tiny_config: ConfigOf, tmp_path: Path) -> None:
    """A line says what to change, and no checkpoint has broken weights."""
    config = tiny_config("optimiser.learning_rate=10", "schedule.warmup=0", "log.checkpoint=1")
    encoder = build_encoder(config.encoder, seed=0)
    with torch.no_grad():
        encoder.backbone.conv1.weight.fill_(float("nan"))
    with pytest.raises(WorkError, match=r"is nan by step 1; lower optimiser.learning_rate"):
        train(Task(config, tiny_cache, tmp_path, quiet=True), encoder, WORLD)
    assert not (tmp_path / "last.safetensors").exists()
    assert not (tmp_path / "state.pt").exists()


def test_pseudo_label_picture_shows_places() -> None:
    """Frames lie above their tints: the last of 2 x 2 anchors is at the lower right, red and green."""
    frames = torch.zeros(2, 3, 16, 24, dtype=torch.uint8)
    labels = torch.tensor([[[0, 0, 0], [0, 0, 0]], [[3, 3, 3], [3, 3, 3]]])
    picture = pseudo_label_picture(frames, labels, 2)
    assert picture.shape == (3, 2 * 16 + 2, 2 * 24 + 2)
    assert picture.dtype == torch.uint8
    assert picture[:, 20, 4].tolist() == [0, 0, 153]
    assert picture[:, 20, 30].tolist() == [153, 153, 0]
    assert picture[:, 4, 4].tolist() == [0, 0, 0]


def test_nearest_neighbour_picture_rebuilds_a_shuffled_frame() -> None:
    """Where each cell's embedding is its own, the second frame's cells find their pixels in the first."""
    random = np.random.default_rng(0)
    first = torch.from_numpy(random.integers(0, 256, (3, 16, 24), dtype=np.uint8))
    mirrored = first.view(3, 16, 3, 8).flip(2).reshape(3, 16, 24)
    embedding = torch.eye(6).view(6, 2, 3)
    picture = nearest_neighbour_picture(torch.stack([first, mirrored]), torch.stack([embedding, embedding.flip(2)]))
    assert torch.equal(picture[:, :16, 26:50], mirrored)
    assert torch.equal(picture[:, 18:34, 26:50], mirrored)
    assert torch.equal(picture[:, 18:34, :24], first)


def test_warped_maps_fit_what_the_view_sees(batch: ClipBatch) -> None:
    """Frames seen through the view resemble frames warped into it, on which the loop relies."""
    frames = batch.frames.float()
    seen, warped = apply_to_frames(frames, batch.view), warp_to_view(frames, batch.view)
    assert (seen - warped).abs().mean() < 0.2 * (seen - frames).abs().mean()
