"""Are pseudo-masks objects? Clusters of annotated sequences, as training would make them, against the annotations.

    python -m benchmarks.training.pseudo_masks CHECKPOINT DAVIS [--set pseudo.clusters=10 ...]

For each sequence and method: J of the cluster that fits best (chosen with the annotation, so that no rule for choosing
foreground can do better), the largest share of the object that lies in one cluster, and among how many it is divided.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.machine import parser_of, write
from vosrt.video.images import ImageFolderSource
from vosrt_train.checkpoint import load_checkpoint
from vosrt_train.config_file import load_config
from vosrt_train.masks.clustering.clusters import find_clusters
from vosrt_train.masks.clustering.make import clustered_frames
from vosrt_train.masks.clustering.sharpen import clusters_at_pixels
from vosrt_train.masks.config import Clustering, PseudoMaskConfig
from vosrt_train.model import Encoder
from vosrt_train.pixels import normalise
from vosrt_train.validate import DavisSequence, find_sequences, read_annotations

METHODS: tuple[Clustering, ...] = ("kmeans", "sinkhorn")
FRAMES = 4
PART = 0.1  # share of the object from which on a cluster counts as having a part of it


def measure(sequence: DavisSequence, encoder: Encoder, config: PseudoMaskConfig) -> list[dict[str, Any]]:
    """Rows of one sequence, a method each."""
    source = ImageFolderSource(sequence.frames)
    truth = read_annotations(sequence, source)
    numbers = clustered_frames(len(truth), 1, FRAMES)
    wanted = set(numbers)
    frames = [frame.image[..., ::-1] for number, frame in enumerate(source) if number in wanted]
    height, width = frames[0].shape[:2]
    size = (
        round(width * config.short_side / min(height, width)),
        round(height * config.short_side / min(height, width)),
    )
    small = [np.ascontiguousarray(cv2.resize(frame, size)) for frame in frames]
    objects = [cv2.resize(np.sign(truth[number]), size, interpolation=cv2.INTER_NEAREST) > 0 for number in numbers]
    with torch.inference_mode():
        features = encoder(normalise(torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2)))
        embedded = torch.nn.functional.normalize(features.res3, dim=1).permute(0, 2, 3, 1)
    rows = []
    for method in METHODS:
        settings = replace(config, method=method)
        clusters = find_clusters(embedded.flatten(0, 2), settings, torch.Generator().manual_seed(0))
        cells = clusters.assign(embedded.flatten(0, 2)).view(embedded.shape[:3]).numpy().astype(np.uint8)
        figures = []
        for grid, frame, inside in zip(cells, small, objects, strict=True):
            size, stride = frame.shape[:2], encoder.config.stride
            shown = clusters_at_pixels(
                grid, frame, size, stride=stride, clusters=config.clusters, radius=config.sharpen
            )
            planes = [shown == cluster for cluster in range(config.clusters)]
            share = [float((plane & inside).sum() / max(1, inside.sum())) for plane in planes]
            best = max(float((plane & inside).sum() / max(1, (plane | inside).sum())) for plane in planes)
            figures.append((100 * best, 100 * max(share), sum(each > PART for each in share)))
        means = dict(zip(("best_j", "largest_share", "parts"), np.mean(figures, axis=0).round(2).tolist(), strict=True))
        rows.append({"sequence": sequence.name, "method": method, "clusters": config.clusters, **means})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Parse options, run, write results/pseudo_masks.jsonl."""
    parser = parser_of(__doc__, toy=False)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("root", type=Path, help="annotated sequences in the layout of DAVIS")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="pseudo.KEY=VALUE")
    options = parser.parse_args()
    encoder = load_checkpoint(options.checkpoint).encoder
    if not isinstance(encoder, Encoder):
        sys.exit("training takes our own encoder only")
    changes = ("pseudo.clusters=10", "pseudo.short_side=384", "pseudo.sharpen=6", *options.changes)
    config = load_config("mask-embedding-cpu", changes).pseudo
    write("pseudo_masks", [row for each in find_sequences(options.root) for row in measure(each, encoder, config)])


if __name__ == "__main__":
    main()
