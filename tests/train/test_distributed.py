"""Two processes with half the batch each compute what one process computes with the joint batch."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from vosrt.errors import OptionError
from vosrt_train.branches import compute_losses
from vosrt_train.config import TrainConfig
from vosrt_train.config_file import to_toml
from vosrt_train.data.cache import Cache
from vosrt_train.data.clips import make_loader
from vosrt_train.distributed import World, join_world
from vosrt_train.model import build_encoder
from vosrt_train.network import TrainedNetwork

ConfigOf = Callable[..., TrainConfig]

# One of two processes, started with the environment that torchrun gives: argv is its part of the batch, the
# configuration, and where to write losses and gradients.
WORKER = """
import sys, torch
from vosrt_train.branches import compute_losses
from vosrt_train.config_file import load_config
from vosrt_train.distributed import join_world
from vosrt_train.model import build_encoder
from vosrt_train.network import TrainedNetwork
from vosrt_train.data.clips import ClipBatch
from vosrt_train.data.views import View

part, config, output = sys.argv[1:]
torch.set_num_threads(1)
frames, flip, scale, offset, anchor_shift, point_shift = torch.load(part)
batch = ClipBatch(frames, View(flip, scale, offset), anchor_shift, point_shift, (), 0, 0)
config = load_config(config)
with join_world(config.compute) as world:
    network = TrainedNetwork(build_encoder(config.encoder, seed=0), config.compute)
    distributed = world.distribute(network, sync_batch_norm=False).eval()
    losses = compute_losses(distributed, batch, config, world)
    losses.total.backward()
    terms = losses.correspondence.terms
    mean = world.mean(torch.stack([losses.total, terms["space_time"], terms["cross_view"]]).detach())
    world.wait()
    torch.save((world.rank, world.size, mean, [p.grad for p in network.parameters()]), output)
"""


def test_two_processes_equal_one(tiny_cache: Cache, tiny_config: ConfigOf, tmp_path: Path) -> None:
    """Anchors and points of the other process are negatives, and gradients flow back to them (gloo).

    Batch-norms use their running statistics: those of half a batch are not those of the whole.
    """
    config = tiny_config("clips.batch=4")
    joint = next(iter(make_loader(config.clips, tiny_cache)))
    network = TrainedNetwork(build_encoder(config.encoder, seed=0), config.compute).eval()
    expected = compute_losses(network, joint, config, World(torch.device("cpu")))
    expected.total.backward()  # type: ignore[no-untyped-call]

    (tmp_path / "config.toml").write_text(to_toml(config))
    processes = []
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for rank in (0, 1):
        half = next(iter(make_loader(config.clips, tiny_cache, rank=rank, world=2)))
        view = half.view
        torch.save(
            (half.frames, view.flip, view.scale, view.offset, half.anchor_shift, half.point_shift),
            tmp_path / f"part{rank}.pt",
        )
        files = [str(tmp_path / name) for name in (f"part{rank}.pt", "config.toml", f"result{rank}.pt")]
        environment = {
            "PYTHONPATH": ":".join(sys.path),
            "OMP_NUM_THREADS": "1",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        processes.append(
            subprocess.Popen([sys.executable, "-c", WORKER, *files], stderr=subprocess.PIPE, text=True, env=environment)
        )
    for process in processes:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr

    for rank in (0, 1):
        found_rank, size, losses, gradients = torch.load(tmp_path / f"result{rank}.pt")
        assert (found_rank, size) == (rank, 2)
        assert expected.correspondence is not None
        parts = (expected.correspondence.terms["space_time"], expected.correspondence.terms["cross_view"])
        wanted = torch.stack([expected.total, *parts]).detach()
        torch.testing.assert_close(losses, wanted, rtol=1e-5, atol=1e-6)
        for (name, parameter), gradient in zip(network.named_parameters(), gradients, strict=True):
            assert parameter.grad is not None
            assert torch.allclose(gradient, parameter.grad, rtol=1e-4, atol=1e-6), name


def test_alone_there_is_nobody_to_ask(monkeypatch: pytest.MonkeyPatch, tiny_config: ConfigOf) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with join_world(tiny_config().compute) as world:
        assert (world.rank, world.size, world.is_first, world.device.type) == (0, 1, True, "cpu")
        values = torch.arange(3.0)
        assert world.others(values) is None
        assert torch.equal(world.mean(values), values)
        network = nn.Linear(1, 1)
        assert world.distribute(network, sync_batch_norm=False) is network
        with pytest.raises(OptionError, match="needs GPUs"):
            world.distribute(network, sync_batch_norm=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tiny_config: ConfigOf) -> None:
    config = tiny_config("compute.device=cuda")
    with pytest.raises(OptionError, match="PyTorch finds no GPU"), join_world(config.compute):
        pass
