"""Validation by the runtime, so that the weights are selected by the labels that a bundle would give.

The encoder becomes an engine of `vosrt`; working size, memory, matching and labels are those of the runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vosrt.bundle import EncoderSpec, Feature, Manifest
from vosrt.engines.base import EngineInfo
from vosrt.errors import EngineError, InputError, MaskError
from vosrt.metrics import Score, score_sequence
from vosrt.model import Model
from vosrt.types import U8Array
from vosrt.video.images import ImageFolderSource, list_images
from vosrt.video.masks import MASK_SUFFIXES, read_mask
from vosrt_train.config import Arithmetic
from vosrt_train.model.contract import VisualEncoder
from vosrt_train.network import uses_bf16
from vosrt_train.pixels import normalise

_RESOLUTIONS = ("480p", "Full-Resolution", "1080p")


@dataclass(frozen=True)
class DavisSequence:
    """A sequence in the layout of DAVIS.

    Attributes:
        annotations: folder of masks, one per frame.
    """

    name: str
    frames: Path
    annotations: Path


@dataclass(frozen=True)
class Validation:
    """Result of a validation.

    Attributes:
        scores: for each sequence, the means over its objects.
    """

    scores: Mapping[str, Score]

    @property
    def j_and_f(self) -> float:
        """Mean J&F over the sequences, 0 to 1."""
        return math.fsum(score.j_and_f for score in self.scores.values()) / len(self.scores)


class TorchEngine:
    """Runs an encoder in training as an engine of the runtime.

    Args:
        encoder: each call uses its current weights, in evaluation mode, and restores its mode.
        precision: of the convolutions; ``"bf16"`` is autocast.
    """

    def __init__(
        self, encoder: VisualEncoder, feature: Feature, spec: EncoderSpec, precision: Arithmetic = "fp32"
    ) -> None:
        self._encoder = encoder
        self._feature = feature
        self._spec = spec
        self._precision = precision

    @property
    def info(self) -> EngineInfo:
        """Name, precision and version."""
        precision = "bf16" if uses_bf16(self._precision, next(self._encoder.parameters()).device) else "fp32"
        return EngineInfo("torch", precision, f"torch {torch.__version__}", "the network is being trained")

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Embed frames u8 [n, H, W, 3] BGR as f32 [n, h, w, K] of unit length per cell.

        Raises:
            EngineError: PyTorch failed, e.g. out of memory.
        """
        device = next(self._encoder.parameters()).device
        frames = np.require(inputs[self._spec.input_name], requirements="W")  # PyTorch warns about read-only arrays
        bgr = torch.from_numpy(frames).to(device)
        was_training = self._encoder.training
        self._encoder.eval()
        try:
            bf16 = torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(self._precision, device))
            with torch.inference_mode(), bf16:
                features = self._encoder(normalise(bgr.flip(-1).permute(0, 3, 1, 2)))
                embedding: Tensor = nn.functional.normalize(getattr(features, self._feature).float(), dim=1)
                array = embedding.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        except RuntimeError as error:
            raise EngineError(f"PyTorch cannot run the encoder: {error}") from error
        finally:
            self._encoder.train(was_training)
        return {self._spec.output_name: array}


def runtime_model(encoder: VisualEncoder, feature: Feature, precision: Arithmetic = "fp32") -> Model:
    """Build a model of the runtime around an encoder in training.

    Args:
        encoder: each call uses its current weights.
    """
    config = encoder.config
    spec = EncoderSpec(channels=config.channels[feature], feature=feature, stride=config.stride, align_corners=False)
    manifest = Manifest(name="in training", trained=True, summary="in training", encoder=spec, graphs={})
    return Model(manifest, {"encoder": TorchEngine(encoder, feature, spec, precision)})


def find_sequences(root: Path, names: Sequence[str] = ()) -> list[DavisSequence]:
    """Find annotated sequences: ``JPEGImages/480p/NAME`` and ``Annotations/480p/NAME``, as in DAVIS.

    Args:
        names: sequences to return; none returns all.

    Raises:
        InputError: the folder has no sequence, or lacks one of the names.
    """
    for resolution in (*_RESOLUTIONS, ""):
        images, annotations = root / "JPEGImages" / resolution, root / "Annotations" / resolution
        if images.is_dir() and annotations.is_dir():
            break
    else:
        raise InputError(f"{root} is not in the layout of DAVIS; expected JPEGImages/480p and Annotations/480p in it")
    have = sorted(path.name for path in images.iterdir() if path.is_dir() and (annotations / path.name).is_dir())
    if missing := sorted(set(names) - set(have)):
        raise InputError(f"{root} has no annotated sequence {missing[0]!r}; it has: {', '.join(have) or 'none'}")
    if not have:
        raise InputError(f"{root} has no annotated sequence; expected the same folder names in both of its parts")
    return [DavisSequence(name, images / name, annotations / name) for name in have if not names or name in names]


def validate(
    model: Model,
    sequences: Sequence[DavisSequence],
    size: int | None,
    *,
    on_sequence: Callable[[str, Score], None] | None = None,
) -> Validation:
    """Segment the objects of the first frame in each sequence, and score the labels at full size.

    Args:
        sequences: at least one.
        size: short side of the working frame, in pixels; None keeps the size of the frames.
        on_sequence: called after each sequence with its name and score.

    Raises:
        InputError: a sequence cannot be read.
    """
    scores = {}
    for sequence in sequences:
        source = ImageFolderSource(sequence.frames)
        truth = read_annotations(sequence, source)
        predictions: list[U8Array] = []
        with model.stream(size="native" if size is None else size) as stream:
            for frame in source:
                result = stream.step(frame.image) if predictions else stream.start(frame.image, truth[0])
                predictions.append(result.labels)
        score = _mean(score_sequence(predictions, truth).values())
        scores[sequence.name] = score
        if on_sequence is not None:
            on_sequence(sequence.name, score)
    return Validation(scores)


def read_annotations(sequence: DavisSequence, source: ImageFolderSource) -> list[U8Array]:
    """Read the masks of a sequence, u8 [H, W] each, one per frame of the source.

    Raises:
        InputError: a mask is missing or cannot be read.
    """
    paths = _masks_of(sequence, source)[: source.info.frame_count]
    return [_read_annotation(path, source.info.width, source.info.height) for path in paths]


def _mean(objects: Collection[Score]) -> Score:
    j, f = math.fsum(score.j for score in objects), math.fsum(score.f for score in objects)
    return Score(j / len(objects), f / len(objects))


def _masks_of(sequence: DavisSequence, source: ImageFolderSource) -> list[Path]:
    paths = {path.stem: path for path in list_images(sequence.annotations, MASK_SUFFIXES)}
    stems = source.info.stems or ()
    if missing := [stem for stem in stems if stem not in paths]:
        raise InputError(f"{sequence.annotations} has no mask for frame {missing[0]}; expected one per frame")
    return [paths[stem] for stem in stems]


def _read_annotation(path: Path, width: int, height: int) -> U8Array:
    try:
        return read_mask(path, width, height)
    except MaskError as error:
        raise InputError(f"the validation cannot be done: {error}") from error
