"""A training that is killed goes on as if nothing had happened; what does not fit together is refused."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vosrt.errors import WorkError
from vosrt_train.checkpoint import load_checkpoint
from vosrt_train.config import TrainConfig
from vosrt_train.config_file import load_config
from vosrt_train.data.cache import Cache
from vosrt_train.distributed import World
from vosrt_train.loop import train
from vosrt_train.model import build_encoder
from vosrt_train.run import Task
from vosrt_train.state import Progress, StateError, load_state

PROGRAM = "import sys; sys.argv[0] = 'vos-train'; from vosrt_train.cli import main; sys.exit(main())"
COMMAND = (sys.executable, "-W", "error", "-c", PROGRAM)
PATIENCE_S = 120
ConfigOf = Callable[..., TrainConfig]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path, tiny_videos: Path, tiny_changes: tuple[str, ...]) -> Start:
    """Starts ``vos-train`` on the tiny videos as a user does: ``start("run", "--resume", changes=("seed=1",))``."""

    def run(output: str, *arguments: str, changes: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        settings = () if "--resume" in arguments else ("--preset", "cpu-2h", *set_options(tiny_changes + changes))
        return subprocess.Popen(
            [*COMMAND, str(tiny_videos), "-o", output, "--cache", "cache", *settings, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        )

    return run


def set_options(changes: tuple[str, ...]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and stderr."""
    _, stderr = process.communicate(timeout=PATIENCE_S)
    return process.returncode, stderr


def wait_for_steps(process: subprocess.Popen[str], run: Path, steps: int) -> None:
    """Wait until a training has written down so many steps."""
    deadline = time.monotonic() + PATIENCE_S
    path = run / "scalars.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= steps:
            return
        time.sleep(0.005)
    raise AssertionError(f"the training ended or hung before step {steps}: {finish(process)}")


def figures(run: Path) -> list[dict[str, Any]]:
    """The scalars of every step, without the times."""
    lines = [json.loads(line) for line in (run / "scalars.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("speed/")} for line in lines]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_killed_and_resumed_equals_uninterrupted(start: Start, tmp_path: Path) -> None:
    """SIGKILL between two states leaves the scalars of every step and the bytes of the final checkpoint the same.

    The run crosses the border of an epoch, with validation off and clips from a worker process.
    """
    changes = ("schedule.steps=40", "log.checkpoint=7", "clips.workers=1", "clips.batch=2")
    whole = start("whole", changes=changes)
    assert finish(whole)[0] == 0

    killed = start("killed", changes=changes)
    wait_for_steps(killed, tmp_path / "killed", 11)
    killed.kill()
    assert finish(killed)[0] == -signal.SIGKILL
    reached = len(figures(tmp_path / "killed"))
    resumed_from = load_state(tmp_path / "killed" / "state.pt").progress.step
    assert 0 < resumed_from < reached < 40, "it was not killed between two states"

    code, stderr = finish(start("killed", "--resume"))
    assert code == 0, stderr
    assert "40 of 40 steps" in stderr
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")
    assert [line["step"] for line in figures(tmp_path / "whole")] == list(range(1, 41))
    assert digest(tmp_path / "killed" / "last.safetensors") == digest(tmp_path / "whole" / "last.safetensors")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_finishes_the_step(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM give exit code 130, a state of the very last step, and a hint at --resume."""
    process = start("run", changes=("schedule.steps=5000", "log.checkpoint=5000"))
    wait_for_steps(process, tmp_path / "run", 3)
    os.kill(process.pid, number)
    code, stderr = finish(process)
    assert code == 130
    assert "interrupted; go on with --resume" in stderr
    state = load_state(tmp_path / "run" / "state.pt")
    assert state.progress.step == len(figures(tmp_path / "run")) >= 3
    weights = load_checkpoint(tmp_path / "run" / "last.safetensors").encoder.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in state.network.items())


@pytest.fixture
def finished(tiny_cache: Cache, tiny_config: ConfigOf, tmp_path: Path) -> Task:
    """A finished training of four steps."""
    config = tiny_config("schedule.steps=4")
    task = Task(config, tiny_cache, tmp_path, quiet=True)
    run_again(task)
    return replace(task, resume=True)


def run_again(task: Task) -> Progress:
    return train(task, build_encoder(task.config.encoder, seed=0), World(torch.device("cpu")))


def test_a_finished_training_has_nothing_left_to_do(finished: Task) -> None:
    before = digest(finished.run / "last.safetensors"), figures(finished.run)
    assert run_again(finished).step == 4
    assert (digest(finished.run / "last.safetensors"), figures(finished.run)) == before


AVERAGED = ("schedule.decay=hold", "optimiser.average=0.9")


def test_a_training_that_holds_its_rate_can_be_made_longer(
    finished: Task, tiny_config: ConfigOf, tmp_path: Path
) -> None:
    """Four steps and then two more end in the bytes of six; the average goes on too, and the longer plan is kept."""
    ends = {}
    for name, lengths in (("at once", (6,)), ("in two parts", (4, 6))):
        run = tmp_path / name
        run.mkdir()
        for resume, steps in enumerate(lengths):
            config = tiny_config(f"schedule.steps={steps}", *AVERAGED)
            run_again(replace(finished, config=config, run=run, resume=bool(resume)))
        ends[name] = digest(run / "last.safetensors")
    assert len(set(ends.values())) == 1
    assert load_config(str(tmp_path / "in two parts" / "config.toml")).schedule.steps == 6


def test_the_average_is_what_is_saved(finished: Task, tiny_config: ConfigOf, tmp_path: Path) -> None:
    """One step from equal weights: the average has gone a tenth of the way that the weights went."""
    run = tmp_path / "averaged"
    run.mkdir()
    before = build_encoder(finished.config.encoder, seed=0).state_dict()
    run_again(Task(tiny_config("schedule.steps=1", *AVERAGED), finished.cache, run, quiet=True))
    after = load_state(run / "state.pt").network
    saved = load_checkpoint(run / "last.safetensors").encoder.state_dict()
    name = next(name for name in before if name.endswith("conv1.weight"))
    torch.testing.assert_close(saved[name] - before[name], 0.1 * (after[name] - before[name]))
    assert not torch.equal(after[name], before[name])


def test_other_settings_are_refused(finished: Task, tiny_config: ConfigOf) -> None:
    """Those that change nothing of the result are taken."""
    changed = tiny_config("schedule.steps=4", "optimiser.learning_rate=0.5")
    with pytest.raises(StateError, match=r"optimiser.learning_rate: 0.0004 and 0.5"):
        run_again(replace(finished, config=changed))
    run_again(replace(finished, config=tiny_config("schedule.steps=4", "log.every=2", "log.checkpoint=1")))


def test_other_videos_are_refused(finished: Task) -> None:
    fewer = Cache(finished.cache.videos[1:], ())
    with pytest.raises(StateError, match="the videos have changed"):
        run_again(replace(finished, cache=fewer))


def test_damaged_states_are_refused(finished: Task) -> None:
    """One that is cut, of another program or of a newer version gives one line that says what to do."""
    path = finished.run / "state.pt"
    whole = path.read_bytes()
    for data in (b"", b"PK\x03\x04", whole[: len(whole) // 2], b"\x80\x02cos\nsystem\n."):
        path.write_bytes(data)
        with pytest.raises(StateError, match="is not a whole state"):
            load_state(path)
    torch.save({"format": 2}, path)
    with pytest.raises(StateError, match="has format 2, this vosrt reads 1"):
        load_state(path)
    torch.save({"format": 1, "config": {"seed": -1}, "progress": {"total_steps": 1}}, path)
    with pytest.raises(StateError, match="seed is -1"):
        load_state(path)
    path.unlink()
    with pytest.raises(StateError, match="nothing to resume"):
        load_state(path)


def test_a_changed_byte_of_a_state_is_found(finished: Task) -> None:
    path = finished.run / "state.pt"
    whole = path.read_bytes()
    for position in (0, 20, 60, len(whole) // 2, len(whole) - 1):
        data = bytearray(whole)
        data[position] ^= 0x10
        path.write_bytes(data)
        with pytest.raises(StateError, match="is not a whole state") as refused:
            load_state(path)
        assert "\n" not in str(refused.value)
    path.write_bytes(whole)
    assert load_state(path).progress.step == 4


def test_a_full_disk_keeps_the_earlier_state(finished: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (finished.run / "state.pt").read_bytes()

    sync = os.fsync

    def full(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > 10_000:  # weights, and not the scalars that are written before them
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkError, match=r"cannot be written .No space left on device"):
        run_again(replace(finished, resume=False))
    assert (finished.run / "state.pt").read_bytes() == before
    assert not list(finished.run.glob(".state*"))
