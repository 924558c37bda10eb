"""Adam as the paper sets it up, and the learning rate over time."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import Adam

from vosrt_train.config import OptimiserConfig, ScheduleConfig
from vosrt_train.masks.networks import MaskEmbedding


def build_optimiser(network: nn.Module, config: OptimiserConfig) -> Adam:
    """Build Adam with four groups: weights and biases of the encoder, weights and biases of the mask networks.

    Biases have no decay and a learning rate of their own.
    """
    of_masks = {id(p) for module in network.modules() if isinstance(module, MaskEmbedding) for p in module.parameters()}
    groups = []
    for masks, rate, decay in ((False, 1.0, config.weight_decay), (True, config.mask_rate, config.mask_weight_decay)):
        named = [(name, p) for name, p in network.named_parameters() if (id(p) in of_masks) == masks]
        if named:
            weights = [p for name, p in named if not _is_bias(name)]
            biases = [p for name, p in named if _is_bias(name)]
            groups.append({"params": weights, "rate": rate, "weight_decay": decay})
            groups.append({"params": biases, "rate": rate * config.bias_rate, "weight_decay": 0.0})
    return Adam(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def set_learning_rate(optimiser: Adam, learning_rate: float) -> None:
    """Set the learning rate of every group to its multiple of ``learning_rate``."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate * group["rate"]


def learning_rate_at(step: int, total_steps: int, config: OptimiserConfig, schedule: ScheduleConfig) -> float:
    """Return the learning rate of one step.

    Args:
        step: from 0 to ``total_steps - 1``.
        config: peak of the curve.
    """
    height = config.learning_rate
    if step < schedule.warmup:
        return height * (step + 1) / (schedule.warmup + 1)
    if schedule.decay == "halving":
        return height * 0.5 ** (step * (schedule.halvings + 1) // total_steps)
    if schedule.decay == "hold":
        share = min(1.0, (total_steps - step) / (schedule.cooldown + 1))
        return height * (schedule.final + (1 - schedule.final) * share)
    progress = (step - schedule.warmup) / max(1, total_steps - schedule.warmup)
    share = schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * progress)) / 2
    return height * share


def _is_bias(name: str) -> bool:
    return name.endswith("bias")
