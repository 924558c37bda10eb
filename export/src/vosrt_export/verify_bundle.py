"""``vos-export verify``: the compared engines, the frames, and the report that the bundle keeps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vosrt._files import writing
from vosrt.bundle import MANIFEST_NAME, Bundle, file_sha256, is_packaged, load_bundle, write_manifest
from vosrt.cli.stages import Tell, silent
from vosrt.engines.registry import auto_order, plain_name
from vosrt.engines.select import check_name
from vosrt.errors import InputError, OptionError, OutputError, WorkError
from vosrt.model import Model
from vosrt.types import U8Array
from vosrt.video.base import FrameRange
from vosrt.video.images import ImageFolderSource
from vosrt.video.source import open_source
from vosrt_export.engine_report import LIMITS, Clip, Outcome, compare_engines, find_candidates
from vosrt_train.checkpoint import load_checkpoint
from vosrt_train.validate import DavisSequence, TorchEngine, find_sequences, read_annotations

_FEWEST_FRAMES = 2
_YARDSTICK = "cpu"  # the reference engine of a bundle without a checkpoint
_COLUMNS = ("engine", "max", "mean", "cosine", "match", "soft mean", "labels", "J&F drop", "")


@dataclass(frozen=True, kw_only=True)
class VerifyRequest:
    """Options of a comparison.

    Attributes:
        bundle: directory, or name of a packaged one.
        checkpoint: what the bundle was exported from; None compares with ONNX Runtime on the CPU in fp32.
        clip: a video or a folder of images; an ellipse in its middle is followed.
        davis: annotated sequences in the layout of DAVIS instead.
        sequences: of these; none is all.
        limit: frames of each sequence; None is all.
        engines: names; an empty list takes all that this machine runs.
        size: short side of the working frame in pixels; None is the bundle's default.
        threads: 0 is one per processor.
        write: whether the bundle is to keep the report.
    """

    bundle: str
    checkpoint: Path | None = None
    clip: str | None = None
    davis: Path | None = None
    sequences: tuple[str, ...] = ()
    limit: int | None = None
    engines: tuple[str, ...] = ()
    size: int | None = None
    threads: int = 0
    write: bool = True


@dataclass(frozen=True, kw_only=True)
class Report:
    """Result of a comparison.

    Attributes:
        yardstick: what the engines were compared with, in words.
        clips: what was segmented, in words.
        outcomes: per engine and precision that this machine runs.
        refused: why the others do not.
        unverified: engines that were asked for by name and that this machine runs in no precision.
        written: whether the bundle keeps it.
    """

    yardstick: str
    clips: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    refused: Mapping[str, str]
    unverified: tuple[str, ...]
    written: bool

    @property
    def passed(self) -> bool:
        """Return whether every engine stayed within its limits, and all requested engines run on this machine."""
        return not self.unverified and all(outcome.passed for outcome in self.outcomes)

    @property
    def failure(self) -> str:
        """Reasons why it did not pass."""
        failed = [f"{each.engine} {each.precision}" for each in self.outcomes if not each.passed]
        parts = [f"{', '.join(failed)} went beyond the limits"] if failed else []
        if self.unverified:
            parts.append(f"not verified: {_reasons(self.refused, self.unverified)}")
        return "; ".join(parts)

    def document(self) -> dict[str, Any]:
        """Return figures and limits for the manifest, and of this machine only versions."""
        precisions = sorted({outcome.precision for outcome in self.outcomes})
        return {
            "yardstick": self.yardstick,
            "clips": list(self.clips),
            "engines": [outcome.document() for outcome in self.outcomes],
            "not_run_here": sorted(self.refused),
            "limits": {precision: asdict(LIMITS[precision]) for precision in precisions},
            "passed": self.passed,
        }

    def __str__(self) -> str:
        rows = [_COLUMNS, *(_row(outcome) for outcome in self.outcomes)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"compared with {self.yardstick}, on {', '.join(self.clips)}"]
        lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        lines += [f"not run: {line}" for line in _grouped(self.refused)]
        return "\n".join(line.rstrip() for line in lines)


def verify_bundle(request: VerifyRequest, tell: Tell = silent) -> Report:
    """Compare every engine that this machine runs with the checkpoint, and keep the report in the bundle.

    Raises:
        BundleError: the bundle is not whole.
        CheckpointError: the checkpoint cannot be read.
        InputError: the checkpoint is not the bundle's, or no frames are left to compare on.
        OptionError: an engine or a sequence is unknown, or options exclude each other.
        WorkError: this machine runs none of the engines that were asked for, or the report could not be written.
        OutputError: the user may not write into the bundle.
    """
    if request.clip is not None and request.davis is not None:
        raise OptionError("--clip and --davis are both given; expected one of them")
    bundle = load_bundle(request.bundle)
    keep = request.write and not is_packaged(request.bundle)
    if keep and not os.access(bundle.path, os.W_OK | os.X_OK):
        raise OutputError(f"{bundle.path}: is not writable, and the report goes there; use --no-write")
    yardstick, name = _yardstick(bundle, request)
    clips = _clips(request)
    for engine in request.engines:
        check_name(engine)
    asked = tuple(dict.fromkeys(map(plain_name, request.engines)))
    if request.checkpoint is None and asked == (_YARDSTICK,):
        raise OptionError(
            f"--engine is {_YARDSTICK}, which is what engines are compared with where no checkpoint is given; "
            "name another engine, or give --checkpoint"
        )
    names = asked or auto_order()
    candidates, refused = find_candidates(bundle, names, threads=request.threads, tell=tell)
    unverified = set(asked) - {each.name for each in candidates}
    if request.checkpoint is None:
        candidates = [each for each in candidates if each.name != _YARDSTICK]
    if not candidates and unverified:
        raise WorkError(f"not verified: {_reasons(refused, sorted(unverified))}")
    if not candidates:
        reasons = "; ".join(refused.values())
        raise InputError(f"no engine but the yardstick runs here{': ' if reasons else ''}{reasons}"[:500])
    # PyTorch runs the encoder alone: the mask networks were compared when the bundle was exported.
    refine = "default" if request.checkpoint is None else "off"
    outcomes = compare_engines(yardstick, candidates, clips, request.size, refine=refine, tell=tell)
    report = Report(
        yardstick=name,
        clips=tuple(clip.name for clip in clips),
        outcomes=tuple(outcomes),
        refused=refused,
        unverified=tuple(sorted(unverified)),
        written=keep,
    )
    if report.written:
        keep_in_manifest(bundle, {"report": report.document()})
    return report


def _grouped(refused: Mapping[str, str]) -> list[str]:
    """One line per engine and reason, with the precisions that it holds for."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, reason in refused.items():
        engine, precision = name.split()
        groups.setdefault((engine, reason), []).append(precision)
    return [f"{engine} in {', '.join(precisions)}: {reason}" for (engine, reason), precisions in groups.items()]


def _reasons(refused: Mapping[str, str], engines: Sequence[str]) -> str:
    return "; ".join(_grouped({name: why for name, why in refused.items() if name.split()[0] in engines}))


def keep_in_manifest(bundle: Bundle, verification: Mapping[str, Any]) -> None:
    """Add entries to a manifest's ``verification``; the file is the old one or the new one at every moment.

    Raises:
        BundleError: the manifest would not be accepted when read back.
        WorkError: the system refused; the old file stands.
    """
    path = bundle.path / MANIFEST_NAME
    manifest = replace(bundle.manifest, verification={**bundle.manifest.verification, **verification})
    with writing(path, "is there space left? --no-write keeps no report"):
        write_manifest(manifest, path)


def _yardstick(bundle: Bundle, request: VerifyRequest) -> tuple[Model, str]:
    manifest = bundle.manifest
    made_from = str(manifest.provenance.get("checkpoint_sha256", ""))
    if request.checkpoint is None:
        model = Model.load(bundle, engine="cpu", precision="fp32", threads=request.threads)
        return model, "ONNX Runtime on the CPU in fp32 (no checkpoint was given: the export itself is not in question)"
    encoder = load_checkpoint(request.checkpoint).encoder
    if (found := file_sha256(request.checkpoint)) != made_from:
        raise InputError(
            f"{request.checkpoint} has the SHA-256 {found[:12]}…, the bundle was made from "
            f"{made_from[:12] or 'an unknown one'}…; give the checkpoint that it was exported from"
        )
    engine = TorchEngine(encoder, manifest.encoder.feature, manifest.encoder)
    model = Model(manifest, {"encoder": engine}, precision="fp32", threads=request.threads)
    return model, f"the checkpoint in PyTorch in fp32 (SHA-256 {made_from[:12]})"


def _clips(request: VerifyRequest) -> list[Clip]:
    if request.davis is not None:
        clips = [_annotated(sequence, request.limit) for sequence in find_sequences(request.davis, request.sequences)]
    elif request.clip is not None:
        with_frames = open_source(request.clip, end=request.limit)
        height, width = with_frames.first.image.shape[:2]
        name = f"{Path(request.clip).name}, an ellipse in its middle"
        clips = [Clip(name, (frame.image for frame in with_frames), _ellipse(height, width))]
    else:
        frames = drawn_frames()
        clips = [Clip(f"{len(frames)} drawn frames", frames, _ellipse(*frames[0].shape[:2]))]
    return clips


def _annotated(sequence: DavisSequence, limit: int | None) -> Clip:
    source = ImageFolderSource(sequence.frames, FrameRange(0, limit))
    truth = read_annotations(sequence, source)
    if len(truth) < _FEWEST_FRAMES:
        raise InputError(f"{sequence.frames} has {len(truth)} frame; expected {_FEWEST_FRAMES} or more")
    scored = truth if len(truth) > _FEWEST_FRAMES else None
    return Clip(sequence.name, (frame.image for frame in source), truth[0], scored)


def _ellipse(height: int, width: int) -> U8Array:
    """The ellipse that fills the middle half of a frame: u8 [height, width], 1 inside."""
    y, x = np.mgrid[-2 : 2 : height * 1j, -2 : 2 : width * 1j]
    inside: U8Array = (x * x + y * y <= 1).astype(np.uint8)
    return inside


def drawn_frames(count: int = 6, height: int = 96, width: int = 160) -> list[U8Array]:
    """A textured ellipse that moves over a textured ground: u8 [height, width, 3] each."""
    random = np.random.default_rng(0)
    ground, figure = (random.integers(0, 256, (height // 8, width // 8, 3)) for _ in range(2))
    spread = [np.kron(each, np.ones((8, 8, 1))).astype(np.uint8) for each in (ground, figure)]
    frames = []
    for index in range(count):
        inside = np.roll(_ellipse(height, width), 4 * index, axis=1)[..., None] == 1
        frames.append(np.where(inside, np.roll(spread[1], 4 * index, axis=1), spread[0]))
    return frames


def _row(outcome: Outcome) -> Sequence[str]:
    drop = "" if outcome.j_and_f_drop is None else f"{outcome.j_and_f_drop:+.2f}"
    return (
        f"{outcome.engine} {outcome.precision}",
        f"{outcome.encoder.max_abs:.1e}",
        f"{outcome.encoder.mean_abs:.1e}",
        f"{outcome.encoder.min_cosine:.6f}",
        f"{outcome.match_percent:.2f} %",
        f"{outcome.soft_mean_abs:.1e}",
        f"{outcome.labels_percent:.3f} %",
        drop,
        "passed" if outcome.passed else f"FAILED: {'; '.join(outcome.failures)}",
    )
