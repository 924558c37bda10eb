"""Reports of long functions on their stages, which `vosrt.console.status` shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Tell: TypeAlias = Callable[[str], None]


def silent(stage: str) -> None:
    """Show nothing: the default of functions that report stages."""
