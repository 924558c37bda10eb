"""Errors of an export, in a module that imports without PyTorch."""

from __future__ import annotations

from vosrt.errors import WorkError


class ExportError(WorkError):
    """A network could not be exported, or the exported graph computes something else."""
