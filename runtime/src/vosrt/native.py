"""Finding the native core: which implementation of the operations runs, and why."""

from __future__ import annotations

import importlib
import os
from typing import Any

from vosrt.errors import OptionError


def find_native() -> tuple[Any, str]:
    """The native module if it is to be used, else None with the reason and what to do.

    The environment variable ``VOSRT_CORE`` (``native`` or ``numpy``) forces one.

    Raises:
        OptionError: ``VOSRT_CORE`` has another value, or forces a native core that is not there.
    """
    forced = os.environ.get("VOSRT_CORE", "")
    if forced not in ("", "native", "numpy"):
        raise OptionError(f"VOSRT_CORE is {forced!r}; expected 'native' or 'numpy', or leave it unset")
    if forced == "numpy":
        return None, "VOSRT_CORE=numpy"
    try:
        return importlib.import_module("vosrt._native"), ""
    except ImportError as error:
        remedy = "install a C++20 compiler and reinstall vosrt without VOSRT_NO_NATIVE"
        why = f"the native core cannot be loaded ({' '.join(str(error).split())}); {remedy}"
    if forced == "native":
        raise OptionError(f"VOSRT_CORE=native, but {why}")
    return None, why
