"""Files of a batch on stores that fsspec knows, such as ``s3://bucket/clip.mp4``: found, and fetched for their clip."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from vosrt.cli.app import require
from vosrt.errors import SourceError
from vosrt.video.container import LIVE_SCHEMES, is_url
from vosrt.video.finding import VIDEO_SUFFIXES
from vosrt.video.masks import MASK_SUFFIXES

if TYPE_CHECKING:
    from vosrt.cli.segment import Request

_READ_BY_FFMPEG = (*LIVE_SCHEMES, "http", "https")
_NUMBERED = re.compile(r"(\d+:)?(.+)", re.DOTALL)  # "37:late.png" marks frame 37


def is_on_store(source: str) -> bool:
    """Return whether a video lies on a store of fsspec's; FFmpeg itself reads streams and what web servers hold."""
    return is_url(source) and source.partition("://")[0].lower() not in _READ_BY_FFMPEG


def find_clips(url: str) -> list[str]:
    """Return the URLs of a video, or of the videos in a folder or of a pattern.

    Raises:
        MissingExtraError: fsspec is not installed.
        SourceError: the store cannot be read, or holds no such videos.
    """
    with _asking(url) as (store, path):
        if any(each in path for each in "*?["):
            found = store.glob(path)
        elif store.isdir(path):
            found = [each for each in store.find(path) if PurePosixPath(each).suffix.lower() in VIDEO_SUFFIXES]
        else:
            found = [path] if store.exists(path) else []
        clips = sorted(store.unstrip_protocol(each) for each in found)
    if not clips:
        raise SourceError(f"{url}: no such file on the store; expected a video, a folder of videos or a pattern")
    return clips


def marks_beside(url: str) -> dict[str, Any]:
    """Return the marks that lie beside a clip under its stem, as options of ``vos-run``.

    Raises:
        MissingExtraError: fsspec is not installed.
        SourceError: the store cannot be read.
    """
    folder, _, name = url.rpartition("/")
    stem = PurePosixPath(name).stem
    with _asking(url) as (store, path):
        beside = {PurePosixPath(each).name for each in store.ls(path.rpartition("/")[0], detail=False)}
    masks = [stem + suffix for suffix in sorted(MASK_SUFFIXES) if stem + suffix in beside - {name}]
    if masks:
        return {"mask": [f"{folder}/{each}" for each in masks]}
    return {"polygon": [f"{folder}/{stem}.json"]} if f"{stem}.json" in beside else {}


@contextmanager
def fetched(request: Request) -> Iterator[Request]:
    """Give the request with local files instead of those on stores, which go when its clip is done.

    A process holds the files of one clip, in the folder of temporary files.

    Raises:
        MissingExtraError: fsspec is not installed.
        SourceError: a file cannot be fetched.
    """
    prompts, places = request.prompts, count()
    with TemporaryDirectory(prefix="vosrt-", ignore_cleanup_errors=True) as folder:

        def local(text: str) -> str:
            number, url = match.groups(default="") if (match := _NUMBERED.fullmatch(text)) else ("", text)
            return number + _fetch(url, Path(folder, str(next(places)))) if is_url(url) else text

        yield replace(
            request,
            source=local(request.source) if is_on_store(request.source) else request.source,
            prompts=replace(
                prompts, masks=tuple(map(local, prompts.masks)), polygons=tuple(map(local, prompts.polygons))
            ),
        )


def _fetch(url: str, folder: Path) -> str:
    with _asking(url):
        import fsspec

        kept = {"cache_storage": str(folder), "same_names": True}  # results name their source
        return str(fsspec.open_local(f"simplecache::{url}", simplecache=kept))


@contextmanager
def _asking(url: str) -> Iterator[tuple[Any, str]]:
    """Give the store of a URL and the path there; its errors, which have no common base, become ours."""
    require("fsspec", "fsspec", "fsspec")
    from fsspec.core import url_to_fs

    try:
        yield url_to_fs(url)
    except Exception as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise SourceError(f"{url}: {reason}; expected a file that fsspec can read") from error
