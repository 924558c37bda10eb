"""Several objects, occlusion and absence with exact labels: the object of one sequence pasted into another.

    python -m benchmarks.accuracy.composites --davis PATH  # at 240; renews its rows of results/composites.jsonl
    python -m benchmarks.accuracy.composites --davis PATH --write OUT  # writes them in the layout of DAVIS
    python -m benchmarks.accuracy.composites --toy  # seconds, two drawn sequences, nothing written

The pasted object, 2, keeps its pixels and its motion. It passes in front of the sequence's own object, 1, or behind it,
or leaves the frame to the right for the middle third and comes back. Sequences of one object thus give what they lack.
Pairs are neighbours in the order of names, so that nothing is chosen.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from benchmarks.machine import parser_of, write
from benchmarks.report.tables import read as read_rows
from vosrt import Model
from vosrt.metrics import score_sequence
from vosrt.types import U8Array
from vosrt.video.images import ImageFolderSource
from vosrt_train.validate import find_sequences, read_annotations

NAME = "composites"
KINDS = ("front", "behind", "leaves")
HOST, GUEST = 1, 2
WITHIN = 5  # frames between an event and the one that is found for it


@dataclass(frozen=True)
class Sequence:
    """A sequence with one object: frames u8 [T, H, W, 3] BGR and its masks u8 [T, H, W], 0 and 1."""

    name: str
    frames: list[U8Array]
    masks: list[U8Array]


def composite(host: Sequence, guest: Sequence, kind: str) -> Sequence:
    """Paste the object of one sequence into another.

    Args:
        host: the sequence with object 1.
        guest: the sequence of object 2, whose surroundings are not seen.
        kind: ``"front"``, ``"behind"`` or ``"leaves"`` (in front, out of the frame for the middle third).

    Returns:
        As many frames as both have; masks of 0, 1 and 2.
    """
    count = min(len(host.frames), len(guest.frames))
    height, width = host.masks[0].shape
    frames, masks = [], []
    for t in range(count):
        shift = round(width * absence(t / max(count - 1, 1))) if kind == "leaves" else 0
        move = np.array([[1, 0, shift], [0, 1, 0]], np.float64)
        picture = cv2.resize(guest.frames[t], (width, height), interpolation=cv2.INTER_AREA)
        outline = cv2.resize(guest.masks[t], (width, height), interpolation=cv2.INTER_NEAREST)
        picture, outline = (cv2.warpAffine(image, move, (width, height)) for image in (picture, outline))
        pasted = (outline > 0) & ((host.masks[t] == 0) | (kind != "behind"))
        frames.append(np.where(pasted[..., None], picture, host.frames[t]).astype(np.uint8))
        masks.append(np.where(pasted, GUEST, host.masks[t]).astype(np.uint8))
    return Sequence(f"{host.name}+{guest.name}-{kind}", frames, masks)


def absence(time: float) -> float:
    """Return how far to the right the leaving object is, in frame widths, at a time in [0, 1]: 0, away, 0."""
    return float(np.clip(np.minimum(time - 0.2, 0.8 - time) * 7.5, 0, 1))


def composites(sequences: list[Sequence]) -> Iterator[Sequence]:
    """Paste the object of each sequence into the one before it, in every kind."""
    for host, guest in zip(sequences, [*sequences[1:], sequences[0]], strict=True):
        for kind in KINDS:
            yield composite(host, guest, kind)


def score(model: Model, sequence: Sequence, size: int) -> dict[str, Any]:
    """Segment one composite.

    Returns:
        J&F of both objects in percent; of frames without object 2, the mean number of pixels in percent of the frame
        that carry its id, as they are and without those of a lost object; events of both, see `count_events`.
    """
    labels: list[U8Array] = []
    states: dict[int, list[str]] = {HOST: [], GUEST: []}
    with model.stream(size=size) as stream:
        for frame in sequence.frames:
            result = stream.step(frame) if labels else stream.start(frame, sequence.masks[0])
            labels.append(result.labels)
            for i, of_object in states.items():
                of_object.append(result.objects[i].state if i in result.objects else "present")
    scores = score_sequence(labels, sequence.masks)
    absent = [t for t, mask in enumerate(sequence.masks) if t and not (mask == GUEST).any()]
    wrong = [100 * float((labels[t] == GUEST).mean()) for t in absent]
    kept = [ghost * (states[GUEST][t] != "lost") for t, ghost in zip(absent, wrong, strict=True)]
    true, by_pixel = (
        {i: [bool((each == i).any()) for each in maps] for i in states} for maps in (sequence.masks, labels)
    )
    by_state = {i: presence_of(each) for i, each in states.items()}
    return {
        "composite": sequence.name,
        "kind": sequence.name.rsplit("-", 1)[1],
        "host": round(100 * scores[HOST].j_and_f, 2),
        "guest": round(100 * scores[GUEST].j_and_f, 2),
        "absent_frames": len(absent),
        "ghost": round(statistics.mean(wrong), 3) if wrong else None,
        "ghost_not_lost": round(statistics.mean(kept), 3) if kept else None,
        "events": total([count_events(true[i], by_state[i]) for i in states]),
        "events_by_pixel": total([count_events(true[i], by_pixel[i]) for i in states]),
    }


def presence_of(states: list[str]) -> list[bool]:
    """Whether an object is in the picture by its states; an unsure one stays what it was."""
    shown = [True]
    for state in states:
        shown.append(shown[-1] if state == "unsure" else state != "lost")
    return shown[1:]


def count_events(true: list[bool], found: list[bool]) -> dict[str, list[int]]:
    """Count losses and returns of an object: ``[true, found, matched]`` of each.

    A found event matches a true one of its kind that is at most `WITHIN` frames away, each one at most once.
    """
    counts = {}
    for kind, shown in (("lost", False), ("back", True)):
        expected, ours = (
            [t for t in range(1, len(each)) if each[t] is shown and each[t - 1] is not shown] for each in (true, found)
        )
        free, matched = list(expected), 0
        for t in ours:
            near = [each for each in free if abs(each - t) <= WITHIN]
            if near:
                free.remove(min(near, key=lambda each: abs(each - t)))
                matched += 1
        counts[kind] = [len(expected), len(ours), matched]
    return counts


def total(counts: list[dict[str, list[int]]]) -> dict[str, list[int]]:
    """The sums of what `count_events` gave."""
    return {kind: [sum(part) for part in zip(*(each[kind] for each in counts), strict=True)] for kind in counts[0]}


def read(root: Path, limit: int) -> list[Sequence]:
    """Read the sequences that have one object."""
    found = []
    for sequence in find_sequences(root, []):
        source = ImageFolderSource(sequence.frames)
        masks = [(mask > 0).astype(np.uint8) for mask in read_annotations(sequence, source)[:limit]]
        frames = [frame.image for _, frame in zip(range(limit), source, strict=False)]
        found.append(Sequence(sequence.name, frames, masks))
    return found


def drawn() -> list[Sequence]:
    """Two sequences of a square that moves over a texture, for a toy run."""
    result = []
    for number in range(2):
        random = np.random.default_rng(number)
        ground = cv2.GaussianBlur(random.integers(0, 256, (64, 96, 3), dtype=np.uint8), (0, 0), 2)
        frames, masks = [], []
        for t in range(10):
            mask = np.zeros((64, 96), np.uint8)
            mask[10 + 20 * number : 30 + 20 * number, 8 + 4 * t : 28 + 4 * t] = 1
            frames.append(np.where(mask[..., None], (40, 200 * number, 220), ground).astype(np.uint8))
            masks.append(mask)
        result.append(Sequence(f"square{number}", frames, masks))
    return result


def save(sequence: Sequence, root: Path) -> None:
    """Write a composite in the layout of DAVIS."""
    for part, suffix, pictures in (("JPEGImages", "jpg", sequence.frames), ("Annotations", "png", sequence.masks)):
        folder = root / part / "480p" / sequence.name
        folder.mkdir(parents=True, exist_ok=True)
        for t, picture in enumerate(pictures):
            if part == "Annotations":
                Image.fromarray(picture).save(folder / f"{t:05d}.{suffix}")
            else:
                cv2.imwrite(str(folder / f"{t:05d}.{suffix}"), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])


def main() -> None:
    """Make the composites; score them, or write them."""
    parser = parser_of(__doc__)
    parser.add_argument("--davis", type=Path, help="sequences with one object in the layout of DAVIS")
    parser.add_argument("--bundle", action="append", help="default: default")
    parser.add_argument("--size", type=int, default=240, help="short side of the working frame")
    parser.add_argument("--frames", type=int, default=50, help="frames of a composite, at most")
    parser.add_argument("--write", type=Path, help="write the composites instead of scoring them")
    arguments = parser.parse_args()
    if arguments.davis is None and not arguments.toy:
        parser.error("--davis PATH is missing")
    sequences = drawn() if arguments.toy else read(arguments.davis, arguments.frames)
    if arguments.write is not None:
        for each in composites(sequences):
            save(each, arguments.write)
        return
    bundles = arguments.bundle or ["default"]
    rows = [] if arguments.toy else [row for row in read_rows(NAME)[1] if row["bundle"] not in bundles]
    for bundle in bundles:
        model = Model.load(bundle)
        of_bundle = []
        for each in composites(sequences):
            run = {"bundle": bundle, "size": arguments.size, "frames": arguments.frames}
            of_bundle.append({**run, **score(model, each, arguments.size)})
            print(of_bundle[-1], flush=True)
        for kind in KINDS:
            of_kind = [row for row in of_bundle if row["kind"] == kind]
            mean = {part: round(statistics.mean(row[part] for row in of_kind), 2) for part in ("host", "guest")}
            ghosts = [row["ghost"] for row in of_kind if row["ghost"] is not None]
            ghost = round(statistics.mean(ghosts), 3) if ghosts else None
            kept = [row["ghost_not_lost"] for row in of_kind if row["ghost_not_lost"] is not None]
            rows.append(
                {
                    "bundle": bundle,
                    "size": arguments.size,
                    "frames": arguments.frames,
                    "composite": "mean",
                    "kind": kind,
                    **mean,
                    "ghost": ghost,
                    "ghost_not_lost": round(statistics.mean(kept), 3) if kept else None,
                    **{rule: total([row[rule] for row in of_kind]) for rule in ("events", "events_by_pixel")},
                }
            )
        rows += of_bundle
    write(NAME, rows, toy=arguments.toy)


if __name__ == "__main__":
    main()
