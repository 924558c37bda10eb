"""Clustering against loops, what counts as foreground, and clusterings that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vosrt.types import U8Array
from vosrt_train.masks.clustering.clusters import find_clusters, k_means, seed_centres, sinkhorn, transport_clusters
from vosrt_train.masks.clustering.foreground import select_foreground, smooth_clusters
from vosrt_train.masks.clustering.make import clustered_frames
from vosrt_train.masks.clustering.sharpen import clusters_at_pixels
from vosrt_train.masks.config import Clustering, ForegroundConfig, PseudoMaskConfig

K = 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bunches(sizes: tuple[int, ...], channels: int = 8, spread: float = 0.1) -> tuple[Tensor, Tensor]:
    """Unit vectors around one axis per bunch, and the bunch of each."""
    names = torch.cat([torch.full((size,), number) for number, size in enumerate(sizes)])
    noise = spread * torch.randn((len(names), channels), generator=generator(1))
    return torch.nn.functional.normalize(torch.eye(channels)[names] + noise, dim=1), names


@pytest.mark.parametrize("batch", [16, 1000])
def test_k_means_equals_a_loop(batch: int) -> None:
    """The same seeds are refined point by point, with mini-batches and with all points at once."""
    points, _ = bunches((40, 25, 10))
    config = PseudoMaskConfig(clusters=K, batch=batch, iterations=10)
    found = k_means(points, config, generator(5))

    random = generator(5)
    centres = [row.clone() for row in seed_centres(points, K, random)]
    seen = [0] * K
    for _ in range(10):
        drawn = points if batch >= len(points) else points[torch.randint(len(points), (batch,), generator=random)]
        members: list[list[Tensor]] = [[] for _ in range(K)]
        for point in drawn:
            members[max(range(K), key=lambda c: float(point @ centres[c]))].append(point)
        for c in range(K):
            if members[c]:
                seen[c] += len(members[c])
                mean = sum(members[c], torch.zeros(8)) / len(members[c])
                moved = centres[c] + len(members[c]) / seen[c] * (mean - centres[c])
                centres[c] = moved / moved.norm()
    torch.testing.assert_close(found.centres, torch.stack(centres), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["kmeans", "sinkhorn"])
def test_bunches_are_found_whatever_the_seed(method: Clustering) -> None:
    points, names = bunches((60, 50, 40))
    config = PseudoMaskConfig(clusters=K, method=method, balance=0.5)
    for seed in range(5):
        assigned = find_clusters(points, config, generator(seed)).assign(points)
        assert len({(int(a), int(b)) for a, b in zip(names, assigned, strict=True)}) == K


@pytest.mark.parametrize("method", ["kmeans", "sinkhorn"])
def test_the_seed_determines_the_clusters(method: Clustering) -> None:
    points = torch.nn.functional.normalize(torch.randn((300, 6), generator=generator(2)), dim=1)
    config = PseudoMaskConfig(clusters=5, method=method, batch=64, iterations=20)
    torch.manual_seed(1)
    one = find_clusters(points, config, generator(3))
    torch.manual_seed(2)
    again = find_clusters(points, config, generator(3))
    assert torch.equal(one.centres, again.centres)
    assert torch.equal(one.bias, again.bias)
    assert not torch.equal(one.centres, find_clusters(points, config, generator(4)).centres)


def test_seeds_lie_apart() -> None:
    """k-means++ never takes a place twice while there are others, and prefers those far away."""
    points, names = bunches((500, 5, 5), spread=0.001)
    chosen = [names[int((points @ seed).argmax())] for seed in seed_centres(points, K, generator())]
    assert sorted(int(name) for name in chosen) == [0, 1, 2]


def test_marginals_of_optimal_transport() -> None:
    """Rows sum to exactly 1 / n, columns to the masses; the plan is the softmax of the biased similarities."""
    similarity = torch.randn((200, 4), generator=generator())
    mass = torch.tensor([0.4, 0.3, 0.2, 0.1])
    plan, potential = sinkhorn(similarity, mass, 0.5, rounds=100)
    torch.testing.assert_close(plan.sum(dim=1), torch.full((200,), 1 / 200))
    torch.testing.assert_close(plan.sum(dim=0), mass, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(plan, torch.softmax(similarity / 0.5 + potential, dim=1) / 200)


def test_optimal_transport_equals_plain_scaling() -> None:
    """The loop is Cuturi 2013, algorithm 1, over the kernel exp(S / ε)."""
    similarity = torch.rand((7, 3), generator=generator()).double()
    mass = torch.tensor([0.5, 0.3, 0.2]).double()
    plan, _ = sinkhorn(similarity, mass, 0.3, rounds=30)
    kernel = np.exp(similarity.numpy() / 0.3)
    u = 1 / (7 * kernel.sum(axis=1))
    for _ in range(30):
        v = mass.numpy() / (kernel.T @ u)
        u = 1 / (7 * (kernel @ v))
    np.testing.assert_allclose(plan.numpy(), u[:, None] * kernel * v, rtol=1e-6)


def test_balance_keeps_clusters_of_one_size() -> None:
    points, _ = bunches((280, 10, 10))
    shares = {}
    for balance in (0.0, 1.0):
        config = PseudoMaskConfig(clusters=K, method="sinkhorn", balance=balance)
        assigned = transport_clusters(points, config, generator()).assign(points)
        shares[balance] = torch.bincount(assigned, minlength=K) / len(points)
    assert shares[1.0].max() < 0.6 < 0.9 < shares[0.0].max()


def scene(frames: int = 6) -> U8Array:
    """Sky (0) over ground (1), a compact object (2) that moves, and a scattered one (3): u8 [frames, 16, 20]."""
    maps = np.zeros((frames, 16, 20), dtype=np.uint8)
    maps[:, 9:] = 1
    for t in range(frames):
        maps[t, 5:10, 3 + t : 8 + t] = 2
        maps[t, 2:14:3, 2:18:3] = 3
    return maps


def test_an_object_is_surrounded_persistent_and_in_one_piece() -> None:
    selection = select_foreground(scene(), 4, ForegroundConfig())
    assert (selection.objects, selection.reason) == ((2,), "")
    sky, ground, thing, scattered = selection.facts
    assert sky.contact > 1
    assert ground.contact > 1
    assert thing.contact == 0
    assert thing.persistence == 1
    assert thing.compactness > 0.9 > 0.1 > scattered.compactness


@pytest.mark.parametrize(
    ("change", "objects"),
    [
        ({"compactness": 0.0}, {2, 3}),
        ({"contact": 1000.0, "max_area": 1.0, "objects": 3}, {0, 1, 2}),
        ({"min_area": 0.2}, set()),
        ({"max_area": 0.01}, set()),
    ],
)
def test_every_limit_can_be_switched_off(change: dict[str, float], objects: set[int]) -> None:
    selection = select_foreground(scene(), 4, ForegroundConfig(**change))  # type: ignore[arg-type]
    assert set(selection.objects) == objects
    assert bool(selection.reason) == (not objects)


def test_what_is_seen_seldom_is_no_object() -> None:
    maps = scene()
    maps[1:][maps[1:] == 2] = 1
    assert "foreground is empty" in select_foreground(maps, 4, ForegroundConfig()).reason
    assert select_foreground(maps, 4, ForegroundConfig(persistence=0, flicker=1)).objects == (2,)


def test_degenerate_clusterings_are_refused() -> None:
    """These are one cluster for everything, no object, and a foreground that comes and goes."""
    alone = np.zeros((4, 16, 20), dtype=np.uint8)
    assert select_foreground(alone, 4, ForegroundConfig()).reason == "one cluster has 100% of the cells"
    halves = alone.copy()
    halves[:, 8:] = 1
    assert "the foreground is empty" in select_foreground(halves, 4, ForegroundConfig()).reason
    flickering = halves.copy()
    for t in range(4):
        side = 2 if t % 2 else 8
        flickering[t, 4 : 4 + side, 4 : 4 + side] = 2
    selection = select_foreground(flickering, 4, ForegroundConfig())
    assert "flickers: its area changes by 94%" in selection.reason
    assert selection.objects == ()
    assert select_foreground(flickering, 4, ForegroundConfig(flicker=1.0)).objects == (2,)


def test_sharpening_finds_the_edge_of_the_frame() -> None:
    """A border of cells that misses an edge by three pixels is brought there; where there is no edge, it stays."""
    frame = np.full((48, 64, 3), 60, dtype=np.uint8)
    frame[:, 35:] = 200
    cells = np.zeros((6, 8), dtype=np.uint8)
    cells[:, 4:] = 2  # halfway between the middles of cells 3 and 4
    sharp = clusters_at_pixels(cells, frame, (48, 64), stride=8, clusters=3, radius=6)
    assert sharp.shape == (48, 64)
    assert np.array_equal(sharp, np.where(np.arange(64) >= 35, 2, 0) * np.ones((48, 1)))
    for radius in (0, 6):
        flat = clusters_at_pixels(cells, np.full_like(frame, 90), (48, 64), stride=8, clusters=3, radius=radius)
        assert set((flat == 0).sum(axis=1)) <= {32}


@pytest.mark.parametrize(("width", "radius"), [(121, 0), (128, 0), (128, 1)])
@pytest.mark.parametrize("enlarged", [1, 2])
def test_cells_lie_on_the_middle_of_their_pixels(width: int, radius: int, enlarged: int) -> None:
    """Cell i has pixels 8 i to 8 i + 7 of the embedded frame, also where there are fewer of the last one."""
    seen = (48 * enlarged, width * enlarged)
    cells = np.zeros((-(-seen[0] // 8), -(-seen[1] // 8)), dtype=np.uint8)
    cells[:, 12 * enlarged :] = 1  # the border is pixel 96 of the frame
    flat = np.full((48, width, 3), 90, dtype=np.uint8)
    border = (clusters_at_pixels(cells, flat, seen, stride=8, clusters=2, radius=radius) == 0).sum(axis=1)
    assert np.abs(border - 96).max() <= 1


def test_smoothing_takes_the_majority() -> None:
    maps = np.zeros((1, 5, 5), dtype=np.uint8)
    maps[0, 2, 2] = 1  # alone
    maps[0, :, 4] = 2  # an edge stays where it is
    smooth = smooth_clusters(maps, 3, 3)
    for y, x in np.ndindex(5, 5):
        window = maps[0, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        assert smooth[0, y, x] == np.bincount(window.ravel(), minlength=3).argmax()
    assert np.array_equal(smooth_clusters(maps, 3, 1), maps)


@pytest.mark.parametrize(
    ("frames", "expected"), [(10, [0, 9]), (17, [0, 8, 16]), (1, [0]), (2, [0, 1]), (800, [0, 266, 533, 799])]
)
def test_frames_that_are_clustered(frames: int, expected: list[int]) -> None:
    assert clustered_frames(frames, every=8, most=4) == expected
