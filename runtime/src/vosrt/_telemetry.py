"""Keep the libraries that run networks from reporting to their makers.

ONNX Runtime (from 1.32 on) posts a device id and the path of the interpreter, and OpenVINO's Python package posts every
import. Both write into the home folder for it, and both hold a program up where names do not resolve. Importing this
module opts out of the former for this process and its children; `quiet_import` imports the latter without its reporter.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from types import ModuleType

# Read once, when the library is loaded; a value that the user set stands.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_REPORTER = "openvino_telemetry"
_lock = threading.Lock()


def quiet_import(name: str) -> ModuleType:
    """Import OpenVINO, or a module of it, as if `openvino-telemetry` were not installed.

    Raises:
        ImportError: it is not installed.
    """
    with _lock:
        known = {key: sys.modules.pop(key) for key in list(sys.modules) if key.partition(".")[0] == _REPORTER}
        sys.modules[_REPORTER] = None  # type: ignore[assignment]  # importing it is an ImportError
        try:
            return importlib.import_module(name)
        finally:
            del sys.modules[_REPORTER]
            sys.modules.update(known)
