"""Import of Polygraphy for a flavour of TensorRT, without its output."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from vosrt.engines.tensorrt_flavour import TENSORRT_RTX, Flavour
from vosrt.errors import MissingExtraError
from vosrt.text import reason_of
from vosrt_export.errors import ExportError

_VARIABLE = "POLYGRAPHY_USE_TENSORRT_RTX"
# TensorRT logs this as an error whenever it builds for another GPU than that of the machine, and continues.
_NO_DRIVER = "cudaError 35"


def load_polygraphy(flavour: Flavour) -> ModuleType:
    """Import ``polygraphy.backend.trt`` for a flavour; Polygraphy settles on one per process when it is imported.

    Raises:
        MissingExtraError: it is not installed.
        ExportError: it was imported for the other flavour before.
    """
    rtx = flavour is TENSORRT_RTX
    if "polygraphy" not in sys.modules:
        os.environ[_VARIABLE] = "1" if rtx else "0"
    try:
        config = importlib.import_module("polygraphy.config")
        module = importlib.import_module("polygraphy.backend.trt")
    except ImportError:
        raise MissingExtraError("Polygraphy", "tensorrt-rtx") from None
    if rtx != config.USE_TENSORRT_RTX:
        raise ExportError(
            f"Polygraphy was loaded for the other TensorRT in this process ({_VARIABLE}); "
            f"build {flavour.name} engines in another one"
        )
    return module


@contextmanager
def failures_as_errors(what: str) -> Iterator[None]:
    """Turn errors of Polygraphy into one line with the reason of TensorRT, and print nothing else.

    Args:
        what: the failure in words, before the reason.

    Raises:
        ExportError: Polygraphy or TensorRT failed.
    """
    logger_module = importlib.import_module("polygraphy.logger")
    polygraphy, heard = logger_module.G_LOGGER, _Errors()
    log = logging.getLogger("Polygraphy")
    before = polygraphy.use_python_logging_system, polygraphy.module_severity, log.propagate
    polygraphy.use_python_logging_system, polygraphy.module_severity = True, polygraphy.ERROR
    log.propagate = False
    log.addHandler(heard)
    failed = importlib.import_module("polygraphy.exception").PolygraphyException
    try:
        with warnings.catch_warnings():
            # Polygraphy sets a timing cache, which TensorRT-RTX takes, ignores and warns about.
            warnings.filterwarnings("ignore", "Use Deprecated in TensorRT", DeprecationWarning)
            yield
    except failed as error:
        raise ExportError(f"{what}: {heard.reason or reason_of(error)}") from error
    finally:
        log.removeHandler(heard)
        polygraphy.use_python_logging_system, polygraphy.module_severity, log.propagate = before


class _Errors(logging.Handler):
    """Keeps the last error that has a reason."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = reason_of(Exception(record.getMessage())).removeprefix("[E] ").removeprefix("[!] ")
        if record.levelno < logging.CRITICAL and _NO_DRIVER not in text:
            self.reason = text
