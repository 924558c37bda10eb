"""Import of the checkpoints that the authors of Araslanov et al. 2021 published.

Their files are PyTorch archives: under ``model`` a state dictionary with the names ``fast_net.backbone.*``, those of
torchvision's ResNet-18, and ``fast_net.emb_q.*``, sometimes after ``module.``; what follows ``fast_net.`` are our
names too. Nothing but tensors and plain values is unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from vosrt.bundle import file_sha256
from vosrt.errors import OptionError, OutputError
from vosrt_export.read_weights import load_pth
from vosrt_export.verify import Comparison
from vosrt_export.write_bundle import ExportOptions, export_bundle
from vosrt_train.checkpoint import Checkpoint, CheckpointError, Training, encoder_of, save_checkpoint
from vosrt_train.config import EncoderConfig

_PREFIX = "fast_net."
_LAYER = re.compile(r"backbone\.layer4\.")
_CLASSIFIER = re.compile(r"backbone\.fc\.(weight|bias)")  # torchvision's, which nothing uses


def import_released(path: Path, *, licence: str = "not stated") -> Checkpoint:
    """Read a released file.

    Args:
        path: the ``.pth`` file.
        licence: of the weights, e.g. an SPDX identifier.

    Raises:
        CheckpointError: it is missing, damaged, holds code, or other tensors than those of the network.
    """
    tensors = _network_tensors(load_pth(path), path)
    stem, head = tensors.get("backbone.conv1.weight"), tensors.get("emb_q.conv2.weight")
    has_layer4 = any(_LAYER.match(name) for name in tensors)
    if stem is None or stem.ndim != 4 or (has_layer4 and (head is None or head.ndim != 4)):
        missing = f"{_PREFIX}backbone.conv1.weight" if stem is None else f"{_PREFIX}emb_q.conv2.weight"
        raise CheckpointError(
            f"{path} lacks {missing}, or it is no convolution; expected a network of Araslanov et al."
        )
    keys = EncoderConfig().key_channels if head is None else head.shape[0]
    try:
        config = EncoderConfig(layer4=has_layer4, width=stem.shape[0], key_channels=keys)
    except OptionError as error:
        raise CheckpointError(f"{path} has weights of absurd shapes: {error}") from error
    encoder = encoder_of(config, tensors, path)
    summary = f"released by Araslanov et al. 2021, {path.name[:100]!a} (SHA-256 {file_sha256(path)[:12]})"
    return Checkpoint(encoder, Training(trained=True, seed=0, summary=summary, licence=licence))


def _network_tensors(document: Any, path: Path) -> dict[str, Tensor]:
    """Read the tensors of the network under the names of this project, in fp32."""
    state = document.get("model", document) if isinstance(document, Mapping) else None
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} holds a {type(document).__name__}; expected a dictionary with the entry 'model'")
    tensors = {}
    for name, tensor in state.items():
        ours = str(name).removeprefix("module.")
        if not ours.startswith(_PREFIX) or _CLASSIFIER.fullmatch(ours.removeprefix(_PREFIX)):
            continue
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: {ours[:80]} is a {type(tensor).__name__}; expected a tensor")
        tensors[ours.removeprefix(_PREFIX)] = tensor.float() if tensor.is_floating_point() else tensor
    if not tensors:
        names = ", ".join(ascii(str(name)[:40]) for name in list(state)[:3]) or "nothing"
        raise CheckpointError(f"{path} holds {names} …; expected names that begin with {_PREFIX}backbone")
    return with_counters(tensors)


def with_counters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the counters of batch-norms, in place, which files of old PyTorch versions lack; return the tensors."""
    for name in list(tensors):
        if name.endswith(".running_mean"):
            tensors.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return tensors


def save_released(checkpoint: Checkpoint, output: Path, *, overwrite: bool = False) -> None:
    """Write an imported network as a checkpoint.

    Raises:
        OutputError: the output exists or cannot be written.
    """
    if output.exists() and not overwrite:
        raise OutputError(f"{output} is there already; name another file, or replace it with --overwrite")
    save_checkpoint(checkpoint, output)


def export_imported(
    checkpoint: Checkpoint, output: Path, options: ExportOptions, *, overwrite: bool = False
) -> Comparison:
    """Export an imported network.

    The bundle names the checkpoint that `save_released` would have written.

    Raises:
        VosrtError: see `export_bundle`.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "released.safetensors"
        save_checkpoint(checkpoint, path)
        return export_bundle(path, output, options, overwrite=overwrite)
