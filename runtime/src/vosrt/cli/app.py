"""What every command shares: one line per error, the right exit code, and words for missing extras."""

from __future__ import annotations

import importlib.util
import sys
from typing import NoReturn

import typer

from vosrt.errors import MissingExtraError, VosrtError


def run_app(app: typer.Typer) -> NoReturn:
    """Run a command line; an error of ours becomes one line on stderr and its exit code."""
    try:
        app()
    except VosrtError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(0)


def require(module: str, what: str, extra: str) -> None:
    """Refuse to go on without an optional package.

    Args:
        module: name of the module that it brings, e.g. ``"torch"``.
        what: its name for people, e.g. ``"PyTorch"``.
        extra: the extra of this distribution that brings it.

    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(what, extra)
