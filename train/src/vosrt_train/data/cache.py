"""The cache: every frame of every video, resized, as raw bytes that are memory-mapped.

The cache is a folder with one file of frames per video and ``index.jsonl``. The line of a video is appended once its
file is in place, so that a killed build can continue with the videos that have no line. The key of a video consists of
its name, size, modification time and the settings: a change of any decodes the video again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np

from vosrt._files import locked, open_new, replacing, sha256_of, write_all, writing
from vosrt._reading import JSON_BYTES, read_bytes
from vosrt.errors import InputError, OutputError, SourceError, WorkError
from vosrt.text import counted
from vosrt.types import U8Array
from vosrt.video.finding import Skipped, Source, find_sources
from vosrt_train.data.config import CacheConfig
from vosrt_train.data.decode import Entry, decode, estimate_size

FORMAT = 1
_checked: set[Path] = set()  # files whose hash this process has compared
_INDEX = "index.jsonl"
_BUSY = "cache {folder}: another process is building it ({process}); wait until it is done"
_PART = ".part"  # unfinished files; only the process that holds the lock may have any


@dataclass(frozen=True)
class CachedVideo:
    """A video in the cache.

    Attributes:
        name: of the source, relative to the directory of videos.
        path: file with u8 [frames, height, width, 3], RGB.
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        fps: frames per second.
        note: why it ends early; empty where it does not.
        sha256: of the file; empty if unknown.
    """

    name: str
    path: Path
    frames: int
    height: int
    width: int
    fps: float
    note: str = ""
    sha256: str = ""

    def open(self) -> U8Array:
        """Map the frames, u8 [frames, height, width, 3] RGB, read-only. Each process checks their hash once.

        Raises:
            InputError: the frames are damaged.
        """
        try:
            frames = np.memmap(self.path, np.uint8, "r", shape=(self.frames, self.height, self.width, 3))
        except (OSError, ValueError) as error:
            raise self._damaged() from error
        if self.sha256 and self.path not in _checked:
            if hashlib.sha256(frames.data).hexdigest() != self.sha256:
                raise self._damaged()
            _checked.add(self.path)
        return frames

    def _damaged(self) -> InputError:
        return InputError(
            f"{self.path}: the cached frames of {self.name} are damaged; delete the file and start again (--resume), "
            "which decodes them again"
        )


@dataclass(frozen=True)
class Cache:
    """Usable videos and skipped ones, each in the order of their names."""

    videos: tuple[CachedVideo, ...]
    skipped: tuple[Skipped, ...]

    @property
    def size(self) -> int:
        """Bytes of all frames."""
        return sum(video.frames * video.height * video.width * 3 for video in self.videos)


@dataclass(frozen=True)
class CachePlan:
    """Plan of building a cache.

    Attributes:
        missing: sources to decode, with their keys.
        skipped: sources that cannot be listed.
        missing_bytes: estimated size of the missing frames, from the headers of the videos.
        free_bytes: free space on the disk of the cache.
    """

    directory: Path
    config: CacheConfig
    ready: tuple[Entry, ...]
    missing: tuple[tuple[str, Source], ...]
    skipped: tuple[Skipped, ...]
    missing_bytes: int
    free_bytes: int

    @property
    def videos(self) -> int:
        """Number of usable videos, as far as is known before decoding."""
        return len([entry for entry in self.ready if not entry.reason]) + len(self.missing)

    def describe(self) -> str:
        """Describe the plan in one line."""
        have, lack = len(self.ready), len(self.missing)
        if not lack:
            return f"cache {self.directory}: has all {counted(have, 'video')}"
        return (
            f"cache {self.directory}: has {counted(have, 'video')}, {lack} to decode, "
            f"about {self.missing_bytes / 1e9:.1f} GB ({self.free_bytes / 1e9:.1f} GB free)"
        )


@dataclass(frozen=True)
class BuildProgress:
    """Progress of a build: ``done`` of ``total`` videos, ``written`` bytes, and the ``name`` of the latest video."""

    done: int
    total: int
    written: int
    name: str


def plan_cache(root: Path, directory: Path, config: CacheConfig) -> CachePlan:
    """Find the videos, and those that the cache lacks; decode nothing.

    Args:
        directory: folder of the cache; need not exist. One cache holds the videos of one ``root``.

    Raises:
        SourceError: ``root`` has no videos.
        InputError: the cache's index cannot be read.
    """
    sources, skipped = find_sources(root)
    entries = {entry.key: entry for entry in _read_index(directory) if _is_whole(directory, entry)}
    keyed = [(_key(source, config), source) for source in sources]
    missing = tuple((key, source) for key, source in keyed if key not in entries)
    return CachePlan(
        directory=directory,
        config=config,
        ready=tuple(entries[key] for key, _ in keyed if key in entries),
        missing=missing,
        skipped=tuple(skipped),
        missing_bytes=sum(estimate_size(source, config) for _, source in missing),
        free_bytes=_free_bytes(directory),
    )


def build_cache(
    plan: CachePlan, *, workers: int = 2, on_progress: Callable[[BuildProgress], object] | None = None
) -> Cache:
    """Decode the missing videos of a plan. May be killed at any moment and started again.

    Args:
        plan: from `plan_cache`.
        workers: processes that decode; 0 decodes in this process.

    Raises:
        OutputError: the disk is too small, the folder cannot be created, or another process is building the cache.
        WorkError: a decoding process died, or the system refused to write.
        SourceError: no video can be used.
    """
    if plan.missing_bytes > plan.free_bytes:
        raise OutputError(
            f"cache {plan.directory}: {plan.missing_bytes / 1e9:.1f} GB are needed and {plan.free_bytes / 1e9:.1f} GB "
            "are free; make space, or keep smaller or fewer frames (short_side, max_frames)"
        )
    with writing(plan.directory), locked(plan.directory, _BUSY):
        _tidy(plan)
        _decode_missing(plan, workers, on_progress or (lambda _: None))
    return open_cache(plan.directory, min_frames=plan.config.min_frames, skipped=plan.skipped)


def open_cache(directory: Path, *, min_frames: int, skipped: Iterable[Skipped] = ()) -> Cache:
    """Open a cache.

    Args:
        min_frames: videos with fewer frames are skipped.
        skipped: further skipped videos to list.

    Raises:
        InputError: the index cannot be read.
        SourceError: no video can be used.
    """
    videos, unusable = [], list(skipped)
    for entry in _read_index(directory):
        if entry.reason or not _is_whole(directory, entry):
            unusable.append(Skipped(entry.name, entry.reason or "its frames are not in the cache; build it again"))
        elif entry.frames < min_frames:
            unusable.append(Skipped(entry.name, f"has {counted(entry.frames, 'frame')}; expected {min_frames} or more"))
        else:
            path = _frames_path(directory, entry.key)
            size = (entry.frames, entry.height, entry.width)
            videos.append(CachedVideo(entry.name, path, *size, entry.fps, entry.note, entry.sha256))
    if not videos:
        reasons = f"; the first of {len(unusable)}: {unusable[0].name} {unusable[0].reason}" if unusable else ""
        raise SourceError(f"cache {directory}: holds no video that can be used{reasons}")
    videos.sort(key=lambda video: video.name)
    return Cache(tuple(videos), tuple(sorted(unusable, key=lambda each: each.name)))


def process_context() -> BaseContext:
    """Return a context that starts processes from a clean one: a fork of a process with threads may deadlock."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


def end_with_parent() -> None:
    """End this worker process when its parent has died.

    A killed parent cannot stop its workers, and workers of a fork server would otherwise wait without end.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.join,), daemon=True).start()


def _end_after(wait: Callable[[], object]) -> None:
    wait()
    os._exit(1)


def _decode_missing(plan: CachePlan, workers: int, on_progress: Callable[[BuildProgress], object]) -> None:
    written = 0
    with (plan.directory / _INDEX).open("a", encoding="utf-8") as index:
        for done, entry in enumerate(_decoded(plan, workers), start=1):
            index.write(_line(entry))
            index.flush()
            os.fsync(index.fileno())
            written += entry.size
            on_progress(BuildProgress(done, len(plan.missing), written, entry.name))


def _decoded(plan: CachePlan, workers: int) -> Iterator[Entry]:
    """Yield an entry per missing source, in the order in which they are done."""
    tasks = [(source, key, _frames_path(plan.directory, key)) for key, source in plan.missing]
    if not workers or len(tasks) < 2:
        for source, key, path in tasks:
            yield _decode_file(source, key, path, plan.config)
        return
    pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=process_context(), initializer=end_with_parent)
    try:
        names: dict[Future[Entry], str] = {
            pool.submit(_decode_file, source, key, path, plan.config): source.name for source, key, path in tasks
        }
        for future in as_completed(names):
            yield future.result()
    except BrokenProcessPool as error:
        raise WorkError(
            f"cache {plan.directory}: a decoding process died (killed, out of memory, or a file that crashes the "
            "decoder); start again to go on, with one worker if it dies again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_file(source: Source, key: str, path: Path, config: CacheConfig) -> Entry:
    """Decode one source into its file, which appears whole or not at all."""
    part = path.with_suffix(_PART)
    part.unlink(missing_ok=True)
    try:
        with open_new(part) as file:
            entry = decode(source, key, file, config)
            if entry.reason:
                return entry
            os.fsync(file.fileno())
            entry = replace(entry, sha256=sha256_of(file))
        part.replace(path)
        return entry
    finally:
        part.unlink(missing_ok=True)


def _key(source: Source, config: CacheConfig) -> str:
    settings = [config.short_side, config.max_frames, config.folder_fps if source.images else 0]
    facts = [FORMAT, source.name, source.size, source.mtime_ns, source.images, *settings]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]


def _frames_path(directory: Path, key: str) -> Path:
    return directory / f"{key}.rgb"


def _is_whole(directory: Path, entry: Entry) -> bool:
    if entry.reason:
        return True
    try:
        return bool(entry.sha256) and _frames_path(directory, entry.key).stat().st_size == entry.size
    except OSError:
        return False


def _line(entry: Entry) -> str:
    return json.dumps(asdict(entry)) + "\n"


def _read_index(directory: Path) -> list[Entry]:
    """Read the index, without a last line that a killed build left incomplete."""
    path = directory / _INDEX
    try:
        lines = read_bytes(path, JSON_BYTES).decode("utf-8", "replace").splitlines() if path.exists() else []
        entries = []
        for number, line in enumerate(lines, start=1):
            try:
                entries.append(Entry(**json.loads(line)))
            except (ValueError, TypeError) as error:
                if number < len(lines):
                    raise InputError(
                        f"{path}: line {number} is damaged; delete the cache and build it again"
                    ) from error
        return entries
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _tidy(plan: CachePlan) -> None:
    """Keep the entries of the plan only: drop incomplete lines, unfinished files, and outdated frames."""
    names = {_frames_path(plan.directory, entry.key) for entry in plan.ready if not entry.reason}
    with replacing(plan.directory / _INDEX) as index:
        write_all(index, "".join(map(_line, plan.ready)).encode())
    for path in [*plan.directory.glob("*.rgb"), *plan.directory.glob(f"*{_PART}")]:
        if path not in names:
            path.unlink(missing_ok=True)


def _free_bytes(directory: Path) -> int:
    place = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.is_dir())
    return shutil.disk_usage(place).free
