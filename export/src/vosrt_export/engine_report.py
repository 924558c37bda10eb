"""Comparison of every engine of a bundle with the checkpoint, stage by stage, on the frames of a video."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from vosrt.bundle import ENCODER_ROLES, Bundle
from vosrt.cli.stages import Tell, silent
from vosrt.core.memory import Memory, create_memory
from vosrt.errors import EngineError, MissingExtraError, OptionError
from vosrt.metrics import score_sequence
from vosrt.model import Model
from vosrt.types import F32Array, ModelPrecision, Precision, TopK, U8Array
from vosrt_export.verify import Comparison, summarise


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the difference of an engine.

    Attributes:
        min_cosine: smallest cosine between the embeddings of a cell.
        mean_abs: mean absolute difference of the elements of an embedding.
        soft_mean_abs: mean absolute difference of soft masks, each read out with the labels of the yardstick before.
        labels_percent: pixels of the final labels that differ, errors that add up along a sequence included.
        j_and_f_drop: points of J&F lost, of 100.
    """

    min_cosine: float
    mean_abs: float
    soft_mean_abs: float
    labels_percent: float
    j_and_f_drop: float = 0.5


LIMITS: dict[str, Limits] = {
    "fp32": Limits(min_cosine=0.9999, mean_abs=2e-4, soft_mean_abs=1e-3, labels_percent=0.5),
    "fp16": Limits(min_cosine=0.999, mean_abs=1e-3, soft_mean_abs=5e-3, labels_percent=1.0),
    "bf16": Limits(min_cosine=0.99, mean_abs=4e-3, soft_mean_abs=1e-2, labels_percent=2.0),
    "int8": Limits(min_cosine=0.8, mean_abs=2e-2, soft_mean_abs=5e-2, labels_percent=10.0),
}
LIMITS["tf32"] = LIMITS["fp16"]  # both have 10 bits of fraction
LIMITS["fp8"] = LIMITS["int8"]


@dataclass(frozen=True)
class Clip:
    """Frames to compare on.

    Attributes:
        frames: each u8 [H, W, 3], BGR; each iteration reads them again.
        mask: u8 [H, W], what to follow from the first frame on.
        truth: one u8 [H, W] per frame, where it is known.
    """

    name: str
    frames: Iterable[U8Array]
    mask: U8Array
    truth: Sequence[U8Array] | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of one engine.

    Attributes:
        precision: of its arithmetic; ``"int8"`` where the graph is quantised.
        encoder: embeddings against the yardstick's.
        match_percent: neighbours of the yardstick that were found too.
        match_max_abs: largest difference of similarities of the same rank.
        labels_percent: pixels of the final labels that differ.
        j_and_f_drop: points of J&F lost; None without ground truth.
        failures: the limits that it went beyond, in words.
    """

    engine: str
    precision: str
    version: str
    encoder: Comparison
    match_percent: float
    match_max_abs: float
    soft_max_abs: float
    soft_mean_abs: float
    labels_percent: float
    j_and_f_drop: float | None
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Return whether the engine stayed within all limits."""
        return not self.failures

    def document(self) -> dict[str, Any]:
        """Return plain values for the manifest."""
        return asdict(self) | {"failures": list(self.failures), "passed": self.passed}


class Candidate:
    """An engine to compare.

    Args:
        precision: whose limits hold.
        core: precision of matching.
    """

    def __init__(self, name: str, precision: str, model: Model, core: Precision) -> None:
        self.name = name
        self.precision = precision
        self.model = model
        self.core: Precision = core


def find_candidates(
    bundle: Bundle, names: Sequence[str], *, threads: int = 0, tell: Tell = silent
) -> tuple[list[Candidate], dict[str, str]]:
    """Load a bundle on every engine, in every precision that the engine has.

    Returns:
        The candidates that this machine runs, and why it does not run each of the others.
    """
    files = [bundle.manifest.graphs[role] for role in ENCODER_ROLES if role in bundle.manifest.graphs]
    quantised: list[ModelPrecision] = [file.quantised for file in files if file.quantised]
    # "auto" may take a precision that has no name in the options, such as tf32.
    others: list[ModelPrecision] = ["bf16"] if files[0].quantised else ["fp32", "fp16", "bf16", "auto"]
    precisions = [*quantised, *others]
    found, refused = list[Candidate](), dict[str, str]()
    for name in names:
        for precision in precisions:
            tell(f"loading {name} in {precision}")
            try:
                model = Model.load(bundle, engine=name, precision=precision, threads=threads)
                arithmetic = str(model.describe()["engines"]["encoder"]["precision"])
            except (EngineError, MissingExtraError, OptionError) as error:
                refused[f"{name} {precision}"] = str(error)
                continue
            if precision != "auto" or (name, arithmetic) not in {(each.name, each.precision) for each in found}:
                core: Precision = "fp32" if precision == "fp32" else "auto"
                found.append(Candidate(name, arithmetic, model, core))
    return found, refused


def compare_engines(
    yardstick: Model,
    candidates: Sequence[Candidate],
    clips: Sequence[Clip],
    size: int | None = None,
    *,
    refine: int | str = "default",
    tell: Tell = silent,
) -> list[Outcome]:
    """Run all candidates beside the yardstick.

    Matching and read-out are compared frame by frame with the yardstick's labels in memory, so that their figures are
    those of one step; final labels come from one stream per engine, as users get them.

    Args:
        yardstick: the reference, in fp32.
        candidates: engines that are compared with it.
        clips: at least one, each of two frames or more.
        size: short side of the working frame in pixels.
        refine: as for `vosrt.Model.stream`, of all of them.
    """
    tallies = [_Tally() for _ in candidates]
    for clip in clips:
        right = _Run(yardstick, "fp32", size, refine)
        runs = [_Run(candidate.model, candidate.core, size, refine) for candidate in candidates]
        _compare_on(clip, right, runs, tallies, tell)
    return [tally.outcome(candidate) for tally, candidate in zip(tallies, candidates, strict=True)]


class _Run:
    """One engine on one clip: a free stream, and a memory that is set right after every frame."""

    def __init__(self, model: Model, core: Precision, size: int | None, refine: int | str) -> None:
        self.model, self.core, self.size = model, core, size
        self.stream = model.stream(size=size, refine=refine)
        self.labels: list[U8Array] = []
        self.memory: Memory | None = None

    def step(self, frame: U8Array, mask: U8Array | None) -> F32Array:
        embedding = self.model.encode(frame, self.size)
        result = self.stream.step(embedding) if mask is None else self.stream.start(embedding, mask)
        self.labels.append(result.labels)
        if self.memory is None:
            height, width, channels = embedding.array.shape
            manifest = self.model.manifest
            self.memory, _ = create_memory(
                height,
                width,
                channels,
                manifest.inference,
                align_corners=manifest.encoder.align_corners,
                precision=self.core,
            )
        self.memory.push(embedding.array)
        return embedding.array


def _compare_on(clip: Clip, right: _Run, runs: Sequence[_Run], tallies: Sequence[_Tally], tell: Tell) -> None:
    for index, frame in enumerate(clip.frames):
        tell(f"{clip.name}: frame {index + 1}, {len(runs)} engines beside the yardstick")
        mask = clip.mask if index == 0 else None
        wanted = right.step(frame, mask)
        for run, tally in zip(runs, tallies, strict=True):
            tally.embedding(wanted, run.step(frame, mask))
            if mask is None:
                tally.attention(_memory(right).top_k(), _memory(run).top_k())
                tally.soft(_memory(right).soft_masks(), _memory(run).soft_masks())
        for each in (right, *runs):
            if mask is not None:
                _memory(each).annotate(mask)
            elif each is not right:
                _memory(each).set_soft_masks(_memory(right).soft_masks())
    for run, tally in zip(runs, tallies, strict=True):
        tally.labels(right.labels, run.labels, clip.truth)


def _memory(run: _Run) -> Memory:
    assert run.memory is not None
    return run.memory


@dataclass
class _Tally:
    """Sums over the frames and clips of one engine."""

    parts: list[Comparison] = field(default_factory=list)
    same: list[float] = field(default_factory=list)
    similarity: float = 0.0
    soft_max: float = 0.0
    soft_mean: list[float] = field(default_factory=list)
    differing: list[float] = field(default_factory=list)
    drops: list[float] = field(default_factory=list)

    def embedding(self, wanted: F32Array, found: F32Array) -> None:
        self.parts.append(summarise([(wanted[None], found[None])]))

    def attention(self, wanted: TopK, found: TopK) -> None:
        cells = wanted.similarity.shape[1]
        right, own = (each.frame.astype(np.int64) * cells + each.cell for each in (wanted, found))
        self.same.append(float((right[..., None] == own[..., None, :]).any(axis=-1).mean()))
        difference = np.nan_to_num(np.abs(wanted.similarity - found.similarity))
        self.similarity = max(self.similarity, float(difference.max(initial=0.0)))

    def soft(self, wanted: F32Array, found: F32Array) -> None:
        difference = np.abs(wanted - found)
        self.soft_max = max(self.soft_max, float(difference.max()))
        self.soft_mean.append(float(difference.mean()))

    def labels(self, wanted: Sequence[U8Array], found: Sequence[U8Array], truth: Sequence[U8Array] | None) -> None:
        self.differing += [float((a != b).mean()) for a, b in zip(wanted[1:], found[1:], strict=True)]
        if truth is not None:
            before, after = (
                float(np.mean([score.j_and_f for score in score_sequence(labels, truth).values()]))
                for labels in (wanted, found)
            )
            self.drops.append(100 * (before - after))

    def outcome(self, candidate: Candidate) -> Outcome:
        cells = sum(part.cells for part in self.parts)
        encoder = Comparison(
            max_abs=max(part.max_abs for part in self.parts),
            mean_abs=_short(math.fsum(part.mean_abs * part.cells for part in self.parts) / cells),
            min_cosine=min(part.min_cosine for part in self.parts),
            cells=cells,
        )
        soft_mean, labels = _short(float(np.mean(self.soft_mean))), _short(100 * float(np.mean(self.differing)))
        drop = round(float(np.mean(self.drops)), 3) if self.drops else None
        limits = LIMITS[candidate.precision]
        checks = (
            ("cosine", encoder.min_cosine, encoder.min_cosine >= limits.min_cosine, f"at least {limits.min_cosine:g}"),
            ("mean error", encoder.mean_abs, encoder.mean_abs <= limits.mean_abs, f"at most {limits.mean_abs:g}"),
            ("soft masks", soft_mean, soft_mean <= limits.soft_mean_abs, f"at most {limits.soft_mean_abs:g}"),
            ("labels", labels, labels <= limits.labels_percent, f"at most {limits.labels_percent:g} %"),
            ("J&F drop", drop, drop is None or drop <= limits.j_and_f_drop, f"at most {limits.j_and_f_drop:g}"),
        )
        return Outcome(
            engine=candidate.name,
            precision=candidate.precision,
            version=candidate.model.describe()["engines"]["encoder"]["version"],
            encoder=encoder,
            match_percent=round(100 * float(np.mean(self.same)), 3),
            match_max_abs=_short(self.similarity),
            soft_max_abs=_short(self.soft_max),
            soft_mean_abs=soft_mean,
            labels_percent=labels,
            j_and_f_drop=drop,
            failures=tuple(f"{what} {value:g}, expected {limit}" for what, value, fine, limit in checks if not fine),
        )


def _short(value: float) -> float:
    return float(f"{value:.3g}")
