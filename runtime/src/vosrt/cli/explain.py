"""``vos-run explain``: which past cells voted for the label of a pixel, as a picture, as JSON and in words."""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from vosrt._files import check_writable, locked
from vosrt._results import open_results
from vosrt.cli import output
from vosrt.cli.segment import Request, inputs_of, open_again, reader_of
from vosrt.console import note, say, say_json
from vosrt.errors import OptionError
from vosrt.text import counted
from vosrt.types import StepResult, U8Array
from vosrt.video.base import Frame, SourceOptions
from vosrt.video.key_frames import KeyFrames
from vosrt.video.levels import Levels
from vosrt.video.overlay import OverlayStyle, draw_overlay
from vosrt.video.prompts import load_annotations
from vosrt.video.source import open_source

if TYPE_CHECKING:
    from vosrt.explanation import Explanation, Vote
    from vosrt.stream import Stream

PICTURE, DOCUMENT = "explained.jpg", "explained.json"

_QUALITY = 92  # of the JPEG, 0 to 100
_TILES = 3  # voting frames below the explained one
_TILE_PIXELS = 480  # their width
_WHITE, _BLACK, _CLICK = (255, 255, 255), (0, 0, 0), (0, 255, 255)


@dataclass(frozen=True)
class Seen:
    """A frame that may vote: its picture, its labels u8 [H, W] and the object of each cell or part u8 [h, w]."""

    frame: Frame
    labels: U8Array
    cells: U8Array


def parse_pixel(text: str) -> tuple[int, int]:
    """Return x and y of ``X,Y``.

    Raises:
        OptionError: it is none.
    """
    found = re.fullmatch(r"(\d+),(\d+)", text)
    if found is None:
        raise OptionError(f"--pixel is {text!r}; expected X,Y in pixels, such as 320,180")
    return int(found[1]), int(found[2])


def explain_pixel(request: Request, index: int, pixel: tuple[int, int]) -> int:
    """Follow objects to a frame and write what a pixel's label was read from.

    Args:
        request: source, marks, model and folder.
        pixel: x and y.

    Returns:
        0.

    Raises:
        OptionError: the frame does not come, or comes before the marks.
        InputError: the pixel is outside the frame, or the frame has the first marks.
    """
    check_writable(request.out)
    with locked(request.out):
        output.check_folder(request.out, inputs_of(request), overwrite=request.overwrite, resume=False)
        model = request.load()
        options = SourceOptions(levels=Levels(request.levels), max_megapixels=request.max_megapixels, keys=KeyFrames())
        source = open_source(request.source, start=request.start, end=index + 1, options=options)
        try:
            frames = reader_of(request, source, partial(open_again, request, options))
            marks = load_annotations(
                request.prompts,
                source,
                start=request.start,
                end=None,
                find=lambda *given: model.segment(*given, size=request.size),
                frame_at=frames,
            ).masks
            if index <= min(marks):
                raise OptionError(f"--frame is {index}; expected one after {min(marks)}, which has the first marks")
            context = request.propagation.get("context", model.manifest.inference.context)
            with request.stream(model) as stream:
                seen = follow_to(stream, source, marks, context)
                if seen[-1].frame.index != index:
                    raise OptionError(
                        f"--frame is {index}; {request.source} has {counted(seen[-1].frame.index + 1, 'frame')}"
                    )
                x, y = pixel
                found = stream.explain(y, x)
                result = stream.result({})
        finally:
            source.close()
        return _write(request, found, result, seen, pixel)


def follow_to(
    stream: Stream,
    source: Iterable[Frame],
    marks: dict[int, U8Array],
    context: int,
    stop: threading.Event | None = None,
) -> dict[int, Seen]:
    """Take all frames of a source from the first marked one on, as long as ``stop`` is not set.

    Returns:
        Those that may vote, by the stream's count, and the last one as -1.
    """
    seen: dict[int, Seen] = {}
    taken = 0
    for frame in source:
        if stop is not None and stop.is_set():
            break
        if not taken and frame.index not in marks:
            continue
        result = stream.step(frame.image, marks.get(frame.index))
        ids = np.array([0, *stream.object_ids], np.uint8)
        seen[taken] = seen[-1] = Seen(frame, result.labels, ids[stream.soft_masks().argmax(axis=-1)])
        old = taken - context - 1
        if old >= 0 and seen[old].frame.index not in marks:
            del seen[old]
        taken += 1
    return seen


def document_of(
    found: Explanation, result: StepResult, seen: dict[int, Seen], pixel: tuple[int, int]
) -> dict[str, Any]:
    """What a pixel's label was read from, as JSON.

    Args:
        found: of the newest frame.
        seen: what `follow_to` returned.
        pixel: x and y.
    """
    x, y = pixel
    votes = [
        {
            "reference": vote.reference,
            "frame": seen[vote.frame].frame.index,
            "cell": list(vote.cell),
            "x": vote.x,
            "y": vote.y,
            "object": int(seen[vote.frame].cells[vote.cell]),
            "similarity": round(vote.similarity, 5),
            "weight": round(vote.weight, 5),
        }
        for vote in found.votes
    ]
    return {
        "frame": seen[-1].frame.index,
        "pixel": [x, y],
        "object": int(result.labels[y, x]),
        "confidence": round(float(result.confidence[y, x]), 4),
        "cell": list(found.cell),
        "grid": list(found.grid),
        "votes": votes,
    }


def _write(
    request: Request, found: Explanation, result: StepResult, seen: dict[int, Seen], pixel: tuple[int, int]
) -> int:
    document = {"schema": 1, "source": request.source, **document_of(found, result, seen, pixel)}
    with open_results(request.out, "vos-run explain", {}, overwrite=request.overwrite) as results:
        data = cv2.imencode(".jpg", draw(found, seen, pixel), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
        results.write(PICTURE, data.tobytes())
        results.write_json(DOCUMENT, document)
        results.complete()
    if request.json:
        say_json({**document, "out": str(request.out), "files": [PICTURE, DOCUMENT]})
    elif not request.quiet:
        _tell(document)
        note(f"{request.out / PICTURE} shows the cells, {request.out / DOCUMENT} lists them")
    return 0


def _tell(document: dict[str, Any]) -> None:
    named = f"object {document['object']}" if document["object"] else "background"
    x, y = document["pixel"]
    say(f"Pixel {x},{y} of frame {document['frame']} is {named} ({document['confidence']:.0%} sure).")
    for reference in sorted({vote["reference"] for vote in document["votes"]}):
        shares: dict[tuple[int, int], float] = defaultdict(float)
        for vote in document["votes"]:
            if vote["reference"] == reference:
                shares[vote["frame"], vote["object"]] += vote["weight"]
        say(f"Read through reference {reference}:")
        for (frame, object_id), share in sorted(shares.items(), key=lambda each: -each[1]):
            say(f"  {share:6.1%}  frame {frame}, {f'object {object_id}' if object_id else 'background'}")


def draw(found: Explanation, seen: dict[int, Seen], pixel: tuple[int, int]) -> U8Array:
    """Draw the explained frame with its pixel, and below it the frames with the most weight and their cells.

    Returns:
        u8 [H', W', 3], BGR.
    """
    shares: dict[int, float] = defaultdict(float)
    for vote in found.votes:
        shares[vote.frame] += vote.weight
    total = sum(shares.values())
    width = _TILE_PIXELS * _TILES
    top = _tile(seen[-1], width, f"frame {seen[-1].frame.index}")
    scale = width / seen[-1].labels.shape[1]
    place = tuple(round((each + 0.5) * scale) for each in pixel)
    cv2.drawMarker(top, place, _BLACK, cv2.MARKER_CROSS, 44, 6)
    cv2.drawMarker(top, place, _CLICK, cv2.MARKER_CROSS, 40, 2)
    tiles = []
    for frame in sorted(shares, key=lambda each: -shares[each])[:_TILES]:
        text = f"frame {seen[frame].frame.index}: {shares[frame] / total:.0%}"
        tiles.append(_voted(seen[frame], [each for each in found.votes if each.frame == frame], text))
    tiles += [np.zeros_like(tiles[0])] * (_TILES - len(tiles))
    return np.vstack([top, np.hstack(tiles)])


def _voted(seen: Seen, votes: list[Vote], text: str) -> U8Array:
    tile = _tile(seen, _TILE_PIXELS, text)
    scale = _TILE_PIXELS / seen.labels.shape[1]
    for vote in votes:
        place = (round((vote.x + 0.5) * scale), round((vote.y + 0.5) * scale))
        radius = max(3, round(24 * float(np.sqrt(vote.weight))))
        cv2.circle(tile, place, radius, _BLACK, 4, cv2.LINE_AA)
        cv2.circle(tile, place, radius, _CLICK, 2, cv2.LINE_AA)
    return tile


def _tile(seen: Seen, width: int, text: str) -> U8Array:
    drawn = draw_overlay(seen.frame.image, seen.labels, OverlayStyle())
    height = round(width * drawn.shape[0] / drawn.shape[1])
    tile = cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA)
    cv2.rectangle(tile, (0, 0), (20 + 15 * len(text), 40), _BLACK, -1)
    cv2.putText(tile, text, (12, 28), cv2.FONT_HERSHEY_SIMPLEX, 0.8, _WHITE, 1, cv2.LINE_AA)
    return np.asarray(tile, np.uint8)
