"""What every command shares: one line per error, the right exit code, and words for missing extras."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import typer

from vosrt.errors import MissingExtraError, VosrtError

ENGINE_HELP = (
    "auto, tensorrt-direct, tensorrt-rtx-direct, tensorrt, tensorrt-rtx, cuda, openvino, openvino-direct or cpu; "
    "see [b]vos-run doctor[/b]."
)
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

# What a wrong option raises. Its base class is click's, of which newer versions of typer carry a copy.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def run_app(app: typer.Typer) -> NoReturn:
    """Run a command line; an error of ours becomes one line on stderr and its exit code."""
    try:
        app()
    except VosrtError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(0)


def call(app: typer.Typer, arguments: list[str], name: str) -> int:
    """Run a command line whose commands return their exit code.

    Every error is one line on stderr; after ``--json`` also a JSON object on stdout. ``kill`` ends it as Ctrl-C does.

    Args:
        app: the command.
        arguments: of the command line, without the program.
        name: of the command, as a person types it.

    Returns:
        The exit code: that of the command, of its error, 2 (wrong usage) or 130 (interrupted).
    """
    try:
        with _terminate_like_ctrl_c():
            code = app(arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except VosrtError as error:
        return _fail(str(error), error.exit_code, arguments)
    except _UsageError as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        return _fail(f"{message.rstrip('.')}; see {name} --help", EXIT_USAGE, arguments)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted: nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout has gone, as in `vos-run … | head`; the results are on disk all the same.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A path that cannot even be looked up: a name too long, a folder that this user may not enter.
        if error.filename is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}; expected a path that can be used", EXIT_USAGE, arguments)


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


def _fail(message: str, code: int, arguments: list[str]) -> int:
    if "--json" in arguments:
        print(json.dumps({"error": message, "exit_code": code}, ensure_ascii=False))
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


@contextmanager
def _terminate_like_ctrl_c() -> Iterator[None]:
    """Let ``kill`` finish the files as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
