"""The first signal asks, the second changes nothing, the third ends; forked children die of signals as ever."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import pytest

from vosrt._signals import handled, stoppable

WAIT = """
import sys, time
from vosrt._signals import handled, stoppable
with handled(), stoppable() as stop:
    print("ready", flush=True)
    while not (stop.is_set() and "finish" in sys.argv):
        time.sleep(0.01)
time.sleep(0.3)
print("finished", flush=True)
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready")
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_signals_let_the_work_be_finished(number: signal.Signals) -> None:
    """The second may even come when the interpreter is about to end."""
    process = start("finish")
    process.send_signal(number)
    time.sleep(0.15)
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("finished\n", "")
    assert process.returncode == 0


def test_a_third_signal_ends_at_once() -> None:
    process = start()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.15)  # signals of one kind that wait are one
    assert process.communicate(timeout=60) == ("", "interrupted: ended at once\n")
    assert process.returncode == 130


FORK = """
import os, signal, time
from vosrt._signals import handled, stoppable
with handled(), stoppable() as stop:
    child = os.fork()
    if child == 0:
        time.sleep(60)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]), stop.is_set())
"""


def test_a_forked_child_dies_of_a_signal() -> None:
    process = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=False)
    assert (process.stdout, process.stderr) == (f"{signal.SIGTERM.value} False\n", "")


IMPORT = """
import sys
from vosrt._entry import _run
sys.path.insert(0, sys.argv[1])
sys.exit(_run("slow"))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_modules_are_imported_is_one_line(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORT, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("", "interrupted: nothing was written\n")
    assert process.returncode == 130


def test_a_command_that_is_imported_runs(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("def main():\n    return 3\n")
    assert subprocess.run([sys.executable, "-c", IMPORT, str(tmp_path)], check=False).returncode == 3


def test_a_signal_that_interrupts_the_first_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second comes while the first one sets the event, and so holds the event's lock."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("the second signal waits for the first")

    before = signal.signal(signal.SIGALRM, give_up)
    try:
        with handled(), stoppable() as stop:
            monkeypatch.setattr(stop._cond, "notify_all", lambda: signal.raise_signal(signal.SIGTERM))  # type: ignore[attr-defined]
            signal.alarm(5)
            signal.raise_signal(signal.SIGTERM)
            assert stop.is_set()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
