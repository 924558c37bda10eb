"""The place within its cell that a feature describes: labels are best read and written at that place.

    python -m benchmarks.accuracy.alignment PATH/TO/davis               # with JPEGImages/480p and Annotations/480p
    python -m benchmarks.accuracy.alignment PATH --half 0 2 4 --full 4  # offsets at half size, and at full size
    python -m benchmarks.accuracy.alignment --toy                       # a rendered scene, nothing written

By the arithmetic of its convolutions, cell i of an encoder lies on pixel 8 i; with aligned corners masks are
sampled as published. Training need not keep that: crops whose side is a multiple of 8, mirrored, lay cell i on the
mirrored cell whose pixels, not whose first pixel, are the same; a network that is to agree with its mirror image had
better look at the middle, pixel 8 i + 3.5. The frames are cut to a multiple of 8 plus 1, for which aligned corners hit
every 8th pixel exactly; the given mask is then shifted against the frame by an offset, and what is predicted is shifted
back. *corners* and *half-pixel* are the whole frame with ``align_corners`` true and false (see
`vosrt.bundle.EncoderSpec`), scored on the same cut: the former stretches the last cell to the last pixel, the latter is
what bundles of our own networks say.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np

from benchmarks.machine import parser_of, write
from benchmarks.scenes.picture import write_davis
from vosrt import Model, load_bundle
from vosrt.metrics import score_sequence
from vosrt.types import U8Array
from vosrt.video.images import ImageFolderSource
from vosrt_train.validate import DavisSequence, find_sequences, read_annotations

STRIDE = 8
WHOLE = ("corners", "half-pixel")
Sampled: TypeAlias = int | str  # an offset in pixels, or one of WHOLE


def shifted(labels: U8Array, pixels: int) -> U8Array:
    """Labels moved down and to the right; what comes in repeats the edge."""
    height, width = labels.shape
    padded = np.pad(labels, abs(pixels), mode="edge")
    first = abs(pixels) - pixels
    return np.ascontiguousarray(padded[first : first + height, first : first + width])


def shrunk(image: U8Array, scale: int) -> U8Array:
    """Every ``scale`` pixels become one: the mean of a frame's, one of an annotation's."""
    if image.ndim == 2:
        return np.ascontiguousarray(image[::scale, ::scale])
    size = (image.shape[1] // scale, image.shape[0] // scale)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def follow(model: Model, sequence: DavisSequence, scale: int, sampled: Sampled) -> float:
    """J&F in percent with labels at an offset from the cells' first pixels, or of whole frames."""
    source = ImageFolderSource(sequence.frames)
    truth, labels = [shrunk(each, scale) for each in read_annotations(sequence, source)], []
    height, width = (STRIDE * ((side - 1) // STRIDE) + 1 for side in truth[0].shape)
    with model.stream() as stream:
        for number, frame in enumerate(source):
            image = shrunk(frame.image, scale)
            if isinstance(sampled, str):
                result = stream.step(image) if number else stream.start(image, truth[0])
                labels.append(np.ascontiguousarray(result.labels[:height, :width]))
                continue
            image = np.ascontiguousarray(image[:height, :width])
            given = shifted(np.ascontiguousarray(truth[0][:height, :width]), -sampled)
            result = stream.step(image) if number else stream.start(image, given)
            labels.append(shifted(result.labels, sampled))
    cut = [np.ascontiguousarray(each[:height, :width]) for each in truth]
    return 100 * statistics.mean(score.j_and_f for score in score_sequence(labels, cut).values())


def load(bundle: str, align_corners: bool) -> Model:
    """Load a bundle with another sampling of masks; its cells are whole, since none has parts where corners align."""
    opened = load_bundle(bundle)
    encoder = replace(opened.manifest.encoder, align_corners=align_corners)
    inference = replace(opened.manifest.inference, parts=1)
    return Model.load(replace(opened, manifest=replace(opened.manifest, encoder=encoder, inference=inference)))


def measure(bundle: str, root: Path, settings: list[tuple[int, Sampled]]) -> list[dict[str, Any]]:
    """A row per scale, way of sampling and sequence, and their mean."""
    aligned, half_pixel = load(bundle, True), load(bundle, False)
    rows = []
    for scale, sampled in settings:
        model = half_pixel if sampled == "half-pixel" else aligned
        found = {each.name: follow(model, each, scale, sampled) for each in find_sequences(root)}
        found["mean"] = statistics.mean(found.values())
        rows += [
            {"bundle": bundle, "scale": scale, "sampled": sampled, "sequence": name, "j_and_f": round(value, 2)}
            for name, value in found.items()
        ]
        print(f"1/{scale}, {sampled}:", *(f"{name} {value:.1f}" for name, value in found.items()), flush=True)
    return rows


def main() -> None:
    """Parse options, run, write results/alignment.jsonl."""
    parser = parser_of(__doc__)
    parser.add_argument("davis", nargs="?", type=Path)
    parser.add_argument("--bundle", default="default")
    for name, offsets in (("half", [0, 2, 3, 4, 6]), ("full", [0, 4])):
        parser.add_argument(f"--{name}", type=int, nargs="*", default=offsets, help=f"offsets at {name} size, pixels")
    options = parser.parse_args()
    if options.toy:
        with tempfile.TemporaryDirectory() as temporary:
            write_davis(Path(temporary), 3)
            measure(options.bundle, Path(temporary), [(1, "corners"), (1, 4), (1, "half-pixel")])
    elif options.davis is None:
        parser.error("give a folder of annotated sequences, or --toy")
    else:
        settings = [
            (scale, sampled) for scale, given in ((2, options.half), (1, options.full)) for sampled in (*WHOLE, *given)
        ]
        write("alignment", measure(options.bundle, options.davis, settings))


if __name__ == "__main__":
    main()
