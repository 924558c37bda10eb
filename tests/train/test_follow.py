"""Clusters that the runtime carries from frame to frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vosrt.types import U8Array
from vosrt_train.config import TrainConfig
from vosrt_train.data.cache import Cache
from vosrt_train.masks.clustering.follow import follow_clusters, runs
from vosrt_train.masks.clustering.make import Job, make_pseudo_masks
from vosrt_train.masks.clustering.store import PseudoMasks
from vosrt_train.model import build_encoder
from vosrt_train.validate import runtime_model

ConfigOf = Callable[..., TrainConfig]


def drifting_square(frames: int = 6) -> tuple[U8Array, U8Array]:
    """RGB frames and clusters: a red square, cluster 1, moves over blue, 4 pixels a frame."""
    clusters = np.zeros((frames, 64, 96), np.uint8)
    for t in range(frames):
        clusters[t, 20:44, 8 + 4 * t : 32 + 4 * t] = 1
    colours = np.array([[20, 40, 200], [220, 30, 30]], np.uint8)
    noise = np.random.default_rng(0).integers(0, 12, (64, 96, 3), dtype=np.uint8)
    return colours[clusters] + noise, clusters


def test_runs() -> None:
    assert runs([0, 10, 20, 30, 150, 160], 20) == [[0, 10, 20], [30], [150, 160]]
    assert runs([], 5) == []


def test_clusters_follow_what_moves(tiny_config: ConfigOf) -> None:
    """Values in cells give whole maps of the first and the last frame at the frames' size."""
    frames, clusters = drifting_square()
    config = tiny_config()
    model = runtime_model(build_encoder(config.encoder, seed=0), config.validation_feature)
    found = follow_clusters(model, frames, clusters[1], (1, 5), 128)
    assert sorted(found) == [1, 5]
    assert np.array_equal(found[1], clusters[1])
    assert np.mean(found[5] == clusters[5]) > 0.97
    assert np.mean(found[5] == clusters[1]) < 0.9
    alone = follow_clusters(model, frames, clusters[2, ::8, ::8], (2,), 128)
    assert alone[2].shape == (64, 96)


def test_pseudo_masks_that_are_followed(tiny_config: ConfigOf, tiny_cache: Cache, tmp_path: Path) -> None:
    """Clusters of the first frame of a clip stay; later ones are propagated from it."""
    everything = ("foreground.contact=1000", "foreground.compactness=0", "foreground.persistence=0")
    settings = (*everything, "foreground.max_area=1", "foreground.flicker=1", "pseudo.clusters=3", "clips.gap=1")
    wanted = {"video3": frozenset({0, 2, 9})}
    maps = []
    for follow in (0, 96):
        config = tiny_config(*settings, f"pseudo.follow={follow}")
        masks = PseudoMasks(tmp_path / str(follow))
        make_pseudo_masks(Job(config, tiny_cache, wanted), build_encoder(config.encoder, seed=0), masks)
        assert masks.entries["video3"].usable
        maps.append(masks.maps("video3"))
    assert config.clips.frames == 3
    assert np.array_equal(maps[0][0], maps[1][0])
    assert np.array_equal(maps[0][9], maps[1][9])  # a run of its own
    assert not np.array_equal(maps[0][2], maps[1][2])
    assert set(np.unique(maps[1][2])) <= set(np.unique(maps[0][0]))
