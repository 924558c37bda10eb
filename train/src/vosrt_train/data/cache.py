"""The cache: every frame of every video, resized, as raw bytes that are memory-mapped.

A directory with one file of frames per video and ``index.jsonl``, a line per video that is appended once its file
is in place. A build that was killed goes on with the videos that have no line yet. The key of a video is made from
its name, size, time of change and the settings: what was changed or is wanted differently is decoded again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np

from vosrt.errors import InputError, OutputError, SourceError, WorkError
from vosrt.types import U8Array
from vosrt_train.data.config import CacheConfig
from vosrt_train.data.decode import Entry, decode, estimate_size
from vosrt_train.data.sources import Skipped, Source, find_sources

FORMAT = 1
_INDEX = "index.jsonl"
_PART = ".part"  # unfinished files; only the process that holds the lock may have any


@dataclass(frozen=True)
class CachedVideo:
    """A video in the cache.

    Attributes:
        name: of the source, relative to the directory of videos.
        path: file with u8 [frames, height, width, 3], RGB.
        frames: number of frames.
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        fps: frames per second.
        note: why it ends early, where it does.
    """

    name: str
    path: Path
    frames: int
    height: int
    width: int
    fps: float
    note: str = ""

    def open(self) -> U8Array:
        """Map the frames, u8 [frames, height, width, 3] RGB, read-only; nothing is read until it is used."""
        return np.memmap(self.path, np.uint8, "r", shape=(self.frames, self.height, self.width, 3))


@dataclass(frozen=True)
class Cache:
    """The videos that can be used, in the order of their names, and those that cannot."""

    videos: tuple[CachedVideo, ...]
    skipped: tuple[Skipped, ...]

    @property
    def size(self) -> int:
        """Bytes of all frames."""
        return sum(video.frames * video.height * video.width * 3 for video in self.videos)


@dataclass(frozen=True)
class CachePlan:
    """What building a cache would do.

    Attributes:
        directory: of the cache.
        config: what is kept of each video.
        ready: entries that are there already.
        missing: sources still to be decoded, with their keys.
        skipped: sources that cannot be listed.
        missing_bytes: about what decoding them will write, from the headers of the videos.
        free_bytes: free space where the cache is.
    """

    directory: Path
    config: CacheConfig
    ready: tuple[Entry, ...]
    missing: tuple[tuple[str, Source], ...]
    skipped: tuple[Skipped, ...]
    missing_bytes: int
    free_bytes: int

    def describe(self) -> str:
        """One line for people."""
        have, lack = len(self.ready), len(self.missing)
        if not lack:
            return f"cache {self.directory}: all {have} videos are there"
        return (
            f"cache {self.directory}: {have} videos are there, {lack} to decode, "
            f"about {self.missing_bytes / 1e9:.1f} GB ({self.free_bytes / 1e9:.1f} GB free)"
        )


@dataclass(frozen=True)
class Progress:
    """How far a build is: ``done`` of ``total`` videos, ``written`` bytes, and the video that was just done."""

    done: int
    total: int
    written: int
    name: str


def plan_cache(root: Path, directory: Path, config: CacheConfig) -> CachePlan:
    """Look which videos there are and which of them the cache lacks; decodes nothing.

    Args:
        root: directory of videos and folders of frames.
        directory: of the cache; need not exist. One cache holds the videos of one ``root``.
        config: what to keep of each video.

    Raises:
        SourceError: there are no videos.
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


def build_cache(plan: CachePlan, *, workers: int = 2, on_progress: Callable[[Progress], object] | None = None) -> Cache:
    """Decode what the plan says is missing. May be killed at any moment and started again.

    Args:
        plan: from `plan_cache`.
        workers: processes that decode; 0 decodes in this one.
        on_progress: called after each video.

    Raises:
        OutputError: there is not enough space, the place cannot be written, or another process is building there.
        WorkError: a decoding process died.
        SourceError: not one video can be used.
    """
    if plan.missing_bytes > plan.free_bytes:
        raise OutputError(
            f"cache {plan.directory}: {plan.missing_bytes / 1e9:.1f} GB are needed and {plan.free_bytes / 1e9:.1f} GB "
            "are free; make space, or keep smaller or fewer frames (short_side, max_frames)"
        )
    try:
        with _lock(plan.directory):
            _tidy(plan)
            _decode_missing(plan, workers, on_progress or (lambda _: None))
    except OSError as error:
        raise OutputError(f"cache {plan.directory}: cannot be written ({error.strerror or error})") from error
    return open_cache(plan.directory, min_frames=plan.config.min_frames, skipped=plan.skipped)


def open_cache(directory: Path, *, min_frames: int, skipped: Iterable[Skipped] = ()) -> Cache:
    """Open a cache that was built.

    Args:
        directory: of the cache.
        min_frames: videos with fewer frames are skipped.
        skipped: further videos to list as such.

    Raises:
        InputError: its index cannot be read.
        SourceError: not one video can be used.
    """
    videos, unusable = [], list(skipped)
    for entry in _read_index(directory):
        if entry.reason or not _is_whole(directory, entry):
            unusable.append(Skipped(entry.name, entry.reason or "its frames are not in the cache; build it again"))
        elif entry.frames < min_frames:
            unusable.append(Skipped(entry.name, f"has {entry.frames} frames; expected {min_frames} or more"))
        else:
            path = _frames_path(directory, entry.key)
            size = (entry.frames, entry.height, entry.width)
            videos.append(CachedVideo(entry.name, path, *size, entry.fps, entry.note))
    if not videos:
        reasons = f"; the first of {len(unusable)}: {unusable[0].name} {unusable[0].reason}" if unusable else ""
        raise SourceError(f"cache {directory}: holds no video that can be used{reasons}")
    videos.sort(key=lambda video: video.name)
    return Cache(tuple(videos), tuple(sorted(unusable, key=lambda each: each.name)))


def process_context() -> BaseContext:
    """How helper processes start: from a clean process, never a copy of one that has threads."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


def end_with_parent() -> None:
    """Have this helper process end when the process that uses it has died, in whichever way.

    A killed process cannot tell its helpers, and those of a fork server would wait for it for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.join,), daemon=True).start()


def _end_after(wait: Callable[[], object]) -> None:
    wait()
    os._exit(1)


def _decode_missing(plan: CachePlan, workers: int, on_progress: Callable[[Progress], object]) -> None:
    written = 0
    with (plan.directory / _INDEX).open("a", encoding="utf-8") as index:
        for done, entry in enumerate(_decoded(plan, workers), start=1):
            index.write(_line(entry))
            index.flush()
            written += entry.size
            on_progress(Progress(done, len(plan.missing), written, entry.name))


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
    try:
        with part.open("wb") as file:
            entry = decode(source, key, file, config)
        if not entry.reason:
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
        return _frames_path(directory, entry.key).stat().st_size == entry.size
    except OSError:
        return False


def _line(entry: Entry) -> str:
    return json.dumps(asdict(entry), ensure_ascii=False) + "\n"


def _read_index(directory: Path) -> list[Entry]:
    """Read the index; the last line, cut short where a build was killed, is left out."""
    path = directory / _INDEX
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
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
    """Leave exactly the entries that are wanted: no torn line, unfinished file, or frames of videos that changed."""
    names = {_frames_path(plan.directory, entry.key) for entry in plan.ready if not entry.reason}
    index = plan.directory / _INDEX
    part = index.with_suffix(_PART)
    part.write_text("".join(map(_line, plan.ready)), encoding="utf-8")
    part.replace(index)
    for path in [*plan.directory.glob("*.rgb"), *plan.directory.glob(f"*{_PART}")]:
        if path not in names:
            path.unlink(missing_ok=True)


def _free_bytes(directory: Path) -> int:
    place = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.is_dir())
    return shutil.disk_usage(place).free


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Hold the cache alone; the system gives the lock back however the process ends."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"cache {directory}: another process is building it; wait until it is done") from error
        yield
