"""What the commands start with: Ctrl-C while their modules are imported is no traceback."""

from __future__ import annotations

import os
import signal
from importlib import import_module

_EXIT_INTERRUPTED = 130


def _run(module: str) -> int:
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        command = import_module(module)
        signal.signal(signal.SIGTERM, before)
    except KeyboardInterrupt:
        os.write(2, b"interrupted: nothing was written\n")
        os._exit(_EXIT_INTERRUPTED)  # what is half imported may fail once more while the interpreter ends
    return int(command.main())


def vos_run() -> int:
    """Run ``vos-run``."""
    return _run("vosrt.cli.run")


def vos_bench() -> int:
    """Run ``vos-bench``."""
    return _run("vosrt.cli.bench")


def vos_eval() -> int:
    """Run ``vos-eval``."""
    return _run("vosrt.cli.eval")


def vos_export() -> int:
    """Run ``vos-export``."""
    return _run("vosrt_export.cli")


def vos_train() -> int:
    """Run ``vos-train``."""
    return _run("vosrt_train.cli")
