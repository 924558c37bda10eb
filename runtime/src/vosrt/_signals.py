"""Ctrl-C and ``kill``: the first asks a command to finish its files, the second changes nothing, the third ends it."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ENDS_AT_ONCE = 3
_EXIT_INTERRUPTED = 130


class _Handler:
    """Handler of SIGINT and SIGTERM while a command runs."""

    def __init__(self) -> None:
        self.count = 0
        self.stop: threading.Event | None = None
        self._told: threading.Event | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count >= _ENDS_AT_ONCE:
            os.write(2, b"interrupted: ended at once\n")
            os._exit(_EXIT_INTERRUPTED)
        if self.stop is not None:
            # Once: a signal that interrupts `set` while that holds its lock would wait for the lock forever.
            if self._told is not self.stop:
                self._told = self.stop
                self.stop.set()
        elif self.count == 1:
            raise KeyboardInterrupt


_current: _Handler | None = None
_replaced: list[dict[signal.Signals, Any]] = []  # by each of ours that is installed, oldest first


def _put_back(before: dict[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


def _after_fork() -> None:
    """Give a forked child, which has nothing to finish, the handlers from before."""
    global _current
    for before in reversed(_replaced):
        _put_back(before)
    _current = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def handled() -> Iterator[None]:
    """Have Ctrl-C and ``kill`` end what runs inside alike; outside the main thread nothing is changed."""
    global _current
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outer, _current = _current, _Handler()
    handler = _current
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    _replaced.append(before)
    try:
        yield
    finally:
        _current = outer
        if not handler.count:
            _replaced.remove(before)
            _put_back(before)
        elif hasattr(signal, "pthread_sigmask"):
            # Further signals may still come, even while the interpreter ends, which takes handlers away.
            atexit.register(signal.pthread_sigmask, signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """Let a signal set an event instead of raising `KeyboardInterrupt`, so that no line inside is torn apart.

    Yields:
        The event. It is never set where `handled` is not active: then Ctrl-C raises, as it does in Python.
    """
    stop, handler = threading.Event(), _current
    if handler is None:
        yield stop
        return
    outer, handler.stop = handler.stop, stop
    try:
        yield stop
    finally:
        handler.stop = outer
