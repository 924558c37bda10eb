"""Distillation: a small encoder learns to match as another one does, on clips without labels.

Propagation uses features only through their affinities: the softmax over the similarities of a cell to those of other
frames. The student learns the teacher's affinities (similarity-preserving distillation, Tung and Mori 2019, with the
softmax of matching). So it may have fewer channels, and features on other axes, than the teacher: the loss does not
change when all features of either are rotated.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vosrt.bundle import EncoderSpec, Feature, is_packaged, load_bundle
from vosrt.engines.base import Engine
from vosrt.engines.select import create_encoder_engine
from vosrt_train.bundle_weights import is_bundle
from vosrt_train.checkpoint import load_checkpoint
from vosrt_train.run_folder import weights_of
from vosrt_train.validate import TorchEngine


class Teacher:
    """An encoder that is not trained: that of a bundle on the runtime's fastest engine, or a checkpoint in PyTorch.

    Args:
        source: a bundle, the name of a packaged one, a checkpoint (.safetensors), or the folder of a run.
        threads: of its engine; 0 is one per processor.

    Raises:
        BundleError: the bundle is not whole.
        CheckpointError: the checkpoint is missing or damaged.
        EngineError: no engine runs the bundle.
    """

    def __init__(self, source: str, *, threads: int = 0) -> None:
        self._spec, self._engine = _open(source, threads)

    def __call__(self, rgb: Tensor) -> Tensor:
        """Embed frames.

        Args:
            rgb: u8 [n, 3, H, W].

        Returns:
            f32 [n, K, h, w] of unit length per cell, on the device of the frames, without gradient.
        """
        frames = np.ascontiguousarray(rgb.flip(1).permute(0, 2, 3, 1).cpu().numpy())
        embedding = self._engine.run({self._spec.input_name: frames})[self._spec.output_name]
        return torch.from_numpy(embedding).permute(0, 3, 1, 2).to(rgb.device)


def teacher_name(source: str) -> str:
    """Return what the settings of a run say for a teacher: the name of a packaged bundle, else an absolute path."""
    return source if is_packaged(source) else str(Path(source).absolute())


def teacher_licence(source: str) -> str:
    """Return the licence of a teacher's weights, which those of the student inherit; errors as of `Teacher`."""
    if is_bundle(source):
        return str(load_bundle(source).manifest.provenance.get("licence", "not stated"))
    return load_checkpoint(weights_of(Path(source))).training.licence


def affinity_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Compute how far the student's affinities are from the teacher's.

    Each cell of the last frame is matched with all cells of the frames before it, within its clip.

    Args:
        student: float [B, T, K, h, w] of unit length per cell, T of 2 or more.
        teacher: float [B, T, C, h', w'] likewise; it is resampled to h x w. No gradient reaches it.
        temperature: τ of both softmaxes.

    Returns:
        f32 [], the mean Kullback-Leibler divergence over the cells: 0 where both match alike.
    """
    with torch.no_grad():
        clips, grid = len(teacher), tuple(student.shape[-2:])
        flat = teacher.flatten(0, 1).float()
        if flat.shape[-2:] != grid:
            flat = F.normalize(F.interpolate(flat, grid, mode="bilinear", align_corners=False), dim=1)
        wanted = (_similarities(flat.view(clips, -1, *flat.shape[1:])) / temperature).log_softmax(-1)
    found = (_similarities(student.float()) / temperature).log_softmax(-1)
    return F.kl_div(found, wanted, reduction="none", log_target=True).sum(-1).mean()


def _similarities(features: Tensor) -> Tensor:
    """Similarities of the last frame's cells to those before: f32 [B, T, K, h, w] -> [B, h * w, (T - 1) * h * w]."""
    cells = features.permute(0, 1, 3, 4, 2).flatten(2, 3)
    return torch.bmm(cells[:, -1], cells[:, :-1].flatten(1, 2).transpose(1, 2))


def _open(source: str, threads: int) -> tuple[EncoderSpec, Engine]:
    if is_bundle(source):
        bundle = load_bundle(source)
        spec = bundle.manifest.encoder
        # In float: a teacher should not pass on what quantisation rounds away.
        return spec, create_encoder_engine(bundle.encoders[:1], spec, threads=threads)
    encoder = load_checkpoint(weights_of(Path(source))).encoder
    feature: Feature = "res3" if "res3" in encoder.config.channels else "key"
    spec = EncoderSpec(channels=encoder.config.channels[feature], feature=feature, stride=encoder.config.stride)
    return spec, TorchEngine(encoder, feature, spec)
