"""What a process gives up before it runs the network of a stranger.

Linux lets only a process of one thread leave its user namespace, so `fence` comes before everything else, and this
module imports no NumPy, which starts threads.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal

_NEW_USER, _NEW_NET = 0x1000_0000, 0x4000_0000  # of sched.h
_LEAST_BYTES = 4 << 30  # engines reserve addresses for stacks and libraries that they never fill
_SHARE = 0.75  # of the machine's memory


def fence() -> None:
    """Bound the addresses of this process, and take the network away where the system permits that."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    most = max(_LEAST_BYTES, int(_SHARE * physical))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process when it is done
    unshare = getattr(ctypes.CDLL(None), "unshare", None)  # of Linux
    if unshare is not None and unshare(_NEW_NET):  # needs privileges, which a user namespace of one's own gives
        unshare(_NEW_USER | _NEW_NET)
