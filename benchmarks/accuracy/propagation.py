"""J&F with centring, more neighbours, sharpened memory and guided output; leave-one-out chooses constants.

    python -m benchmarks.accuracy.propagation PATH/TO/davis  # default bundle at 480; stop and start it as you like
    python -m benchmarks.accuracy.propagation PATH NAME=BUNDLE --size 240 --top-k 10 15 20 --sharpness 1 1.3 1.6
    python -m benchmarks.accuracy.propagation --toy          # a rendered sequence, nothing written

All objects of an annotation count as one. The first value of each option is what the others are compared with. For each
sequence, the setting that is best on the mean of all *other* sequences is chosen, and that one's score counts: no
constant was chosen on what it is judged by.

Each frame is embedded once, and matched once per centring with the largest top-k: fewer neighbours are the
first of more, and what is remembered of masks does not change what is matched. Masks are read out by the NumPy
definition.
Every sequence that is done is appended to results/propagation.jsonl and skipped the next time; rows of another encoder
under the same name are dropped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.models import render_sequence
from benchmarks.machine import RESULTS, describe, parser_of
from benchmarks.report.models import SETTING, leave_one_out
from vosrt import Model, load_bundle
from vosrt.core import reference
from vosrt.core.memory import Memory, create_memory
from vosrt.metrics import score_sequence
from vosrt.types import F32Array, PropagationOptions, U8Array
from vosrt.video.images import ImageFolderSource
from vosrt_train.validate import DavisSequence, find_sequences, read_annotations

PATH = RESULTS / "propagation.jsonl"
Row = dict[str, Any]


@dataclass
class Run:
    """One setting on one sequence: the masks that it remembers, f32 [frames, h, w, 2], and what it showed."""

    options: PropagationOptions
    soft: F32Array
    shown: list[U8Array]

    def follow(self, memory: Memory, t: int, height: int, width: int) -> None:
        """Read frame t's masks from the remembered ones with the neighbours that the memory found, and label it."""
        found, k = memory.top_k(), self.options.top_k
        near = reference.Neighbours(*(each[0, :, :k] for each in (found.similarity, found.frame, found.cell)))
        read = reference.read_out(near, self.soft[:t], self.options.temperature)
        memory.set_soft_masks(read)
        self.shown.append(memory.labels(height, width)[0])
        altered = self.options.alters_masks
        self.soft[t] = reference.sharpen(read, self.options.sharpness, self.options.object_bias) if altered else read


def follow(
    model: Model, frames: Iterable[U8Array], truth: list[U8Array], size: int | None, settings: list[PropagationOptions]
) -> list[list[U8Array]]:
    """Labels u8 [H, W] per setting and frame."""
    height, width = truth[0].shape
    memories: dict[float, Memory] = {}
    runs: list[Run] = []
    for t, frame in enumerate(frames):
        encoded = model.encode(frame, size)
        embedding, picture = encoded.array, encoded.frame
        assert isinstance(picture, np.ndarray)
        if t == 0:
            most = max(each.top_k for each in settings)
            for each in settings:
                guided = max(other.guided for other in settings)
                matching = replace(each, top_k=most, sharpness=1.0, object_bias=0.0, guided=guided)
                corners = model.manifest.encoder.align_corners
                memories[each.centring], _ = create_memory(*embedding.shape, matching, align_corners=corners)
                soft = np.empty((len(truth), *embedding.shape[:2], 2), np.float32)
                runs.append(Run(each, soft, [truth[0]]))
        for memory in memories.values():
            memory.push(embedding)
        if t == 0:
            for memory in memories.values():
                memory.annotate(truth[0])
            for run in runs:
                run.soft[0] = memories[run.options.centring].soft_masks()
        else:
            # A memory shows masks as they are until it has the frame's guide.
            for run in sorted(runs, key=lambda run: run.options.guided):
                if run.options.guided:
                    memories[run.options.centring].guide(picture)
                run.follow(memories[run.options.centring], t, height, width)
    return [run.shown for run in runs]


def read(sequence: DavisSequence) -> tuple[ImageFolderSource, list[U8Array]]:
    """Frames, and the truth with all objects as one, u8 [H, W] of 0 and 1."""
    source = ImageFolderSource(sequence.frames)
    return source, [(each > 0).astype(np.uint8) for each in read_annotations(sequence, source)]


def measure(
    model: Model, sequence: DavisSequence, size: int | None, settings: list[PropagationOptions], about: Row
) -> Iterator[Row]:
    """A row per setting."""
    source, truth = read(sequence)
    shown = follow(model, (frame.image for frame in source), truth, size, settings)
    for options, labels in zip(settings, shown, strict=True):
        score = score_sequence(labels, truth)[1]
        figures = {name: round(100 * getattr(score, name), 2) for name in ("j", "f", "j_and_f")}
        yield {**about, "sequence": sequence.name, **{name: getattr(options, name) for name in SETTING}, **figures}


def without_loops(model: Model) -> PropagationOptions:
    """The bundle's options without those that need more than a frame's own neighbours."""
    return replace(model.manifest.inference, calibration=0, motion=0.0, parts=1)


def settings_of(options: argparse.Namespace, published: PropagationOptions) -> list[PropagationOptions]:
    """Every combination, that of the first values first."""
    values = itertools.product(*(getattr(options, name) for name in SETTING))
    return [replace(published, **dict(zip(SETTING, each, strict=True))) for each in values]


def kept_rows(about: Row) -> list[Row]:
    """Return the rows of earlier runs without those of another encoder of this name; start the file if it is missing.

    A line that was cut off, as by a kill, is left out.
    """
    lines = PATH.read_text().splitlines(keepends=True) if PATH.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    header, rows = (whole[0], whole[1:]) if whole else ({"machine": describe()}, [])
    rows = [row for row in rows if row["model"] != about["model"] or row["encoder"] == about["encoder"]]
    PATH.parent.mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in [header, *rows])
    fresh = PATH.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(PATH)
    return rows


def key_of(row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in ("model", "size", "sequence", *SETTING))


def run(root: Path, name: str, bundle: str, options: argparse.Namespace) -> None:
    """Measure the missing settings, then print the choice."""
    model = Model.load(bundle, engine=options.engine, threads=options.threads)
    encoder = load_bundle(bundle).manifest.graphs["encoder"].sha256
    about = {"model": name, "encoder": encoder, "size": options.size}
    settings = settings_of(options, without_loops(model))
    rows = kept_rows(about)
    done = {key_of(row) for row in rows}
    for sequence in find_sequences(root, options.sequences):
        missing = [
            each
            for each in settings
            if key_of({**about, "sequence": sequence.name, **{n: getattr(each, n) for n in SETTING}}) not in done
        ]
        fresh = list(measure(model, sequence, options.size, missing, about)) if missing else []
        with PATH.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in fresh))
        rows += fresh
        print(f"{sequence.name}: {len(fresh)} measured", *(f"{row['j_and_f']:.1f}" for row in fresh), flush=True)
    mine = [row for row in rows if (row["model"], row["size"]) == (name, options.size)]
    for choice in leave_one_out(mine):
        print(choice)
    print(PATH)


def toy() -> None:
    """Check that this script and a stream with the same options give the same labels."""
    model = Model.load("default")
    settings = [
        replace(without_loops(model), **dict(zip(SETTING, each, strict=True)))
        for each in ((10, 1.0, 0.0, 0.0, 0), (20, 1.5, 0.1, 0.8, 4), (5, 3.0, 0.0, 0.8, 0))
    ]
    with tempfile.TemporaryDirectory() as folder:
        render_sequence(Path(folder))
        (sequence,) = find_sequences(Path(folder))
        source, truth = read(sequence)
        frames = [frame.image for frame in source]
        for options, labels in zip(settings, follow(model, frames, truth, 64, settings), strict=True):
            with model.stream(size=64, options=options) as stream:
                expected = [stream.step(frame, truth[0] if t == 0 else None).labels for t, frame in enumerate(frames)]
            if (different := np.mean(np.array(labels) != np.array(expected))) > 1e-3:
                sys.exit(f"{100 * different:.2f} % of the labels are not those of a stream with {options}")
        rows = [
            {**row, "sequence": f"{row['sequence']} {n}"}
            for n in (1, 2)
            for row in measure(model, sequence, 64, settings, {"model": "default", "size": 64})
        ]
    print(*leave_one_out(rows), sep="\n")


def main() -> None:
    """Parse options and run."""
    parser = parser_of(__doc__)
    parser.add_argument("root", type=Path, nargs="?")
    parser.add_argument("bundle", nargs="?", default="default", help="NAME=BUNDLE, or the name of a packaged bundle")
    parser.add_argument("--size", type=int, default=480, help="short side of the working frame, pixels")
    parser.add_argument("--top-k", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--sharpness", type=float, nargs="+", default=[1.0, 1.5])
    parser.add_argument("--object-bias", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--centring", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--guided", type=int, nargs="+", default=[0, 4])
    parser.add_argument("--sequences", nargs="+", default=[])
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.toy:
        toy()
        return
    if options.root is None:
        parser.error("give a folder of annotated sequences in the layout of DAVIS, or --toy")
    name, _, bundle = options.bundle.partition("=")
    run(options.root, name, bundle or name, options)


if __name__ == "__main__":
    main()
