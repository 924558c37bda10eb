"""Families of released weights, for commands, which name them before PyTorch is loaded."""

from __future__ import annotations

from enum import StrEnum


class Family(StrEnum):
    """Methods whose weights are read; ``transformers`` takes what ``config.json`` names."""

    CRW = "crw"
    DINO = "dino"
    DINOV2 = "dinov2"
    DINOV3 = "dinov3"
    MOCO = "moco"
    VFS = "vfs"
    TRANSFORMERS = "transformers"
