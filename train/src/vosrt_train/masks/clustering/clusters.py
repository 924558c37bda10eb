"""Clustering unit vectors: mini-batch k-means, and optimal transport.

Random numbers come from a generator of the CPU, and sums are matrix products, so that a seed determines the result on
each kind of device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vosrt_train.masks.config import PseudoMaskConfig

_SINKHORN_ROUNDS = 20
_SEEDING_POINTS = 16_384


@dataclass(frozen=True)
class Clusters:
    """Centres of clusters, and their biases.

    Attributes:
        centres: f32 [k, K], unit length.
        bias: f32 [k], added to the similarities; 0 for k-means.
    """

    centres: Tensor
    bias: Tensor

    def assign(self, points: Tensor) -> Tensor:
        """Assign points f32 [n, K] of unit length to clusters i64 [n]; of equals, to the first."""
        return (points @ self.centres.T + self.bias).argmax(dim=1)


def find_clusters(points: Tensor, config: PseudoMaskConfig, generator: torch.Generator) -> Clusters:
    """Cluster points with the configured method.

    Args:
        points: f32 [n, K] of unit length, on any device; n of at least ``config.clusters``.
        generator: of the CPU.
    """
    if config.method == "sinkhorn":
        return transport_clusters(points, config, generator)
    return k_means(points, config, generator)


def k_means(points: Tensor, config: PseudoMaskConfig, generator: torch.Generator) -> Clusters:
    """Mini-batch k-means on the sphere (Sculley 2010; Dhillon and Modha 2001).

    Each mini-batch moves every centre towards the mean of the batch's points that are nearest to it, by their share in
    all points that the centre has seen so far; then centres are brought back to unit length.

    Args:
        points: f32 [n, K] of unit length.
        config: ``clusters``, ``batch`` and ``iterations``.
        generator: of the CPU.
    """
    centres = seed_centres(points, config.clusters, generator)
    seen = torch.zeros(config.clusters, device=points.device)
    for _ in range(config.iterations):
        batch = _draw(points, config.batch, generator)
        members = F.one_hot((batch @ centres.T).argmax(dim=1), config.clusters).to(points.dtype)
        count = members.sum(dim=0)
        seen += count
        step = (count / seen.clamp_min(1))[:, None]
        means = members.T @ batch / count.clamp_min(1)[:, None]
        centres = F.normalize(centres + step * (means - centres), dim=1)
    return Clusters(centres, torch.zeros(config.clusters, device=points.device))


def seed_centres(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """First centres by k-means++ (Arthur and Vassilvitskii 2007): each far from those before, by squared distance.

    Args:
        points: f32 [n, K] of unit length.
        clusters: k.
        generator: of the CPU.

    Returns:
        f32 [k, K], each one of the points.
    """
    pool = _draw(points, _SEEDING_POINTS, generator)
    chosen = [int(torch.randint(len(pool), (), generator=generator))]
    distance = torch.full((len(pool),), torch.inf, device=points.device)
    while len(chosen) < clusters:
        distance = torch.minimum(distance, (2 - 2 * pool @ pool[chosen[-1]]).clamp_min(0))
        share = distance.double().cumsum(dim=0).cpu()
        drawn = torch.rand((), generator=generator, dtype=torch.double) * share[-1]
        chosen.append(min(int(torch.searchsorted(share, drawn, right=True)), len(pool) - 1))
    return pool[chosen]


def transport_clusters(points: Tensor, config: PseudoMaskConfig, generator: torch.Generator) -> Clusters:
    """Cluster by entropic optimal transport from points to centres (Cuturi 2013; Asano et al. 2020).

    Two steps alternate: the transport plan is computed for fixed centres, and each centre moves to the mean of the mass
    that it receives. ``balance`` sets the masses of the centres between even ones and those of the nearest points.

    Args:
        points: f32 [n, K] of unit length.
        config: ``clusters``, ``epsilon``, ``balance`` and ``iterations``.
        generator: of the CPU.
    """
    centres = seed_centres(points, config.clusters, generator)
    bias = torch.zeros(config.clusters, device=points.device)
    for _ in range(max(1, config.iterations // 10)):
        similarity = points @ centres.T
        nearest = F.one_hot(similarity.argmax(dim=1), config.clusters).to(points.dtype).mean(dim=0)
        mass = config.balance / config.clusters + (1 - config.balance) * nearest
        # A centre without mass could never gain a point again, so each keeps the mass of one point.
        mass = mass.clamp_min(1 / len(points))
        plan, potential = sinkhorn(similarity, mass / mass.sum(), config.epsilon)
        centres = F.normalize(plan.T @ points, dim=1)
        bias = config.epsilon * potential
    return Clusters(centres, bias)


def sinkhorn(
    similarity: Tensor, mass: Tensor, epsilon: float, *, rounds: int = _SINKHORN_ROUNDS
) -> tuple[Tensor, Tensor]:
    """Compute the entropic transport plan from n points of mass 1 / n to k centres (Cuturi 2013).

    Alternating projections in the log domain; the masses of the points are exact, those of the centres converge.

    Args:
        similarity: f32 [n, k].
        mass: f32 [k], of the centres, sum 1.
        epsilon: weight of the plan's entropy.
        rounds: of alternation.

    Returns:
        The plan f32 [n, k], and the potential of the centres f32 [k]: the plan is the softmax of similarity / epsilon +
        potential over the centres, divided by n.
    """
    scaled = similarity / epsilon
    potential = torch.zeros_like(mass)
    rows = -scaled.logsumexp(dim=1)
    for _ in range(rounds):
        potential = mass.log() + math.log(len(scaled)) - (scaled + rows[:, None]).logsumexp(dim=0)
        rows = -(scaled + potential).logsumexp(dim=1)
    return torch.softmax(scaled + potential, dim=1) / len(scaled), potential


def _draw(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` points with replacement, or return all if they are no more."""
    if len(points) <= count:
        return points
    return points[torch.randint(len(points), (count,), generator=generator).to(points.device)]
