"""Commands in processes of their own, which a test can interrupt in the middle of their work on any machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# Once a file matches the pattern, every further frame takes this long, so that a run cannot end between the moment when
# a test sees the file and the moment when its signal arrives. Workers that a command spawns read the module as well.
_MODULE = """
import glob, os, time
from vosrt.engines.fake import FakeEngine

embed = FakeEngine._embed
def slow(self, frame):
    time.sleep(0.25 * bool(glob.glob(os.environ["SLOW_AFTER"])))
    return embed(self, frame)
FakeEngine._embed = slow
"""


def error_line(capture: Any) -> str:
    """What a command printed on standard error: one line that says what is wrong."""
    error: str = capture.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def program(*arguments: str, command: str = "run") -> list[str]:
    """The command line of `vos-run`, or of another command of the runtime, in this Python."""
    return [sys.executable, "-c", f"import sys; from vosrt.cli.{command} import main; sys.exit(main())", *arguments]


def printed_by(code: str) -> str:
    """What Python code prints in a process of its own, which must succeed."""
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def start(
    folder: Path, arguments: list[str], slow_after: Path, command: str = "run", files: int = 1
) -> subprocess.Popen[str]:
    """Start `vos-run` or another command on the fake engine, and return once so many files match `slow_after`.

    Args:
        folder: existing folder, where the module that makes the engine slow is written.
        slow_after: pattern of the path of a file that the command writes; from the first such file on, frames are slow.
        files: how many files have to match before the function returns.
    """
    (folder / "slow").mkdir(exist_ok=True)
    (folder / "slow" / "sitecustomize.py").write_text(_MODULE)
    environment = os.environ | {"PYTHONPATH": str(folder / "slow"), "SLOW_AFTER": str(slow_after)}
    process = subprocess.Popen(
        program(*arguments, command=command),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    top = Path(slow_after.anchor)
    wait_for(lambda: len(list(top.glob(str(slow_after.relative_to(top))))) >= files, process)
    return process


def wait_for(condition: Callable[[], T], process: subprocess.Popen[str] | None = None) -> T:
    """What the condition gives once it is true; the test fails after two minutes, or if the process ends before."""
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert process is None or process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return found
