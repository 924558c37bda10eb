"""Clips are drawn as the paper says, and are the same for every reader and from any place of an epoch."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vosrt.errors import OptionError
from vosrt_train.data.cache import Cache, CachedVideo
from vosrt_train.data.clips import ClipBatch, ClipSampler, gap_frames, make_loader
from vosrt_train.data.config import ClipConfig

SMALL = ClipConfig(batch=4, workers=0, frames=3, crop=16, seed=7)


def write(directory: Path, lengths: list[int], height: int = 20, width: int = 32, fps: float = 25) -> Cache:
    """Videos whose red is the number of the frame, green 7 times the column and blue 10 times the row."""
    videos = []
    for number, length in enumerate(lengths):
        frames = np.zeros((length, height, width, 3), np.uint8)
        frames[..., 0] = np.arange(length).reshape(-1, 1, 1) % 256
        frames[..., 1] = 7 * np.arange(width)
        frames[..., 2] = 10 * np.arange(height).reshape(-1, 1)
        path = directory / f"{number}.rgb"
        frames.tofile(path)
        videos.append(CachedVideo(f"{number}.mp4", path, length, height, width, fps))
    return Cache(tuple(videos), ())


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return write(tmp_path, [40, 60, 3, 250, 40, 40, 40, 41, 42, 100])


def assert_same(ours: ClipBatch, theirs: ClipBatch) -> None:
    assert (ours.clips, ours.epoch, ours.step) == (theirs.clips, theirs.epoch, theirs.step)
    for name in ("frames", "anchor_shift", "point_shift"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    for name in ("flip", "scale", "offset"):
        assert torch.equal(getattr(ours.view, name), getattr(theirs.view, name))


@pytest.mark.parametrize(
    ("fps", "frames"), [(25, 10), (29.97, 10), (30, 10), (27, 10), (24, 10), (12.5, 5), (6, 2), (60, 20), (1, 1)]
)
def test_gaps_last_as_long_at_every_frame_rate(fps: float, frames: int) -> None:
    """A gap is 10 frames at 25 to 30 frames per second and 2 at YouTube-VOS's 6."""
    assert gap_frames(fps, 10) == frames


@given(st.integers(3, 80), st.integers(2, 3), st.integers(1, 20), st.integers(0, 5))
def test_frames_of_a_clip_are_evenly_spaced_in_random_order(length: int, count: int, gap: int, epoch: int) -> None:
    """The gap is shrunk where the video is short, so that the frames still cover as much of it as they can."""
    video = CachedVideo("a", Path(), length, 20, 32, 25)
    config = ClipConfig(frames=count, gap=gap, crop=16, segment=1000)
    sampler = ClipSampler(config, Cache((video,), ()))
    drawn = sampler._draw(np.random.default_rng(epoch), video, 0, length)
    ids = sorted(drawn.frame_ids)
    assert ids[0] >= 0
    assert ids[-1] < length
    assert set(np.diff(ids)) == {min(gap, length // count)}


def test_every_order_and_every_start_comes_up(cache: Cache) -> None:
    video, sampler = cache.videos[0], ClipSampler(SMALL, cache)
    drawn = [sampler._draw(np.random.default_rng(n), video, 0, 40).frame_ids for n in range(500)]
    assert len({tuple(np.argsort(ids)) for ids in drawn}) == 6
    assert {min(ids) for ids in drawn} == set(range(40 - 20))


def test_a_lattice_needs_few_frames(tmp_path: Path) -> None:
    """Clips begin at multiples of it, counted from the beginning of their segment."""
    cache = write(tmp_path, [80])
    sampler = ClipSampler(ClipConfig(frames=3, gap=4, crop=16, segment=40, lattice=20), cache)
    first = {(part, min(sampler.clip(epoch, part).parameters.frame_ids)) for epoch in range(40) for part in range(2)}
    assert first == {(0, 0), (0, 20), (1, 40), (1, 60)}


def test_pixels_are_those_of_the_parameters(cache: Cache) -> None:
    """They are of the right frames, the right way round, from the right place of the resized frame."""
    sampler = ClipSampler(SMALL, cache)
    flips = Counter[bool]()
    for index in range(len(sampler)):
        clip = sampler.clip(epoch=1, index=index)
        drawn = clip.parameters
        assert clip.frames.shape == (3, 16, 16, 3)
        assert clip.frames[:, 0, 0, 0].tolist() == list(drawn.frame_ids)
        columns = (drawn.left + np.arange(16) + 0.5) * 32 / drawn.width - 0.5
        rows = (drawn.top + np.arange(16) + 0.5) * 20 / drawn.height - 0.5
        columns = columns[::-1] if drawn.flip else columns
        assert np.abs(clip.frames[0, 5, :, 1] - 7 * columns.clip(0, 31)).max() < 2.5
        assert np.abs(clip.frames[0, :, 5, 2] - 10 * rows.clip(0, 19)).max() < 2.5
        flips[drawn.flip] += 1
    assert len(flips) == 2


def test_draws_cover_their_ranges(cache: Cache) -> None:
    sampler, video = ClipSampler(SMALL, cache), cache.videos[0]
    drawn = [sampler._draw(np.random.default_rng(n), video, 0, 40) for n in range(1000)]
    assert {each.height for each in drawn} == {16, 17, 18, 19}
    assert all(each.width == each.height * 32 // 20 for each in drawn)
    assert all(each.top + 16 <= each.height and each.left + 16 <= each.width for each in drawn)
    assert {each.height - each.top for each in drawn} == {16, 17, 18, 19}
    scales = np.array([each.view_scale for each in drawn])
    assert 0.5 <= scales.min() < 0.51
    assert 0.99 < scales.max() <= 1
    offsets = np.array([each.view_offset for each in drawn])
    assert (offsets >= 0).all()
    assert (offsets.max(axis=1) + scales <= 1).all()
    for flips in ([each.flip for each in drawn], [each.view_flip for each in drawn]):
        assert 0.45 < np.mean(flips) < 0.55
    shifts = np.array([[*each.anchor_shift, *each.point_shift] for each in drawn])
    assert np.abs(np.corrcoef(shifts.T) - np.eye(4)).max() < 0.12
    assert np.abs(shifts.mean(axis=0) - 0.5).max() < 0.05


def test_flips_can_be_left_out(cache: Cache) -> None:
    config = ClipConfig(batch=4, workers=0, frames=3, crop=16, flip=False, view_flip=False, view_scale=1, resize=1)
    for batch in make_loader(config, cache, epochs=3):
        assert not batch.view.flip.any()
        assert torch.equal(batch.view.scale, torch.ones(4))
        assert all(not clip.flip and clip.height == 16 for clip in batch.clips)


def test_one_clip_per_video_and_epoch(cache: Cache) -> None:
    """Each epoch has its own order and draws; what does not fill a batch is left out."""
    epochs = [[clip for batch in make_loader(SMALL, cache, epoch=e) for clip in batch.clips] for e in range(2)]
    for clips in epochs:
        assert len(clips) == 8
        assert len({clip.video for clip in clips}) == 8
    assert [clip.video for clip in epochs[0]] != [clip.video for clip in epochs[1]]
    starts = [{clip.video: clip.anchor_shift for clip in clips} for clips in epochs]
    assert all(starts[0][video] != starts[1][video] for video in starts[0].keys() & starts[1].keys())


def test_long_videos_give_one_clip_per_segment(tmp_path: Path) -> None:
    sampler = ClipSampler(ClipConfig(batch=1, frames=3, crop=16, segment=50), write(tmp_path, [99, 255]))
    assert len(sampler) == 1 + 5
    ids = [sampler.clip(0, index).parameters for index in range(6)]
    assert [clip.video for clip in ids] == ["0.mp4"] + 5 * ["1.mp4"]
    assert all(51 * n <= min(clip.frame_ids) and max(clip.frame_ids) < 51 * (n + 1) for n, clip in enumerate(ids[1:]))


def test_few_videos_come_up_several_times(tmp_path: Path) -> None:
    """Each time the draws are different."""
    config = ClipConfig(batch=4, workers=0, frames=3, crop=16)
    (batch,) = make_loader(config, write(tmp_path, [50, 50, 50]))
    counts = Counter(clip.video for clip in batch.clips)
    assert len(counts) >= 2
    assert len({clip.anchor_shift for clip in batch.clips}) == 4


def test_a_batch_is_laid_out_for_the_network(cache: Cache) -> None:
    batch = next(iter(make_loader(SMALL, cache)))
    assert batch.frames.shape == (4, 3, 3, 16, 16)
    assert batch.frames.dtype == torch.uint8
    assert batch.frames.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert batch.view.flip.dtype == torch.bool
    for tensor, shape in ((batch.view.scale, (4,)), (batch.view.offset, (4, 2)), (batch.point_shift, (4, 2))):
        assert (tensor.dtype, tensor.shape) == (torch.float32, shape)
    assert_same(batch.to("cpu"), batch)


def test_workers_change_nothing(cache: Cache) -> None:
    """No, one and two processes give the same batches; the global generators are left alone."""
    torch.manual_seed(3)
    state = torch.get_rng_state()
    alone = list(make_loader(SMALL, cache, epochs=2))
    for workers in (1, 2):
        config = ClipConfig(**{**vars(SMALL), "workers": workers})
        for ours, theirs in zip(make_loader(config, cache, epochs=2), alone, strict=True):
            assert_same(ours, theirs)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("epoch", "start"), [(0, 1), (1, 0), (1, 1), (2, 0)])
def test_training_can_go_on_anywhere(cache: Cache, epoch: int, start: int) -> None:
    """Entering at a batch gives exactly the batches that would have followed."""
    whole = list(make_loader(SMALL, cache, epochs=3))
    rest = list(make_loader(SMALL, cache, epoch=epoch, start_batch=start, epochs=3 - epoch))
    assert len(rest) == len(whole) - (2 * epoch + start)
    assert [(batch.epoch, batch.step) for batch in rest] == [(b.epoch, b.step) for b in whole[2 * epoch + start :]]
    for ours, theirs in zip(rest, whole[2 * epoch + start :], strict=True):
        assert_same(ours, theirs)


def test_parts_of_several_processes_make_the_joint_batch(cache: Cache) -> None:
    joint = list(make_loader(SMALL, cache))
    parts = [list(make_loader(SMALL, cache, rank=rank, world=2)) for rank in range(2)]
    for step, batch in enumerate(joint):
        assert torch.equal(torch.cat([part[step].frames for part in parts]), batch.frames)
        assert sum((part[step].clips for part in parts), ()) == batch.clips


def test_seeds_differ(cache: Cache) -> None:
    other = ClipConfig(**{**vars(SMALL), "seed": 8})
    ours, theirs = (next(iter(make_loader(config, cache))) for config in (SMALL, other))
    assert ours.clips != theirs.clips


def test_no_two_streams_of_random_numbers_coincide(cache: Cache) -> None:
    """The order of an epoch and the draws of its clips differ across seeds and epochs."""
    first = [
        ClipSampler(ClipConfig(**{**vars(SMALL), "seed": seed}), cache)._random(epoch, stream).random()
        for seed in range(5)
        for epoch in range(5)
        for stream in range(5)
    ]
    assert len(set(first)) == len(first)


def test_the_loader_is_as_long_as_it_says(cache: Cache) -> None:
    loader = make_loader(SMALL, cache, start_batch=1, epochs=3)
    assert len(loader) == len(list(islice(loader, 100))) == 5


def test_impossible_requests_are_refused(cache: Cache) -> None:
    with pytest.raises(OptionError, match=r"2\.mp4 has 3 frames and a clip 5; build the cache with min_frames = 5"):
        make_loader(ClipConfig(), cache)
    with pytest.raises(OptionError, match="batch is 4; expected a multiple of the number of processes, 3"):
        make_loader(SMALL, cache, world=3)
    with pytest.raises(OptionError, match="start_batch is 3; an epoch has 2 batches"):
        make_loader(SMALL, cache, start_batch=3)


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 0},
        {"workers": -1},
        {"frames": 1},
        {"gap": 0},
        {"crop": 4},
        {"resize": 0.9},
        {"view_scale": 0.0},
        {"view_scale": 1.1},
        {"segment": 2},
        {"seed": -1},
    ],
)
def test_impossible_settings_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=rf"{next(iter(options))} is .*; expected"):
        ClipConfig(**options)  # type: ignore[arg-type]
