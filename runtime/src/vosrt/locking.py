"""Locks that let the threads which share a stream into it one at a time, and refuse calls from within a call."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

from vosrt.errors import InputError

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class CallLock:
    """Lets calls on one object run one after the other, whatever threads they come from."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None  # thread that is inside, and its call
        self._call = ""
        self._process = os.getpid()

    @contextmanager
    def hold(self, call: str) -> Iterator[None]:
        """Wait until no other thread is inside.

        Args:
            call: name of the call, for the error that another one may get.

        Raises:
            InputError: the calling thread is inside already, or another one was when this process was forked.
        """
        if self._owner == threading.get_ident():
            raise InputError(f"{call} was called within {self._call} of the same stream; let that call return first")
        if self._process != os.getpid():
            if self._lock.locked():
                raise InputError(
                    f"{self._call} ran in another thread when this process was forked and left the stream unfinished; "
                    "open another one in the child process"
                )
            self._process = os.getpid()
        with self._lock:
            self._owner, self._call = threading.get_ident(), call
            try:
                yield
            finally:
                self._owner = None


class _Locked(Protocol):
    @property
    def lock(self) -> CallLock: ...


_Owner = TypeVar("_Owner", bound=_Locked)


def exclusive(
    method: Callable[Concatenate[_Owner, _Arguments], _Result],
) -> Callable[Concatenate[_Owner, _Arguments], _Result]:
    """Have a method run while no other one of its object does; see `CallLock`."""

    @functools.wraps(method)
    def call(owner: _Owner, /, *arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        with owner.lock.hold(method.__name__):
            return method(owner, *arguments, **named)

    return call


class NotCopied:
    """Refuses `copy` and `pickle`: two objects would share one native state, and no copy of it can be made."""

    _instead = "make another one"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse.

        Raises:
            InputError: always.
        """
        raise InputError(f"a {type(self).__name__} cannot be copied or pickled; {self._instead}")


class Closing(ABC):
    """A context that closes the object at its end."""

    def __enter__(self) -> Self:
        """The object itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Let go of what the object holds."""


_engines: weakref.WeakSet[Any] = weakref.WeakSet()


def keep_in_children(engine: object) -> None:
    """Never free an engine in a process that forks off: that would wait for threads that stayed in the parent.

    Those of OpenVINO have some even where they compute in one.
    """
    _engines.add(engine)


def _after_fork() -> None:
    for engine in _engines:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
