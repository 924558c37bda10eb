"""Everything that ``vos-run`` writes, from the labels of the page, as one ZIP file."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vosrt._files import locked
from vosrt._results import open_results
from vosrt.cli.results import SUMMARY, Wanted
from vosrt.errors import InputError
from vosrt.page.frames import FrameStore
from vosrt.page.project import State
from vosrt.types import PropagationOptions
from vosrt.video.base import SegmentedFrame
from vosrt.video.interchange import FORMATS
from vosrt.video.overlay import OverlayStyle, parse_colours
from vosrt.video.sinks import ResultFolder

KINDS = ("video", "masks", "rle", "cutout", *FORMATS)


def export(
    frames: FrameStore,
    state: State,
    kinds: tuple[str, ...],
    folder: Path,
    *,
    options: PropagationOptions,
    on_frame: Callable[[int], None],
    stop: threading.Event,
) -> Path | None:
    """Write the results of all frames of a clip.

    Args:
        state: what was found in them; a frame without labels is background.
        kinds: of `KINDS`; ``objects.csv`` and ``summary.json`` are always written.
        folder: a new one, for the results and the ZIP file.
        options: with the thresholds by which objects are lost and back.
        on_frame: called with the number of frames that are written.
        stop: ends the work.

    Returns:
        The ZIP file; None if it was stopped.

    Raises:
        InputError: there is nothing to export, or a kind is unknown.
        WorkError: the results cannot be written.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise InputError(f"{unknown[0]!r} cannot be exported; expected {', '.join(KINDS)}")
    if not state.found:
        raise InputError("nothing was marked or followed yet; there is nothing to export")
    wanted = Wanted(
        video="video" in kinds,
        png="masks" in kinds,
        rle="rle" in kinds,
        cut_out="png" if "cutout" in kinds else "",
        polygons=tuple(each for each in FORMATS if each in kinds),
        style=OverlayStyle(colours=parse_colours(tuple(f"{i}={each.colour}" for i, each in state.objects.items()))),
    )
    results_folder, empty = folder / "vosrt", np.zeros((frames.info.height, frames.info.width), np.uint8)
    with locked(results_folder), open_results(results_folder, "vos-run ui", {}) as results:
        sink = ResultFolder(results, wanted.sinks(results, frames.info, tuple(sorted(state.objects))), options)
        try:
            for position in range(frames.oldest, len(frames)):
                if stop.is_set():
                    return None
                found = state.found.get(position)
                if found is None and frames.info.live:  # kept while a picture was frozen
                    continue
                labels, confidence = (empty, {}) if found is None else (found.labels, dict(found.confidence))
                sink.write(SegmentedFrame(frames.frame(position), labels, tuple(sorted(confidence)), confidence))
                on_frame(position + 1)
        finally:
            sink.close()
        results.write_json(SUMMARY, _summary(frames, state, wanted, sink))
        results.complete()
    return _zipped(results_folder, folder / "vosrt.zip")


def _summary(frames: FrameStore, state: State, wanted: Wanted, sink: ResultFolder) -> dict[str, Any]:
    marked = {frames.kept[position][0] for position, each in state.found.items() if each.marked}
    return {
        "schema": 1,
        "source": frames.info.name,
        "files": wanted.files,
        "frames": sink.frames,
        "width": frames.info.width,
        "height": frames.info.height,
        "objects": [vars(each) for _, each in sorted(state.objects.items())],
        "marked_frames": sorted(marked),
        **sink.summary(),
    }


def _zipped(folder: Path, target: Path) -> Path:
    """Pack a folder; videos and pictures are compressed already."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.name.startswith(".vosrt"):
                packed = zipfile.ZIP_DEFLATED if path.suffix in (".csv", ".json", ".jsonl") else zipfile.ZIP_STORED
                archive.write(path, path.relative_to(folder), packed)
    return target
