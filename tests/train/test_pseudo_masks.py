"""Pseudo-masks from videos to the loss: on disk, as clips see them, on schedule, and after SIGKILL at any moment."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vosrt.errors import OptionError, WorkError
from vosrt_train.checkpoint import load_checkpoint
from vosrt_train.config import TrainConfig
from vosrt_train.data.cache import Cache
from vosrt_train.data.clips import ClipParameters, ClipSampler, make_loader
from vosrt_train.distributed import World
from vosrt_train.loop import train
from vosrt_train.masks.clustering import make
from vosrt_train.masks.clustering.lookup import clip_masks, unite_clusters
from vosrt_train.masks.clustering.make import Job, make_pseudo_masks
from vosrt_train.masks.clustering.schedule import MaskSchedule
from vosrt_train.masks.clustering.sheets import write_sheets
from vosrt_train.masks.clustering.store import PseudoMaskEntry, PseudoMaskError, PseudoMasks
from vosrt_train.masks.clustering.updates import MaskUpdates
from vosrt_train.masks.config import SegmentationConfig
from vosrt_train.masks.networks import build_mask_embedding
from vosrt_train.model import build_encoder
from vosrt_train.run import Task
from vosrt_train.state import Progress

ConfigOf = Callable[..., TrainConfig]
WORLD = World(torch.device("cpu"))
# Noise has no objects: every cluster that is not everything will do.
ANYTHING = (
    "foreground.contact=1000",
    "foreground.compactness=0",
    "foreground.persistence=0",
    "foreground.max_area=1",
    "foreground.flicker=1",
)
MASKS = (
    *ANYTHING,
    "segmentation.weight=1",
    "segmentation.start=0.25",
    "segmentation.updates=2",
    "masks.width=8",
    "masks.value_channels=16",
    "pseudo.clusters=3",
    "pseudo.iterations=10",
)


@pytest.fixture
def config(tiny_config: ConfigOf) -> TrainConfig:
    return tiny_config(*MASKS)


def made(
    config: TrainConfig, cache: Cache, folder: Path, wanted: dict[str, frozenset[int]] | None = None
) -> PseudoMasks:
    masks = PseudoMasks(folder)
    make_pseudo_masks(Job(config, cache, wanted), build_encoder(config.encoder, seed=0).eval(), masks)
    return masks


def entry(objects: tuple[int, ...] = (2, 0), reason: str = "") -> PseudoMaskEntry:
    facts = tuple({"area": 0.25} for _ in range(4))
    return PseudoMaskEntry("a/b.mp4", (3, 9), 4, 5, objects, facts, 0.1, reason)


MAPS = np.random.default_rng(0).integers(0, 4, (2, 4, 5), dtype=np.uint8)


def test_round_trip(tmp_path: Path) -> None:
    """Clusters come back as they were, objects numbered by rank; nothing but a palette PNG and a line per video."""
    PseudoMasks(tmp_path).add(entry(), MAPS)
    masks = PseudoMasks(tmp_path)
    assert masks.entries == {"a/b.mp4": entry()}
    assert not masks.done
    for frame, clusters, objects in zip(
        (3, 9), MAPS, (masks.masks("a/b.mp4")[3], masks.masks("a/b.mp4")[9]), strict=True
    ):
        assert np.array_equal(masks.maps("a/b.mp4")[frame], clusters)
        assert np.array_equal(objects, np.select([clusters == 2, clusters == 0], [1, 2], 0))
    with Image.open(next(tmp_path.glob("*.png"))) as image:
        assert (image.mode, image.size) == ("P", (5, 8))
    masks.finish()
    assert PseudoMasks(tmp_path).done
    assert masks.summary() == {"videos": 1, "usable": 1, "foreground": 0.5, "flicker": 0.1}


def test_damage_is_found(tmp_path: Path) -> None:
    """A torn last line is forgotten, as a kill leaves one; anything else is refused with its place."""
    PseudoMasks(tmp_path).add(entry(), MAPS)
    index = tmp_path / "index.jsonl"
    whole = index.read_text()
    index.write_text(whole + whole[:20])
    assert list(PseudoMasks(tmp_path).entries) == ["a/b.mp4"]
    assert index.read_text() == whole
    index.write_text(whole[:20] + "\n" + whole)
    with pytest.raises(PseudoMaskError, match="line 1 is damaged"):
        PseudoMasks(tmp_path)
    index.write_text(whole)
    picture = next(tmp_path.glob("*.png"))
    picture.write_bytes(picture.read_bytes()[:50])
    with pytest.raises(PseudoMaskError, match="is damaged"):
        PseudoMasks(tmp_path).maps("a/b.mp4")
    with pytest.raises(PseudoMaskError, match="has no pseudo-masks of c"):
        PseudoMasks(tmp_path).maps("c")


def test_the_seed_determines_pseudo_masks(config: TrainConfig, tiny_cache: Cache, tmp_path: Path) -> None:
    """The files do not depend on other draws, and existing ones are left alone."""
    for folder in ("one", "two"):
        torch.manual_seed(len(folder))
        made(config, tiny_cache, tmp_path / folder)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == len(tiny_cache.videos) + 2
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)
    index = tmp_path / "two" / "index.jsonl"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:3]))
    made(config, tiny_cache, tmp_path / "two")
    assert index.read_bytes() == (tmp_path / "one" / "index.jsonl").read_bytes()


def test_wanted_frames_do_not_change_the_clusters(config: TrainConfig, tiny_cache: Cache, tmp_path: Path) -> None:
    """Clusters are those of the sampled frames; only those of the named videos are written."""
    whole = made(config, tiny_cache, tmp_path / "whole")
    few = made(config, tiny_cache, tmp_path / "few", {"video1": frozenset({0, 4, 9})})
    assert list(few.entries) == ["video1"]
    assert list(few.maps("video1")) == [0, 4, 9]
    assert list(whole.maps("video1")) == [0, 9]
    assert np.array_equal(few.maps("video1")[9], whole.maps("video1")[9])


def test_degenerate_videos_are_reported_and_not_learnt_from(
    tiny_config: ConfigOf, tiny_cache: Cache, tmp_path: Path
) -> None:
    config = tiny_config(*MASKS, "foreground.dominance=0.1")
    masks = made(config, tiny_cache, tmp_path)
    assert all("one cluster has" in each.reason for each in masks.entries.values())
    assert masks.all_masks == {}
    batch = next(iter(make_loader(config.clips, tiny_cache)))
    found = clip_masks(masks, batch.clips, 48, frames=3)
    assert not found.usable.any()
    assert not found.labels.any()


@pytest.mark.parametrize("flip", [False, True])
def test_clips_see_the_masks_of_their_frames(tmp_path: Path, flip: bool) -> None:
    """A mask is cropped, resized and mirrored like its frame, pixel by pixel of the cache."""
    maps = np.zeros((2, 7, 9), dtype=np.uint8)
    maps[1, 2:5, 5:8] = 1
    facts = ({"area": 0.8}, {"area": 0.2})
    PseudoMasks(tmp_path).add(PseudoMaskEntry("v", (3, 9), 7, 9, (1,), facts, 0.0, ""), maps)
    clip = ClipParameters(
        video="v", frame_ids=(9, 3, 9), height=49, width=65, top=8, left=12, flip=flip, view_flip=False, view_scale=1.0,
        view_offset=(0.0, 0.0), anchor_shift=(0.0, 0.0), point_shift=(0.0, 0.0),
    )  # fmt: skip
    found = clip_masks(PseudoMasks(tmp_path), [clip], 40, frames=3)
    assert found.usable.tolist() == [True]
    assert not found.labels[0, 1].any()
    assert torch.equal(found.labels[0, 0], found.labels[0, 2])
    # Rows 2 to 4 of 7 are rows 14 to 34 of 49; columns 5 to 7 of 9 are columns 36 to 57 of 65, or end with the crop.
    rows, columns = torch.nonzero(found.labels[0, 0], as_tuple=True)
    seen_columns = 39 - columns if flip else columns
    assert (int(rows.min()) + 8, int(rows.max()) + 8) == (14, 34)
    assert (int(seen_columns.min()) + 12, int(seen_columns.max()) + 12) == (36, 51)


def test_unions_begin_with_an_object_and_touch() -> None:
    """They have one to three clusters that touch, and none where no object is seen."""
    rows = ["00114", "02214", "32214", "33334"]
    clusters = np.array([[int(cell) for cell in row] for row in rows], dtype=np.uint8)
    drawn = [unite_clusters(clusters, (2, 7), 3, np.random.default_rng(seed)) for seed in range(60)]
    assert {len(each) for each in drawn} == {1, 2, 3}
    assert all(each[0] == 2 and len(set(each)) == len(each) for each in drawn)
    assert {each[1] for each in drawn if len(each) > 1} == {0, 1, 3}
    assert {each[2] for each in drawn if len(each) > 2} == {0, 1, 3, 4}
    assert unite_clusters(clusters, (2, 7), 3, np.random.default_rng(8)) == drawn[8]
    assert unite_clusters(clusters, (7,), 3, np.random.default_rng(0)) == ()
    assert unite_clusters(np.full((2, 2), 5, np.uint8), (5,), 3, np.random.default_rng(0)) == (5,)


def test_clips_follow_unions(config: TrainConfig, tiny_cache: Cache, tmp_path: Path) -> None:
    """A clip has one object, the same in every frame and at every look, made of whole clusters."""
    batch = next(iter(make_loader(config.clips, tiny_cache)))
    wanted = {video.name: frozenset(range(10)) for video in tiny_cache.videos}
    masks = made(config, tiny_cache, tmp_path, wanted)
    found = clip_masks(masks, batch.clips, 48, frames=3, unions=3)
    assert found.usable.any()
    assert set(np.unique(found.labels.numpy()).tolist()) == {0, 1}
    assert torch.equal(found.labels, clip_masks(masks, batch.clips, 48, frames=3, unions=3).labels)
    assert not torch.equal(found.labels, clip_masks(masks, batch.clips, 48, frames=3).labels)


def test_hops_of_clips(tmp_path: Path) -> None:
    """Their number is drawn from what the clip is, from none to the most that are allowed."""
    clips = [
        ClipParameters(
            video="v", frame_ids=(number,), height=49, width=65, top=0, left=0, flip=False, view_flip=False,
            view_scale=1.0, view_offset=(0.0, 0.0), anchor_shift=(0.0, 0.0), point_shift=(0.0, 0.0),
        )
        for number in range(60)
    ]  # fmt: skip
    masks = PseudoMasks(tmp_path)
    hops = clip_masks(masks, clips, 8, frames=1, hops=3).hops
    assert hops is not None
    assert set(hops.tolist()) == {0, 1, 2, 3}
    assert torch.equal(hops[7:9], torch.as_tensor(clip_masks(masks, clips[7:9], 8, frames=1, hops=3).hops))
    assert clip_masks(masks, clips, 8, frames=1).hops is None


def test_frames_that_will_be_shown(config: TrainConfig, tiny_cache: Cache) -> None:
    """They are those that the loaders of two processes deliver in steps 2 to 4: two clips each, first two frames."""
    clips = config.clips
    shown: dict[str, set[int]] = {}
    for rank in (0, 1):
        for number, batch in enumerate(make_loader(clips, tiny_cache, epochs=6, rank=rank, world=2)):
            if 2 <= number < 5:
                for clip in batch.clips[:1]:
                    shown.setdefault(clip.video, set()).update(clip.frame_ids[:2])
    assert ClipSampler(clips, tiny_cache).frames_shown(2, 5, frames=2, clips=1, world=2) == shown


def test_the_schedule_has_the_papers_proportions() -> None:
    """400 epochs learn correspondence up to 300, then get masks every 10 from weights half an interval old."""
    schedule = MaskSchedule(SegmentationConfig(weight=1), 400)
    assert [schedule.first_use(generation) for generation in range(11)] == list(range(300, 401, 10))
    assert [schedule.snapshot(generation) for generation in (0, 1, 9)] == [295, 305, 385]
    assert [schedule.in_use(step) for step in (0, 299, 300, 309, 310, 399)] == [None, None, 0, 0, 1, 9]
    assert [schedule.snapshotted(step) for step in (294, 295, 304, 305)] == [None, 0, 0, 1]
    at_once = MaskSchedule(SegmentationConfig(weight=1, start=0, updates=0), 50)
    assert (at_once.snapshot(0), at_once.first_use(0), at_once.in_use(0)) == (0, 0, 0)


@pytest.mark.parametrize(("background", "fresh"), [("true", [4, 8]), ("false", [4, 7, 10])])
def test_a_joint_training(
    background: str, fresh: list[int], tiny_config: ConfigOf, tiny_cache: Cache, tmp_path: Path
) -> None:
    """Correspondence comes first, then both, with generations of masks; the checkpoint holds both networks."""
    changes = (f"segmentation.background={background}", f"segmentation.updates={len(fresh) - 1}")
    config = tiny_config(*MASKS, *changes)
    assert run(config, tiny_cache, tmp_path).step == 12
    lines = [json.loads(line) for line in (tmp_path / "scalars.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss/segmentation" in line] == list(range(4, 13))
    assert [line["step"] for line in lines if "pseudo/usable" in line] == fresh
    folders = sorted(path.name[:2] for path in (tmp_path / "pseudo").iterdir() if path.is_dir())
    assert folders == ["00", "01", "02"][: len(fresh)]
    loaded = load_checkpoint(tmp_path / "last.safetensors")
    assert loaded.masks is not None
    assert loaded.masks.config == config.masks
    assert "mask embedding" in loaded.training.summary
    untrained = build_mask_embedding(config.masks, config.encoder, seed=0).state_dict()
    assert not torch.equal(loaded.masks.state_dict()["decoder.predict.weight"], untrained["decoder.predict.weight"])


def run(config: TrainConfig, cache: Cache, folder: Path, *, resume: bool = False) -> Progress:
    encoder = build_encoder(config.encoder, seed=0)
    masks = build_mask_embedding(config.masks, config.encoder, seed=0)
    return train(Task(config, cache, folder, resume=resume, quiet=True), encoder, WORLD, masks)


class KilledError(Exception):
    """In place of SIGKILL."""


@pytest.mark.parametrize("videos", [2, 9])
def test_killed_while_masks_are_made(
    videos: int, tiny_config: ConfigOf, tiny_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed in one of three generations, and the resumed training ends in the same bytes."""
    config = tiny_config(*MASKS, "segmentation.background=false", "log.checkpoint=2")
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    run(config, tiny_cache, tmp_path / "whole")
    cluster, count = make._cluster_video, iter(range(1000))

    def kill(*arguments: object) -> object:
        if next(count) == videos:
            raise KilledError
        return cluster(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(make, "_cluster_video", kill)
        with pytest.raises(KilledError):
            run(config, tiny_cache, tmp_path / "killed")
    run(config, tiny_cache, tmp_path / "killed", resume=True)
    one, other = ((tmp_path / folder / "last.safetensors").read_bytes() for folder in ("whole", "killed"))
    assert one == other


def test_a_maker_that_dies_is_reported(config: TrainConfig, tiny_cache: Cache, tmp_path: Path) -> None:
    """The weights that it needs are gone, so its process ends with an error; the training does not hang."""
    encoder = build_encoder(config.encoder, seed=0)
    with MaskUpdates(config, tiny_cache, tmp_path, 12, WORLD) as updates:
        for step in range(3):
            assert updates.before(step, encoder) is None
        assert updates._process is not None
        updates._process.kill()
        with pytest.raises(WorkError, match=f"ended with code {-signal.SIGKILL}"):
            updates.before(3, encoder)
    (tmp_path / "pseudo" / "00.safetensors").unlink()
    with (
        MaskUpdates(config, tiny_cache, tmp_path, 12, WORLD) as updates,
        pytest.raises(PseudoMaskError, match="is missing"),
    ):
        updates.before(4, encoder)


def test_sheets(config: TrainConfig, tiny_cache: Cache, tmp_path: Path) -> None:
    """Each video has one, with all versions below each other."""
    masks = made(config, tiny_cache, tmp_path / "masks")
    one = write_sheets(tiny_cache.videos[:2], [("initial", masks)], tmp_path / "one")
    both = write_sheets(tiny_cache.videos[:2], [("initial", masks), ("final", masks)], tmp_path / "both")
    assert [path.name for path in one] == ["video0.jpg", "video1.jpg"]
    with Image.open(one[0]) as small, Image.open(both[0]) as large:
        assert (small.width, small.height * 5) == (large.width, large.height * 3)


def test_short_clips_are_refused(tiny_config: ConfigOf) -> None:
    with pytest.raises(OptionError, match=r"clips\.frames is 2; the segmentation loss needs 3"):
        tiny_config("segmentation.weight=1", "clips.frames=2")


def test_crops_of_broken_cells_are_refused(tiny_config: ConfigOf) -> None:
    with pytest.raises(OptionError, match=r"clips\.crop is 129; the segmentation loss needs a multiple of 8"):
        tiny_config("segmentation.weight=1", "clips.frames=3", "clips.crop=129")
