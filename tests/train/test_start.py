"""``vos-train DATA``: what it plans, what it refuses before any work, and where a fine-tuning starts."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import torch

import vosrt_train.cli
from vosrt._files import locked
from vosrt.errors import OutputError, VosrtError
from vosrt_train.checkpoint import Checkpoint, Training, load_checkpoint, save_checkpoint
from vosrt_train.config import EncoderConfig, TrainConfig
from vosrt_train.model import build_encoder
from vosrt_train.prepare import default_cache, starting_encoder
from vosrt_train.start import TrainRequest, dry_run_training, run_training
from vosrt_train.state import load_state, save_state


@pytest.fixture
def request_of(tiny_videos: Path, tiny_changes: tuple[str, ...], tmp_path: Path) -> TrainRequest:
    return TrainRequest(
        data=tiny_videos,
        run=tmp_path / "run",
        preset="cpu-2h",
        changes=(*tiny_changes, "schedule.steps=2"),
        cache=tmp_path / "cache",
        quiet=True,
    )


def variant(request: TrainRequest, **changes: object) -> TrainRequest:
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]


def refusal(request: TrainRequest) -> str:
    with pytest.raises(VosrtError) as caught:
        run_training(request)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of the command in this process."""
    monkeypatch.setattr(sys, "argv", ["vos-train", *map(str, arguments)])
    return vosrt_train.cli.main()


def test_a_training_from_the_command_line(
    request_of: TrainRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command makes cache, training, checkpoint and report; the licence is in the checkpoint."""
    settings = [word for change in request_of.changes for word in ("--set", change)]
    options = ("--preset", "cpu-2h", "--cache", request_of.cache, "--licence", "CC0-1.0", *settings)
    assert command(monkeypatch, request_of.data, "-o", request_of.run, *options) == 0
    told = capsys.readouterr().err
    assert "6 to decode" in told
    assert re.search(r"^decoding: [1-6] of 6 videos, 0.0 GB$", told, re.MULTILINE)
    assert "2 of 2 steps in" in told
    assert f"weights: {request_of.run / 'last.safetensors'}" in told
    assert load_checkpoint(request_of.run / "last.safetensors").training.licence == "CC0-1.0"
    assert (request_of.run / "skipped.tsv").read_text() == ""


def test_without_arguments_it_explains_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch) == 0
    assert "Learn from videos without labels" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.toml", "skipped.tsv", "best.safetensors", "last.safetensors"])
def test_a_file_of_the_user_in_the_folder_of_a_run_is_refused(request_of: TrainRequest, name: str) -> None:
    request_of.run.mkdir()
    (request_of.run / name).write_text("mine")
    with pytest.raises(OutputError, match=f"{name}: is not a file that this run wrote"):
        run_training(request_of)
    assert [path.name for path in request_of.run.iterdir()] == [name]
    assert (request_of.run / name).read_text() == "mine"


def test_a_second_training_into_a_folder_is_refused(request_of: TrainRequest) -> None:
    with locked(request_of.run), pytest.raises(OutputError, match="is writing there; wait for it"):
        run_training(request_of)
    assert run_training(request_of) == 0


def test_dry_run_plans_and_writes_nothing(request_of: TrainRequest, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan is an estimate before the cache exists, and exact afterwards."""
    dry_run_training(request_of)
    plan = capsys.readouterr().out
    assert "has 0 videos, 6 to decode, about 0.0 GB" in plan
    assert "6 videos, about 1 step an epoch of 4 clips of 3 frames at 48 × 48 pixels" in plan
    assert "2 steps, about 2 epochs" in plan
    assert "s a step on cpu (fp32, 1 thread)" in plan
    assert "expected duration 0:00:0" in plan  # seconds, on a machine however busy
    assert not request_of.run.exists()
    assert request_of.cache is not None
    assert not request_of.cache.exists()
    assert run_training(request_of) == 0
    dry_run_training(request_of)
    assert "has all 6 videos\n6 videos, 1 step an epoch" in capsys.readouterr().out


def test_fine_tuning_starts_from_the_checkpoint(request_of: TrainRequest, tmp_path: Path) -> None:
    """With a rate of zero, what comes out is what went in, but for the running statistics; the licence is inherited."""
    path = tmp_path / "start.safetensors"
    start = build_encoder(EncoderConfig(width=8, key_channels=8), seed=5)
    save_checkpoint(Checkpoint(start, Training(trained=True, seed=5, summary="", licence="MIT")), path)
    changes = (*request_of.changes, "optimiser.learning_rate=0")
    assert run_training(variant(request_of, init=str(path), changes=changes)) == 0
    checkpoint = load_checkpoint(request_of.run / "last.safetensors")
    assert checkpoint.training.licence == "MIT"
    found = checkpoint.encoder
    for (name, before), after in zip(start.named_parameters(), found.parameters(), strict=True):
        assert torch.equal(before, after), name


def test_a_network_without_layer4_grows(tmp_path: Path) -> None:
    """What it has is kept, what it lacks is as a new network has it; the other way round, layer4 is left out."""
    small, whole = EncoderConfig(width=8, key_channels=8, layer4=False), EncoderConfig(width=8, key_channels=8)
    path = tmp_path / "small.safetensors"
    trained = build_encoder(small, seed=5)
    save_checkpoint(Checkpoint(trained, Training(trained=True, seed=5, summary="", licence="")), path)
    grown = starting_encoder(TrainConfig(encoder=whole, seed=1), str(path))
    fresh = build_encoder(whole, seed=1).state_dict()
    closed = {f"backbone.layer4.{block}.bn2.weight" for block in range(2)}
    for name, tensor in grown.state_dict().items():
        wanted = torch.zeros_like(tensor) if name in closed else trained.state_dict().get(name, fresh[name])
        assert torch.equal(tensor, wanted), name
    save_checkpoint(Checkpoint(grown, Training(trained=True, seed=5, summary="", licence="")), path)
    cut = starting_encoder(TrainConfig(encoder=small, seed=1), str(path))
    assert cut.config == small
    for name, tensor in trained.state_dict().items():
        assert torch.equal(cut.state_dict()[name], tensor), name


def test_refused_before_any_work(request_of: TrainRequest, tmp_path: Path) -> None:
    """Each gives one line and exit code 2, and no folder is made."""
    empty = tmp_path / "empty"
    empty.mkdir()
    other = tmp_path / "other.safetensors"
    encoder = build_encoder(EncoderConfig(width=2, layer4=False), seed=0)
    save_checkpoint(Checkpoint(encoder, Training(trained=False, seed=0, summary="", licence="")), other)
    for changes, says in (
        ({"preset": "gpu"}, "no preset or file 'gpu'"),
        ({"init": "nowhere.safetensors"}, "no such checkpoint: nowhere.safetensors"),
        ({"init": str(other)}, "set encoder.width and encoder.key_channels"),
        ({"validation": empty}, "not in the layout of DAVIS"),
        ({"resume": True}, "nothing to resume"),
        ({"resume": True, "preset": None}, "nothing to resume"),
        ({"resume": True, "init": str(other)}, "leave out --init, or leave out --resume"),
        ({"data": empty}, "no videos"),
        ({"data": tmp_path / "nowhere"}, "nowhere"),
    ):
        assert says in refusal(variant(request_of, **changes)), changes
        assert not request_of.run.exists(), changes


def test_a_run_is_not_overwritten(request_of: TrainRequest) -> None:
    assert run_training(request_of) == 0
    assert "holds a training; go on with it with --resume" in refusal(request_of)
    assert run_training(variant(request_of, resume=True, preset=None, changes=())) == 0


def test_resuming_remembers_what_was_given(request_of: TrainRequest, tmp_path: Path, davis: Path) -> None:
    """Licence and validation are the run's; they need not be given again."""
    given = variant(request_of, licence="CC0-1.0", validation=davis, changes=request_of.changes)
    assert run_training(given) == 0
    (request_of.run / "best.safetensors").unlink()
    state = load_state(request_of.run / "state.pt")
    state.progress.step, state.progress.best = 0, None
    save_state(state, request_of.run / "state.pt")
    assert run_training(variant(request_of, resume=True, preset=None, changes=())) == 0
    assert load_checkpoint(request_of.run / "best.safetensors").training.licence == "CC0-1.0"


def test_each_folder_of_videos_has_its_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the user's cache directory, by the folder's place and not by how it was named."""
    monkeypatch.delenv("VOSRT_CACHE", raising=False)  # which goes before
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one, two = default_cache(Path("a/videos")), default_cache(Path("b/videos"))
    assert one != two
    assert one.parent == two.parent == tmp_path / "vosrt"
    assert default_cache(Path("a/../a/videos")) == one
