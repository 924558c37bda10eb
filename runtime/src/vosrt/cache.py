"""Where vosrt keeps what can always be made again: engines, and decoded frames of trainings."""

from __future__ import annotations

import os
from pathlib import Path

from vosrt.errors import OptionError

CACHE_VARIABLE = "VOSRT_CACHE"


def cache_root() -> Path:
    """The user's folder for it: ``$VOSRT_CACHE``, else ``$XDG_CACHE_HOME/vosrt``, else ``~/.cache/vosrt``.

    It may not exist yet.

    Raises:
        OptionError: none of these is known, as for a user without a home.
    """
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vosrt"
    except RuntimeError as error:
        raise OptionError(f"there is no home directory to keep files in; set {CACHE_VARIABLE} to a folder") from error
