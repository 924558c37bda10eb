"""Engines in processes of their own: the same labels, and an error of one line where such a process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fakes.programs import error_line
from vosrt.cli.run import main as vos_run
from vosrt.engines import isolated
from vosrt.engines.isolated import IsolatedEngine
from vosrt.errors import EngineError, OptionError
from vosrt.model import Model


def arguments(clip: Path, out: Path, *more: str) -> list[str]:
    return [str(clip), "--mask", str(clip.parent / "mask.png"), "-o", str(out), "--threads", "1", "--quiet", *more]


@pytest.mark.parametrize("bundle", ["fast", "refined"])
def test_labels_are_the_same(bundle: str, clip: Path, tmp_path: Path, skip_or_fail: Callable[..., None]) -> None:
    """Mask networks have processes of their own too."""
    if vos_run(arguments(clip, tmp_path / "inside", "--bundle", bundle, "--engine", "openvino")) == 2:
        skip_or_fail("no OpenVINO", required="openvino")
    assert vos_run(arguments(clip, tmp_path / "apart", "--bundle", bundle, "--engine", "openvino", "--isolated")) == 0
    for index in range(6):
        inside, apart = (
            np.asarray(Image.open(tmp_path / where / "masks" / f"{index:05}.png")) for where in ("inside", "apart")
        )
        assert inside.any()
        np.testing.assert_array_equal(inside, apart)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_crashes_is_one_line(
    number: signal.Signals,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the middle of a run the exit code is 1, and what was finished is kept."""
    right, runs = IsolatedEngine.run, []

    def run(self: IsolatedEngine, inputs: isolated.Arrays) -> isolated.Arrays:
        runs.append(1)
        if len(runs) == 4:
            os.kill(self.process_id, number)
        return right(self, inputs)

    monkeypatch.setattr(IsolatedEngine, "run", run)
    assert vos_run(arguments(clip, tmp_path / "out", "--bundle", "fast", "--isolated")) == 1
    assert error_line(capsys).startswith("error: the isolated engine's process ended by " + number.name)
    assert len(list((tmp_path / "out" / "masks").iterdir())) in (2, 3)  # the frame before may be on its way


def test_an_engine_that_ended_stays_so(skip_or_fail: Callable[..., None]) -> None:
    """Each further frame raises the same error without waiting."""
    model = Model.load("fast", threads=1, isolated=True)
    engine = model._engines["encoder"]
    assert isinstance(engine, IsolatedEngine)
    os.kill(engine.process_id, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(EngineError, match="SIGKILL"):
            model.encode(np.zeros((32, 32, 3), np.uint8))


def test_the_process_ends_with_the_program() -> None:
    """It does so also where the program is killed."""
    code = (
        "import os, signal; from vosrt.model import Model; model = Model.load('fast', threads=1, isolated=True);"
        "print(model._engines['encoder'].process_id, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    status = Path(f"/proc/{int(done.stdout)}/stat")
    deadline = time.monotonic() + 30
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_its_memory_is_bounded() -> None:
    model = Model.load("fast", threads=1, isolated=True)
    engine = model._engines["encoder"]
    assert isinstance(engine, IsolatedEngine)
    limits = Path(f"/proc/{engine.process_id}/limits").read_text()
    (line,) = (each for each in limits.splitlines() if each.startswith("Max address space"))
    assert line.split()[3].isdecimal()


@pytest.mark.parametrize(("engine", "device"), [("cuda", "cpu"), ("tensorrt", "cpu"), ("auto", "cuda")])
def test_gpus_are_refused(engine: str, device: str) -> None:
    with pytest.raises(OptionError, match="isolated networks run on the processor; use device 'cpu'"):
        Model.load("fast", engine=engine, device=device, isolated=True)


def test_wrong_input_stays_wrong_input() -> None:
    """An error of the child keeps its kind."""
    with pytest.raises(OptionError, match="engine is 'gpu'; expected one of"):
        Model.load("fast", engine="gpu", isolated=True)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "[]",
        "{}",
        '{"arrays": 1}',
        '{"arrays": [["x", "float32", [2147483647, 65536]]]}',
        '{"arrays": [["x", "float32", [1000]]]}',
        '{"arrays": [["x", "float32", [-1]]]}',
        '{"arrays": [["x", "object", [0]]]}',
        '{"arrays": [["x", ["float32"], [0]]]}',
        "[" * 70_000,
        "[" * 60_000,
    ],
)
def test_answers_that_are_none(answer: str, tmp_path: Path) -> None:
    """Nothing that a child says is trusted."""
    (tmp_path / "answer").write_bytes(len(answer).to_bytes(4, "little") + answer.encode())
    with open(tmp_path / "answer", "rb") as pipe, pytest.raises((EOFError, ValueError)):
        isolated._receive(pipe)
