"""How good is a mask after 1, 3 and 5 clicks, and from a box, beside GrabCut?

    python -m benchmarks.accuracy.clicks PATH/TO/davis     # with JPEGImages/480p and Annotations/480p
    python -m benchmarks.accuracy.clicks PATH --search 60  # also 60 other sets of constants, for leave-one-out
    python -m benchmarks.accuracy.clicks --toy             # a rendered scene; nothing is written

The first frame of every sequence is clicked as in the literature: at the point of the largest error region, missing or
too much, that is farthest from the region's border; at first that is the object. GrabCut is given the same: discs of 5
pixels at the clicks are certain, all else is guessed, at first as object within a quarter of the frame's short side.

The constants were chosen on frames of these sequences. So that they are not praised for that, the leave-one-out row of
--search shows each first frame with the set that is best on the first and middle frames of the seven other sequences.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.machine import parser_of, write
from benchmarks.scenes.picture import render
from vosrt.evaluation.layouts import open_dataset
from vosrt.model import Model
from vosrt.prompt.clicked import ClickedFrame, click_options
from vosrt.prompt.points import BoolArray, Point
from vosrt.types import F32Array, U8Array
from vosrt.video.boxes import cut_out

CLICKS = 5
EVERY = 10  # frames, of the row of more frames
MORE = "every tenth frame"
MIDDLE = 0.5  # of a sequence: its other frame that the search looks at
GRABCUT_SIDE = 640  # pixels
LOOSE = 20  # pixels by which a loose box is wider on each side
SPREAD = 0.35  # of the logarithm of a constant in the search

Scene = tuple[str, U8Array, BoolArray]  # name, frame, annotation
Marker = Callable[[list[Point]], BoolArray]


def iou(found: BoolArray, truth: BoolArray) -> float:
    """Intersection over union, in percent."""
    return round(100 * float((found & truth).sum() / max(1, (found | truth).sum())), 2)


def next_click(found: BoolArray, truth: BoolArray) -> Point | None:
    """The middle of the largest error region; None if there is no error."""
    best: tuple[int, BoolArray, bool] | None = None
    for errors, positive in ((truth & ~found, True), (found & ~truth, False)):
        count, parts, boxes, _ = cv2.connectedComponentsWithStats(errors.astype(np.uint8))
        if count > 1:
            largest = 1 + int(boxes[1:, cv2.CC_STAT_AREA].argmax())
            area = int(boxes[largest, cv2.CC_STAT_AREA])
            if best is None or area > best[0]:
                best = area, parts == largest, positive
    if best is None:
        return None
    distance = cv2.distanceTransform(np.pad(best[1].astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return Point(float(x), float(y), best[2])


def click(truth: BoolArray, mark: Marker) -> tuple[list[float], list[float]]:
    """IoU in percent and milliseconds of processor time for each click."""
    points: list[Point] = []
    found, scores, took = np.zeros_like(truth), [], []
    for _ in range(CLICKS):
        point = next_click(found, truth)
        if point is not None:
            points.append(point)
        began = time.process_time()
        found = mark(points)
        took.append(1e3 * (time.process_time() - began))
        scores.append(iou(found, truth))
    return scores, took


def grabcut(image: U8Array) -> Marker:
    """GrabCut (Rother et al. 2004) that is given clicks; of at most the size at which ``--box`` used it."""
    scale = min(1.0, GRABCUT_SIDE / max(image.shape[:2]))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    state = np.full(small.shape[:2], cv2.GC_PR_BGD, np.uint8)

    def mark(points: list[Point]) -> BoolArray:
        for number, point in enumerate(points):
            place = int(point.x * scale), int(point.y * scale)
            if len(points) == 1 and not number:
                cv2.circle(state, place, min(small.shape[:2]) // 4, cv2.GC_PR_FGD, -1)
            cv2.circle(state, place, 5, cv2.GC_FGD if point.positive else cv2.GC_BGD, -1)
        cv2.setRNGSeed(0)
        with suppress(cv2.error):  # too few colours to tell apart
            models = np.zeros((1, 65)), np.zeros((1, 65))
            cv2.grabCut(small, state, (0, 0, 0, 0), *models, 3, cv2.GC_INIT_WITH_MASK)
        found = ((state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)).astype(np.float32)
        return np.asarray(cv2.resize(found, (image.shape[1], image.shape[0])) > 0.5)

    return mark


def boxes(image: U8Array, truth: BoolArray, ours: ClickedFrame) -> dict[str, float]:
    """IoU from a tight and from a loose box, in percent."""
    ys, xs = np.nonzero(truth)
    height, width = truth.shape
    scores = {}
    for name, margin in (("tight", 0), ("loose", LOOSE)):
        left, top = max(0, int(xs.min()) - margin), max(0, int(ys.min()) - margin)
        right, bottom = min(width, int(xs.max()) + 1 + margin), min(height, int(ys.max()) + 1 + margin)
        box = left, top, right - left, bottom - top
        scores[f"box_{name}_grabcut"] = iou(cut_out(image, box)[0] > 0, truth)
        found = cut_out(image, box, lambda image, points, box: ours.segment(points, box))[0] > 0
        scores[f"box_{name}"] = iou(found, truth)
    return scores


class Clicked:
    """An encoded frame with its annotation, on which constants can be tried."""

    def __init__(self, model: Model, scene: Scene) -> None:
        self.name, self.image, self.truth = scene
        self.features, self.working = model.encode(self.image).on_host()
        self.stride = model.manifest.encoder.stride

    def ready(self, options: dict[str, float]) -> ClickedFrame:
        """The frame with some constants."""
        features: F32Array = self.features
        return ClickedFrame(self.working, features, *self.truth.shape, stride=self.stride, options=options)

    def clicks(self, options: dict[str, float]) -> list[float]:
        """IoU after each click, in percent."""
        return click(self.truth, self.ready(options).segment)[0]


def measure(frame: Clicked) -> dict[str, Any]:
    """The row of one sequence."""
    ready = frame.ready({})
    scores, took = click(frame.truth, ready.segment)
    theirs, theirs_took = click(frame.truth, grabcut(frame.image))
    return {
        "sequence": frame.name,
        "clicks": scores,
        "clicks_grabcut": theirs,
        "ms": [round(each, 1) for each in took],
        "ms_grabcut": [round(each, 1) for each in theirs_took],
        **boxes(frame.image, frame.truth, ready),
    }


def changed(options: dict[str, float], source: random.Random) -> dict[str, float]:
    """The constants with a few of them changed."""
    values = dict(options)
    for name in source.sample(sorted(values), source.choice((1, 2, 3, 4, 6))):
        value = values[name] * np.exp(source.gauss(0, SPREAD))
        values[name] = max(4, round(value)) if isinstance(values[name], int) else float(value)
    return values


def search(frames: list[Clicked], count: int, seed: int = 0) -> dict[str, Any]:
    """Try sets of constants, each a change of the best so far; the leave-one-out row.

    Args:
        frames: the first of every sequence, then others.
        count: sets besides the one that libvosrt has.
    """
    source, best = random.Random(seed), click_options()
    tried: list[list[list[float]]] = []  # set, sequence, click
    worth: list[float] = []
    for number in range(count + 1):
        options = changed(best, source) if number else best
        scores = [frame.clicks(options) for frame in frames]
        tried.append(scores)
        worth.append(float(np.mean([_worth(each) for each in scores])))
        if worth[-1] == max(worth):
            best = options
            print(number, round(worth[-1], 2), best, flush=True)
    return {"sequence": "leave-one-out", **leave_one_out(np.array(tried), [frame.name for frame in frames])}


def leave_one_out(scores: Any, names: list[str]) -> dict[str, Any]:
    """The first frame of each sequence with the set that is best on the other sequences.

    Args:
        scores: [sets, frames, clicks], IoU in percent.
        names: of the sequence of each frame.
    """
    worth = np.array([[_worth(each) for each in one] for one in scores])
    held = []
    for name in dict.fromkeys(names):
        others = [number for number, other in enumerate(names) if other != name]
        held.append(scores[int(worth[:, others].mean(axis=1).argmax()), names.index(name)].tolist())
    mean = [round(float(each), 2) for each in np.mean(held, axis=0)]
    return {"clicks": mean, "sets": len(scores), "sequences": len(held)}


def _worth(scores: list[float]) -> float:
    """What the search looks for: good masks after three and five clicks, a good start, no click that undoes others."""
    lost = sum(max(0.0, before - after) for before, after in pairwise(scores))
    return 0.3 * scores[0] + scores[2] + scores[4] - 0.5 * lost


def scenes(root: Path, place: float = 0.0, every: int = 0) -> list[Scene]:
    """Frames of every sequence in which the object is seen, with their annotations.

    Args:
        root: of the sequences.
        place: of the one frame of each; 0 is the first, below 1 are all others.
        every: from the first on, each so many frames, in place of one.
    """
    found = []
    for sequence in open_dataset("davis16", root).sequences:
        stems = sorted(sequence.annotations)
        frames = {path.stem: path for path in sequence.frames.iterdir()}
        for stem in stems[::every] if every else [stems[int(place * len(stems))]]:
            truth = np.asarray(cv2.imread(str(sequence.annotations[stem]), cv2.IMREAD_GRAYSCALE)) > 0
            if truth.any():
                found.append((sequence.name, np.asarray(cv2.imread(str(frames[stem])), np.uint8), truth))
    return found


def more_frames(model: Model, root: Path) -> dict[str, Any]:
    """The row of every tenth frame: eight first frames are few. Means over frames, then over sequences."""
    scores: dict[str, list[list[float]]] = {}
    for scene in scenes(root, every=EVERY):
        scores.setdefault(scene[0], []).append(Clicked(model, scene).clicks({}))
    means = np.mean([np.mean(each, axis=0) for each in scores.values()], axis=0)
    frames = sum(len(each) for each in scores.values())
    return {"sequence": MORE, "clicks": [round(float(each), 2) for each in means], "frames": frames}


def main() -> None:
    """Parse options, run, write results/clicks.jsonl."""
    parser = parser_of(__doc__)
    parser.add_argument("root", type=Path, nargs="?")
    parser.add_argument("--bundle", default="default")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--search", type=int, default=0, metavar="N", help="sets of constants to try")
    options = parser.parse_args()
    model = Model.load(options.bundle, engine=options.engine)
    if options.toy:
        image, labels = render(0)
        print(measure(Clicked(model, ("ball", image, labels == 1))))
        return
    if options.root is None:
        parser.error("give the path of annotated sequences in the layout of DAVIS, or --toy")
    frames = [Clicked(model, scene) for scene in scenes(options.root)]
    rows = []
    for frame in frames:
        rows.append(measure(frame))
        print(rows[-1], flush=True)
    rows.append(more_frames(model, options.root))
    print(rows[-1], flush=True)
    if options.search:
        others = [Clicked(model, scene) for scene in scenes(options.root, MIDDLE)]
        rows.append(search([*frames, *others], options.search))
        print(rows[-1])
    write("clicks", rows, bundle=model.manifest.name)


if __name__ == "__main__":
    main()
