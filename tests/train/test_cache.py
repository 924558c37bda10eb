"""The cache holds every frame of every usable video, is built once, and survives interruptions."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.fakes import media
from vosrt.errors import InputError, OptionError, OutputError, SourceError, WorkError
from vosrt.types import U8Array
from vosrt.video.finding import Source, find_sources
from vosrt_train.data import cache as cache_module
from vosrt_train.data.cache import BuildProgress, Cache, build_cache, open_cache, plan_cache
from vosrt_train.data.config import CacheConfig

CONFIG = CacheConfig(short_side=16)


def noise(count: int, height: int, width: int, seed: int = 0) -> U8Array:
    """Coarse noise u8 [count, height, width, 3], which survives a codec."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 3, 4, 3), dtype=np.uint8)
    return np.stack([cv2.resize(image, (width, height)) for image in coarse])


def write_video(path: Path, frames: U8Array, fps: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return media.write_video(path, frames, rate=fps, colours="rgb24", encoder={"crf": "1"})


def write_folder(path: Path, frames: U8Array) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for t, image in enumerate(frames):
        assert cv2.imwrite(str(path / f"frame{t}.png"), image[..., ::-1])
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two videos and a folder of frames, at different depths."""
    root = tmp_path / "videos"
    write_video(root / "a.mp4", noise(6, 32, 48))
    write_folder(root / "deep" / "down" / "b", noise(12, 20, 12, seed=1))
    write_video(root / "deep" / "c.MKV", noise(7, 12, 18, seed=2))
    return root


def build(root: Path, directory: Path, config: CacheConfig = CONFIG) -> Cache:
    return build_cache(plan_cache(root, directory, config), workers=0)


def contents(cache: Cache) -> list[tuple[str, bytes]]:
    return [(video.name, video.open().tobytes()) for video in cache.videos]


def test_videos_and_folders_are_found_at_any_depth(root: Path) -> None:
    (root / "notes.txt").write_text("no video")
    (root / ".hidden.mp4").write_text("no video")
    (root / "deep" / "loop").symlink_to(root)
    (root / "linked.mp4").symlink_to(root / "a.mp4")
    sources, skipped = find_sources(root)
    assert [source.name for source in sources] == ["a.mp4", "deep/c.MKV", "deep/down/b", "linked.mp4"]
    assert [source.images for source in sources] == [0, 0, 12, 0]
    assert sources[2].size == sum(path.stat().st_size for path in (root / "deep" / "down" / "b").iterdir())
    assert skipped == []


def test_masks_of_annotated_data_sets_are_no_videos(tmp_path: Path) -> None:
    """DAVIS and YouTube-VOS have such layouts."""
    for kind in ("JPEGImages", "Annotations"):
        write_folder(tmp_path / kind / "480p" / "bear", noise(5, 8, 8))
    sources, skipped = find_sources(tmp_path)
    assert [source.name for source in sources] == ["JPEGImages/480p/bear"]
    assert [(each.name, each.reason) for each in skipped] == [
        ("Annotations/480p/bear", "holds annotations, not frames")
    ]


def test_a_single_video_or_folder_will_do(root: Path) -> None:
    assert [source.name for source in find_sources(root / "a.mp4")[0]] == ["a.mp4"]
    assert [source.name for source in find_sources(root / "deep" / "down" / "b")[0]] == ["b"]


def test_nothing_to_find_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        find_sources(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="holds no videos"):
        find_sources(tmp_path)


def test_frames_are_resized_rgb_in_natural_order(root: Path, tmp_path: Path) -> None:
    """Lossless frames come back exactly, with the short side of the configuration, never enlarged."""
    cache = build(root, tmp_path / "cache")
    assert [video.name for video in cache.videos] == ["a.mp4", "deep/c.MKV", "deep/down/b"]
    video, small, folder = cache.videos
    assert (video.frames, video.height, video.width) == (6, 16, 24)
    assert (small.frames, small.height, small.width) == (7, 12, 12 * 18 // 12)
    assert (folder.frames, folder.height, folder.width) == (12, 20, 12)
    assert np.array_equal(folder.open(), noise(12, 20, 12, seed=1))
    expected = np.stack([cv2.resize(image, (24, 16), interpolation=cv2.INTER_AREA) for image in noise(6, 32, 48)])
    assert np.abs(video.open().astype(int) - expected).mean() < 4
    assert (video.fps, small.fps, folder.fps) == (10, 10, 24)
    assert cache.size == sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.rgb"))
    assert not video.open().flags.writeable


def test_a_long_video_is_cut(root: Path, tmp_path: Path) -> None:
    cache = build(root, tmp_path / "cache", CacheConfig(short_side=16, max_frames=6))
    assert [video.frames for video in cache.videos] == [6, 6, 6]


def test_the_size_is_known_before(root: Path, tmp_path: Path) -> None:
    plan = plan_cache(root, tmp_path / "cache", CONFIG)
    assert not (tmp_path / "cache").exists()
    assert "has 0 videos, 3 to decode, about 0.0 GB" in plan.describe()
    assert build_cache(plan, workers=0).size == plan.missing_bytes


def test_worker_processes_build_the_same(root: Path, tmp_path: Path) -> None:
    seen: list[BuildProgress] = []
    plan = plan_cache(root, tmp_path / "parallel", CONFIG)
    parallel = build_cache(plan, workers=2, on_progress=seen.append)
    assert contents(parallel) == contents(build(root, tmp_path / "alone"))
    assert [(progress.done, progress.total) for progress in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[-1].written == parallel.size


def test_broken_and_short_videos_are_listed_and_skipped(root: Path, tmp_path: Path) -> None:
    (root / "empty.mp4").touch()
    (root / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    write_video(root / "short.mp4", noise(4, 16, 16))
    write_folder(root / "poster", noise(1, 16, 16))
    (root / "pictures").mkdir()
    (root / "pictures" / "1.jpg").write_text("no image")
    cache = build(root, tmp_path / "cache")
    assert len(cache.videos) == 3
    reasons = {each.name: each.reason for each in cache.skipped}
    assert reasons.keys() == {"empty.mp4", "noise.mp4", "short.mp4", "poster", "pictures"}
    assert reasons["empty.mp4"] == "is an empty file; expected a video"
    assert "cannot be opened as a video" in reasons["noise.mp4"]
    assert reasons["short.mp4"] == "has 4 frames; expected 5 or more"
    assert reasons["poster"] == "has 1 frame; expected 5 or more"
    assert "cannot be read as an image" in reasons["pictures"]
    assert plan_cache(root, tmp_path / "cache", CONFIG).missing == ()


def test_a_video_that_breaks_keeps_what_came_before(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    frames = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    whole = write_video(root / "a.mkv", frames).read_bytes()
    (root / "a.mkv").write_bytes(whole[: len(whole) // 2])
    (video,) = build(root, tmp_path / "cache").videos
    assert 5 <= video.frames < 40
    assert "breaks at frame" in video.note


def test_nothing_usable_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    write_video(root / "short.mp4", noise(2, 16, 16))
    with pytest.raises(SourceError, match=r"no video that can be used; the first of 1: short\.mp4 has 2 frames"):
        build(root, tmp_path / "cache")


def test_only_what_changed_is_decoded_again(root: Path, tmp_path: Path) -> None:
    """Frames of what changed or went away are removed."""
    directory = tmp_path / "cache"
    before = {video.name: video.path for video in build(root, directory).videos}
    write_video(root / "a.mp4", noise(8, 32, 48, seed=5))
    shutil.rmtree(root / "deep" / "down")
    plan = plan_cache(root, directory, CONFIG)
    assert [source.name for _, source in plan.missing] == ["a.mp4"]
    after = build_cache(plan, workers=0)
    assert [(video.name, video.frames) for video in after.videos] == [("a.mp4", 8), ("deep/c.MKV", 7)]
    assert after.videos[1].path == before["deep/c.MKV"]
    assert set(directory.glob("*.rgb")) == {video.path for video in after.videos}
    other = plan_cache(root, directory, CacheConfig(short_side=8))
    assert len(other.missing) == 2


KILLED = """
import os, signal, sys
from pathlib import Path
from vosrt_train.data.cache import build_cache, plan_cache
from vosrt_train.data.config import CacheConfig

def kill(progress):
    if progress.done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

plan = plan_cache(Path(sys.argv[1]), Path(sys.argv[2]), CacheConfig(short_side=16))
build_cache(plan, workers=0, on_progress=kill)
"""


@pytest.mark.parametrize("done", [1, 2])
def test_a_killed_build_goes_on(root: Path, tmp_path: Path, done: int) -> None:
    """After SIGKILL, and with the debris of a kill at the worst moment, the rest is decoded and all is whole."""
    directory = tmp_path / "cache"
    command = [sys.executable, "-c", KILLED, str(root), str(directory), str(done)]
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}, check=False)
    assert run.returncode == -signal.SIGKILL
    (directory / "0123456789.part").write_bytes(b"unfinished")
    with (directory / "index.jsonl").open("a") as index:
        index.write('{"name": "deep/c.MKV", "key": "01')
    plan = plan_cache(root, directory, CONFIG)
    assert (len(plan.ready), len(plan.missing)) == (done, 3 - done)
    assert contents(build_cache(plan, workers=0)) == contents(build(root, tmp_path / "uninterrupted"))
    assert list(directory.glob("*.part")) == []


def test_frames_that_were_cut_short_are_decoded_again(root: Path, tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    cache = build(root, directory)
    whole = contents(cache)
    with cache.videos[0].path.open("r+b") as file:
        file.truncate(100)
    assert [each.name for each in open_cache(directory, min_frames=5).skipped] == ["a.mp4"]
    assert contents(build(root, directory)) == whole


def test_frames_that_were_altered_are_found_when_they_are_opened(root: Path, tmp_path: Path) -> None:
    """Each process looks once: the size is right, one byte is not."""
    build(root, tmp_path / "cache")
    video = open_cache(tmp_path / "cache", min_frames=2).videos[0]
    path = tmp_path / "moved.rgb"  # under a name that this process has not compared yet
    data = bytearray(video.path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"moved.rgb: the cached frames of a.mp4 are damaged; delete the file"):
        replace(video, path=path).open()
    path.write_bytes(video.path.read_bytes())
    np.testing.assert_array_equal(replace(video, path=path).open(), video.open())


def test_a_damaged_index_is_refused(root: Path, tmp_path: Path) -> None:
    build(root, tmp_path / "cache")
    index = tmp_path / "cache" / "index.jsonl"
    index.write_text("{}\n" + index.read_text())
    with pytest.raises(InputError, match=r"index\.jsonl: line 1 is damaged; delete the cache"):
        plan_cache(root, tmp_path / "cache", CONFIG)


def test_too_little_space_is_said_before(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_free_bytes", lambda _: 100)
    with pytest.raises(OutputError, match=r"GB are needed and 0\.0 GB are free; make space"):
        build(root, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_two_builds_do_not_meet(root: Path, tmp_path: Path) -> None:
    plan = plan_cache(root, tmp_path / "cache", CONFIG)

    def build_meanwhile(_: BuildProgress) -> None:
        with pytest.raises(OutputError, match="another process is building it"):
            build_cache(plan, workers=0)

    assert len(build_cache(plan, workers=0, on_progress=build_meanwhile).videos) == 3


def test_a_place_that_cannot_be_written(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        build(root, tmp_path / "file" / "cache")


def test_a_full_disk_is_no_broken_video(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build stops with one line and leaves no half file; it does not list the video as broken."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "decode", full)
    with pytest.raises(WorkError, match="No space left on device"):
        build(root, tmp_path / "cache")
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"index.jsonl"}


def test_a_worker_that_dies_is_told(root: Path, tmp_path: Path) -> None:
    plan = plan_cache(root, tmp_path / "cache", CONFIG)
    killer = Source("killer.mp4", _Deadly(), size=1, mtime_ns=1)  # type: ignore[arg-type]
    with pytest.raises(WorkError, match="a decoding process died"):
        build_cache(replace(plan, missing=(("key", killer), *plan.missing)), workers=2)


class _Deadly:
    """A path that kills the process that looks at it."""

    def __str__(self) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return ""


@pytest.mark.parametrize(
    "options", [{"short_side": 0}, {"max_frames": 1}, {"min_frames": 1}, {"folder_fps": 0.0}, {"folder_fps": np.nan}]
)
def test_impossible_settings_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=rf"{next(iter(options))} is .*; expected"):
        CacheConfig(**options)  # type: ignore[arg-type]
