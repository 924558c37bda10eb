"""Reading of weights that others released: PyTorch archives, safetensors, and folders as `transformers` writes them.

Nothing but tensors and plain values is unpickled, and sizes are bounded.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vosrt._reading import WEIGHTS_BYTES, check_regular, read_json
from vosrt_train.checkpoint import CheckpointError

_CODE = re.compile(r"(?<=GLOBAL )[\w.]+|TorchScript")  # in PyTorch's words
_NESTS = ("state_dict", "model", "teacher")  # where training programs put the network: MoCo and VFS, others, DINO
_SHARDS = 64
_WEIGHTS, _INDEX, _PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


@dataclass(frozen=True)
class Weights:
    """Tensors under the names of their file.

    Attributes:
        tensors: all of the network, floating-point ones as f32.
        config: ``config.json`` beside them; None for a file.
        processor: ``preprocessor_config.json`` beside them; empty without one.
        source: the file, or the first of several.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any] | None
    processor: dict[str, Any]
    source: Path


def read_weights(path: Path) -> Weights:
    """Read the weights in a file or a folder.

    Raises:
        CheckpointError: something is missing, damaged, too large, holds code or no tensors.
    """
    if not path.is_dir():
        return Weights(_named(_read_file(path), path), None, {}, path)
    config = _read_object(path / "config.json", "the transformers layout: config.json beside model.safetensors")
    processor = path / "preprocessor_config.json"
    files = _files_of(path)
    tensors = [_named(_read_file(file), file) for file in files]
    return Weights(
        {name: tensor for each in tensors for name, tensor in each.items()},
        config,
        _read_object(processor, "a JSON object") if processor.exists() else {},
        files[0],
    )


def load_pth(path: Path) -> Any:
    """Read a PyTorch archive without running code from it.

    Raises:
        CheckpointError: it is missing, damaged, too large or holds code.
    """
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}; expected released weights (.pth)")
    try:
        check_regular(path, WEIGHTS_BYTES)
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # on TorchScript archives, which are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader of a damaged archive may raise any exception
        if code := _CODE.search(str(error)):
            raise CheckpointError(
                f"{path} holds more than tensors ({code[0][:60]}), which is never run; save its state dictionary alone"
            ) from error
        raise CheckpointError(f"{path} is not a whole PyTorch file ({type(error).__name__}); copy it again") from error


def _files_of(folder: Path) -> list[Path]:
    """Return the files with the weights of a folder."""
    if (folder / _INDEX).exists() and not (folder / _WEIGHTS).exists():
        shards = _read_object(folder / _INDEX, "an index of files").get("weight_map")
        names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
        if not 0 < len(names) <= _SHARDS or any(Path(name).name != name for name in names):
            raise CheckpointError(
                f"{folder / _INDEX} names {len(names)} files; expected 1 to {_SHARDS} names of files beside it"
            )
        return [folder / name for name in names]
    found = [folder / name for name in (_WEIGHTS, _PICKLE) if (folder / name).exists()]
    if not found:
        raise CheckpointError(f"{folder} has no weights; expected {_WEIGHTS}, {_INDEX} or {_PICKLE} in it")
    return found[:1]


def _read_file(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return load_pth(path)
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}; copy it again")
    try:
        check_regular(path, WEIGHTS_BYTES)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); copy it again") from error


def _named(document: Any, path: Path) -> dict[str, Tensor]:
    """Take the tensors of the network out of what a training program saved."""
    for nest in _NESTS:
        if isinstance(document, Mapping) and isinstance(document.get(nest), Mapping):
            document = document[nest]
    if not isinstance(document, Mapping):
        raise CheckpointError(f"{path} holds a {type(document).__name__}; expected a dictionary of tensors")
    tensors = {str(name): tensor for name, tensor in document.items() if isinstance(tensor, Tensor)}
    if not tensors:
        names = ", ".join(ascii(str(name)[:40]) for name in list(document)[:3]) or "nothing"
        raise CheckpointError(f"{path} holds {names} and no tensors; expected the weights of a network by their names")
    for name, tensor in tensors.items():
        # A few bytes can claim any shape by repeating themselves; converting them would fill the memory.
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {name[:80]!a} is sparse, quantised or repeated; expected plain tensors")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _read_object(path: Path, expected: str) -> dict[str, Any]:
    try:
        document = read_json(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}; expected {expected}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; copy it again") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} holds a {type(document).__name__}; expected {expected}")
    return document
