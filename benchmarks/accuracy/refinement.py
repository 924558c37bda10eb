"""J&F and milliseconds of refinement: a mask-embedding bundle against its own correspondence.

    python -m benchmarks.accuracy.refinement BUNDLE --davis PATH --size 240 480  # J&F without rounds and at R = 0 to 3
    python -m benchmarks.accuracy.refinement BUNDLE --cost  # milliseconds per frame at 480p, 1 and 5 objects
    python -m benchmarks.accuracy.refinement BUNDLE --davis PATH --picture 16  # results/refinement.jpg: rounds 0, 1, 2
    python -m benchmarks.accuracy.refinement --toy  # seconds, an untrained bundle, writes nothing

J&F is taken with refined masks shown alone and with refined masks remembered (`MaskSpec.feedback`), independent of
the bundle's own choice. Each part and size replaces its own rows in results/refinement.jsonl. The cost is measured on
frames of noise with discs as objects: it depends on neither.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.machine import RESULTS, Watch, merged, parser_of, write
from vosrt import Model, load_bundle
from vosrt.metrics import score_sequence
from vosrt.video.images import ImageFolderSource
from vosrt_export.write_bundle import export_bundle
from vosrt_train.checkpoint import Checkpoint, Training, save_checkpoint
from vosrt_train.config import EncoderConfig
from vosrt_train.masks.config import MaskNetworkConfig
from vosrt_train.masks.networks import build_mask_embedding
from vosrt_train.model import build_encoder
from vosrt_train.validate import find_sequences, read_annotations

NAME = "refinement"
ROUNDS: tuple[int | str, ...] = ("off", 0, 1, 2, 3)
OBJECTS = (1, 5)
WARM_UP = 2


def variants(bundle: str, *, with_feedback: bool) -> Iterator[tuple[Model, bool, int | str]]:
    """Return the bundle without and, on request, with feedback, each with all rounds; no rounds need no feedback."""
    loaded = load_bundle(bundle)
    if loaded.manifest.masks is None:
        sys.exit(f"{bundle} has no mask embedding")
    for feedback in (False, True)[: 1 + with_feedback]:
        masks = replace(loaded.manifest.masks, feedback=feedback)
        model = Model.load(replace(loaded, manifest=replace(loaded.manifest, masks=masks)))
        for rounds in ROUNDS[feedback:]:
            yield model, feedback, rounds


def accuracy(
    model: Model, root: Path, names: list[str], size: int, feedback: bool, rounds: int | str
) -> list[dict[str, Any]]:
    """J&F of every sequence at one number of rounds, then the mean."""
    rows = []
    for sequence in find_sequences(root, names):
        source = ImageFolderSource(sequence.frames)
        truth = read_annotations(sequence, source)
        labels: list[Any] = []
        with model.stream(size=size, refine=rounds) as stream:
            for frame in source:
                result = stream.step(frame.image) if labels else stream.start(frame.image, truth[0])
                labels.append(result.labels)
        scores = score_sequence(labels, truth).values()
        figures = {part: statistics.mean(getattr(score, part) for score in scores) for part in ("j", "f", "j_and_f")}
        rows.append({"sequence": sequence.name, **{key: round(100 * value, 2) for key, value in figures.items()}})
    mean = {key: round(math.fsum(row[key] for row in rows) / len(rows), 2) for key in ("j", "f", "j_and_f")}
    rows.append({"sequence": "mean", **mean})
    print(
        f"rounds {rounds} at {size}, feedback {feedback}: "
        + " ".join(f"{row['sequence']} {row['j_and_f']:.1f}" for row in rows),
        flush=True,
    )
    common = {
        "part": "accuracy",
        "bundle": model.manifest.name,
        "size": size,
        "feedback": feedback,
        "rounds": rounds,
    }
    return [{**common, **row} for row in rows]


def draw(model: Model, root: Path, names: list[str], size: int, frame_number: int) -> Path:
    """A picture: a row per sequence; propagated alone, then rounds 0 to 2. The border of the annotation is green."""
    rows = []
    for sequence in find_sequences(root, names):
        source = ImageFolderSource(sequence.frames)
        truth = read_annotations(sequence, source)
        tiles = []
        for rounds in ROUNDS[:4]:
            with model.stream(size=size, refine=rounds) as stream:
                for number, frame in enumerate(source):
                    result = stream.step(frame.image) if number else stream.start(frame.image, truth[0])
                    if number == frame_number:
                        break
            image = frame.image.copy()
            image[result.labels > 0] = image[result.labels > 0] // 2 + np.array([0, 0, 127], np.uint8)
            border, _ = cv2.findContours(np.sign(truth[frame_number]), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            tiles.append(cv2.resize(cv2.drawContours(image, border, -1, (0, 255, 0), 2), (320, 180)))
        rows.append(np.hstack(tiles))
    path = RESULTS / f"{NAME}.jpg"
    cv2.imwrite(str(path), np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return path


def cost(model: Model, objects: int, rounds: int | str, shape: tuple[int, int], frames: int) -> dict[str, Any]:
    """Milliseconds of a frame and of its refinement, medians."""
    height, width = shape
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (1 + WARM_UP + frames, height, width, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    mask = np.zeros(shape, np.uint8)
    for number in range(objects):
        centre = width * (2 * number + 1) // (2 * objects)
        mask[(rows - height // 2) ** 2 + (columns - centre) ** 2 < (height // 12) ** 2] = 1 + number
    with model.stream(refine=rounds) as stream, Watch() as watch:
        stream.start(images[0], mask)
        timings = [stream.step(image).timings_ms for image in images[1:]][WARM_UP:]
    return {
        "part": "cost",
        "bundle": model.manifest.name,
        "height": height,
        "width": width,
        "objects": objects,
        "rounds": rounds,
        "frames": frames,
        "frame_p50_ms": round(statistics.median(math.fsum(each.values()) for each in timings), 1),
        "refine_p50_ms": round(statistics.median(each.get("refine", 0.0) for each in timings), 1),
        "foreign_cores": round(watch.foreign_cores, 2),
    }


def untrained_bundle(folder: Path) -> Path:
    """A small bundle of the family with random weights."""
    shape = EncoderConfig(width=8, layer4=False)
    encoder = build_encoder(shape, seed=0).eval()
    masks = build_mask_embedding(MaskNetworkConfig(width=4, value_channels=16), shape, seed=0).eval()
    training = Training(trained=False, seed=0, summary="for a toy run", licence="CC0-1.0")
    save_checkpoint(Checkpoint(encoder, training, masks), folder / "masks.safetensors")
    export_bundle(folder / "masks.safetensors", folder / "bundle")
    return folder / "bundle"


def main() -> None:
    """Parse options, run, write results/refinement.jsonl."""
    parser = parser_of(__doc__)
    parser.add_argument("bundle", nargs="?")
    parser.add_argument("--davis", type=Path, help="annotated sequences in the layout of DAVIS")
    parser.add_argument("--sequences", nargs="+", default=[], help="all, unless named")
    parser.add_argument("--size", type=int, nargs="+", default=[480], help="short sides")
    parser.add_argument("--no-feedback", action="store_true", help="leave out refined masks that are remembered")
    parser.add_argument("--picture", type=int, metavar="FRAME", help="draw this frame instead of scoring")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if not options.toy and (options.bundle is None or not (options.davis or options.cost)):
        sys.exit("give a mask-embedding bundle with --davis PATH or --cost, or --toy")
    with tempfile.TemporaryDirectory() as temporary:
        bundle = untrained_bundle(Path(temporary)) if options.toy else options.bundle
        model = Model.load(bundle, threads=options.threads)
        rows: list[dict[str, Any]] = []
        if options.davis and options.picture:
            print(draw(model, options.davis, options.sequences, options.size[0], options.picture))
        elif options.davis:
            for size in options.size:
                for variant, feedback, rounds in variants(options.bundle, with_feedback=not options.no_feedback):
                    rows += accuracy(variant, options.davis, options.sequences, size, feedback, rounds)
        if options.cost or options.toy:
            shape, frames = ((64, 96), 2) if options.toy else ((480, 854), options.frames)
            rows += [cost(model, objects, rounds, shape, frames) for objects in OBJECTS for rounds in ROUNDS]
            for row in rows:
                if row["part"] == "cost":
                    print(row, flush=True)
    if rows and not options.toy:
        write(NAME, merged(NAME, rows, "part", "size"))


if __name__ == "__main__":
    main()
