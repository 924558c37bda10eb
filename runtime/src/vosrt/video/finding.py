"""Search for videos, as files and folders of frames, at any depth of a directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vosrt.errors import SourceError
from vosrt.video.images import IMAGE_SUFFIXES

_VIDEOS = ".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv .y4m"
VIDEO_SUFFIXES = frozenset(_VIDEOS.split())
_MASKS = "annotations"


@dataclass(frozen=True)
class Source:
    """A video file, or a folder whose images are the frames of a video.

    Attributes:
        name: path relative to the searched directory, with ``/``.
        path: of the file or folder.
        size: bytes of the file, or of all images.
        mtime_ns: time of the last change in nanoseconds; of a folder, that of its newest image.
        images: number of images of a folder, 0 for a file.
    """

    name: str
    path: Path
    size: int
    mtime_ns: int
    images: int = 0


@dataclass(frozen=True)
class Skipped:
    """A video that cannot be used, and the reason in words."""

    name: str
    reason: str


def find_sources(root: Path) -> tuple[list[Source], list[Skipped]]:
    """Find the videos in a directory, at any depth.

    Every file with the suffix of a video counts, and every folder that directly holds images, except where these
    are masks by the custom of annotated data sets (anything below a folder "Annotations"). Hidden files and folders
    are left out; links are followed, each folder being visited once.

    Args:
        root: a directory, a video or a folder of frames.

    Returns:
        The videos, and those that cannot be listed; both in the order of their names.

    Raises:
        SourceError: ``root`` does not exist or has no video.
    """
    if not root.exists():
        raise SourceError(f"{root}: no such file or folder; expected a folder of videos or of frames")
    sources: list[Source] = []
    skipped: list[Skipped] = []
    if root.is_file():
        sources.append(_file(root, root.name))
    for folder, files in _walk(root, skipped):
        name = folder.relative_to(root).as_posix()
        images = [file for file in files if Path(file.name).suffix.lower() in IMAGE_SUFFIXES]
        try:
            if images and _MASKS in folder.relative_to(root.parent).as_posix().lower().split("/"):
                skipped.append(Skipped(name, "holds annotations, not frames"))
            elif images:
                sources.append(_folder(folder, folder.name if name == "." else name, images))
        except OSError as error:
            skipped.append(Skipped(name, f"cannot be read ({error.strerror})"))
        for file in files:
            path = folder / file.name
            if path.suffix.lower() in VIDEO_SUFFIXES:
                try:
                    sources.append(_file(path, path.relative_to(root).as_posix()))
                except OSError as error:
                    skipped.append(Skipped(path.relative_to(root).as_posix(), f"cannot be read ({error.strerror})"))
    if not sources and not skipped:
        raise SourceError(f"{root}: holds no videos; expected video files, or folders of frames, at any depth")
    return sorted(sources, key=lambda source: source.name), sorted(skipped, key=lambda each: each.name)


def _walk(root: Path, skipped: list[Skipped]) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    """Yield every folder once, even if several links lead to it, with the files directly in it."""
    seen: set[tuple[int, int]] = set()
    waiting = [root] if root.is_dir() else []
    while waiting:
        folder = waiting.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listing:
                entries = [entry for entry in listing if not entry.name.startswith(".")]
        except OSError as error:
            skipped.append(Skipped(folder.relative_to(root).as_posix(), f"cannot be listed ({error.strerror})"))
            continue
        waiting += sorted((Path(entry.path) for entry in entries if entry.is_dir()), reverse=True)
        yield folder, [entry for entry in entries if not entry.is_dir()]


def _file(path: Path, name: str) -> Source:
    status = path.stat()
    return Source(name, path, status.st_size, status.st_mtime_ns)


def _folder(folder: Path, name: str, images: list[os.DirEntry[str]]) -> Source:
    statuses = [image.stat() for image in images]
    newest = max(status.st_mtime_ns for status in statuses)
    return Source(name, folder, sum(status.st_size for status in statuses), newest, len(images))
