"""Several processes, started by ``torchrun``: ranks, and gathering over the joint batch."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn.parallel import DistributedDataParallel

from vosrt.errors import OptionError
from vosrt_train.config import ComputeConfig

# Long, because the other processes wait while the first one validates.
_PATIENCE = datetime.timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """The processes of one training.

    Attributes:
        rank: number of this process, from 0.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def others(self, x: Tensor) -> Tensor | None:
        """Gather the tensor of all other processes; gradients flow back to each.

        Args:
            x: [n, ...], of one shape in all processes.

        Returns:
            [(size - 1) n, ...] in order of rank; None with a single process.
        """
        if self.size == 1:
            return None
        gathered = all_gather(x.contiguous())  # type: ignore[no-untyped-call]
        return torch.cat([part for rank, part in enumerate(gathered) if rank != self.rank])

    def mean(self, values: Tensor) -> Tensor:
        """Average values over the processes, without gradient."""
        if self.size == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values / self.size

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            dist.barrier()

    def distribute(self, network: nn.Module, *, sync_batch_norm: bool) -> nn.Module:
        """Wrap a network so that its gradients are means over the processes.

        Raises:
            OptionError: PyTorch has no synchronised batch-norm on the CPU.
        """
        if sync_batch_norm and self.device.type == "cpu":
            raise OptionError("compute.sync_batch_norm needs GPUs; set it to false on the CPU")
        if self.size == 1:
            return network
        if sync_batch_norm:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(network, device_ids=None if self.device.type == "cpu" else [self.device])


@contextmanager
def join_world(config: ComputeConfig) -> Iterator[World]:
    """Select the device, and join the other processes if ``torchrun`` started this one.

    Raises:
        OptionError: the configuration requires a GPU, and PyTorch finds none.
    """
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise OptionError("compute.device is 'cuda', but PyTorch finds no GPU; set it to 'auto' or 'cpu'")
    on_gpu = has_gpu and config.device != "cpu"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield World(device)
        return
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    try:
        yield World(device, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
