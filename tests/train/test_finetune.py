"""Fine-tuning: the preset that --init takes, its length, and the better of two networks."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.progress import ProgressColumn

import vosrt_train.keep_better
import vosrt_train.start
from vosrt.console import progress_bar
from vosrt.errors import OptionError
from vosrt.types import PropagationOptions
from vosrt_train.checkpoint import Checkpoint, CheckpointError, Inference, Training, load_checkpoint, save_checkpoint
from vosrt_train.config import EncoderConfig
from vosrt_train.config_file import load_config
from vosrt_train.data.cache import Cache
from vosrt_train.keep_better import keep_better, patches
from vosrt_train.model import Encoder, build_encoder
from vosrt_train.prepare import StepCost
from vosrt_train.run_folder import weights_of
from vosrt_train.start import TrainRequest, dry_run_training, run_training
from vosrt_train.state import Progress, load_state


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A checkpoint without layer4, as the bundled networks are."""
    path = tmp_path / "start.safetensors"
    encoder = build_encoder(EncoderConfig(width=8, key_channels=8, layer4=False), seed=5)
    save_checkpoint(Checkpoint(encoder, Training(trained=True, seed=5, summary="the start", licence="MIT")), path)
    return path


@pytest.fixture
def request_of(tiny_videos: Path, tiny_changes: tuple[str, ...], tmp_path: Path, start: Path) -> TrainRequest:
    """A fine-tuning with nothing said of its preset or of the shape of the encoder."""
    own = ("encoder.", "schedule.", "clips.batch", "clips.frames", "clips.gap", "compute.precision")
    changes = tuple(change for change in tiny_changes if not change.startswith(own))
    return TrainRequest(
        data=tiny_videos,
        run=tmp_path / "run",
        changes=(*changes, "schedule.steps=2", "validation.cycle_frames=4", "clips.segment=5"),
        init=str(start),
        cache=tmp_path / "cache",
        quiet=True,
    )


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).encoder.state_dict()


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_init_takes_the_preset_and_the_shape_that_it_is_given(request_of: TrainRequest, start: Path) -> None:
    """Fine-tuning has a low rate, a short warm-up, no more clips a batch than there are, and fixed statistics."""
    assert run_training(request_of) == 0
    config = load_config(str(request_of.run / "config.toml"))
    assert config.encoder == EncoderConfig(width=8, key_channels=8, layer4=False)
    assert (config.clips.batch, config.optimiser.learning_rate) == (8, 3e-5)
    assert same(request_of.run / "start.safetensors", start)
    assert load_checkpoint(request_of.run / "best.safetensors").training.licence == "MIT"
    before, after = weights(start), weights(request_of.run / "last.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any("running" in name for name in moved), "statistics of batch-norm are those of the start"


def test_settings_of_propagation_are_inherited(request_of: TrainRequest, start: Path) -> None:
    """Every checkpoint of the run has those of its start, also after a resumption; without any, none has."""
    assert run_training(request_of) == 0
    assert load_checkpoint(request_of.run / "best.safetensors").inference is None
    inference = Inference(options=PropagationOptions(radius=14.4, centring=0.8), size=576, enlarge_percent=120)
    save_checkpoint(dataclasses.replace(load_checkpoint(start), inference=inference), start)
    heir = dataclasses.replace(request_of, run=request_of.run.with_name("heir"))
    assert run_training(heir) == 0
    found = [load_checkpoint(heir.run / f"{name}.safetensors").inference for name in ("start", "last", "best")]
    assert found == [inference] * 3
    (heir.run / "best.safetensors").unlink()
    assert run_training(dataclasses.replace(heir, init=None, resume=True, changes=())) == 0
    assert load_checkpoint(heir.run / "best.safetensors").inference == inference


def test_the_batch_follows_the_number_of_clips(request_of: TrainRequest) -> None:
    changes = tuple(change for change in request_of.changes if not change.startswith("clips.segment"))
    assert run_training(dataclasses.replace(request_of, changes=changes)) == 0
    assert load_config(str(request_of.run / "config.toml")).clips.batch == 6


@pytest.mark.parametrize(("before", "after"), [(0.8, 0.5), (0.5, 0.8), (0.5, 0.5)])
def test_the_better_network_is_kept(
    request_of: TrainRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    before: float,
    after: float,
) -> None:
    """Both scores are printed; an equal one is no reason to change."""
    scores = iter([before, after] * 2)
    monkeypatch.setattr(vosrt_train.keep_better, "_cycle", lambda *_: next(scores))
    assert run_training(dataclasses.replace(request_of, quiet=False)) == 0
    folder = request_of.run
    kept = "last" if after > before else "start"
    assert same(folder / "best.safetensors", folder / f"{kept}.safetensors")
    assert not same(folder / "start.safetensors", folder / "last.safetensors")
    told = capsys.readouterr().err
    assert f"cycle consistency {100 * before:.1f} before, {100 * after:.1f} after" in told
    assert ("the trained network is kept" in told) == (after > before)
    assert f"next: vos-export {folder} -o BUNDLE" in told


def test_annotated_sequences_take_the_place_of_cycles(request_of: TrainRequest, davis: Path) -> None:
    """The start is validated before the first step, so that the best is never worse."""
    changes = (*request_of.changes, "optimiser.learning_rate=0", "validation.sequences=['square']")
    assert run_training(dataclasses.replace(request_of, validation=davis, changes=changes)) == 0
    scalars = (request_of.run / "scalars.jsonl").read_text()
    assert '"step": 0, "validation/j_and_f"' in scalars
    assert (request_of.run / "best.safetensors").is_file()


def test_a_length_in_minutes(request_of: TrainRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps are taken as fit by their measured cost; the warm-up shrinks with them."""
    monkeypatch.setattr(vosrt_train.start, "measure_step", lambda *_: StepCost(2.0, 0.0))
    monkeypatch.setattr(vosrt_train.keep_better, "_cycle", lambda *_: 0.5)
    assert run_training(dataclasses.replace(request_of, minutes=0.1)) == 0
    schedule = load_config(str(request_of.run / "config.toml")).schedule
    assert (schedule.epochs, schedule.steps, schedule.warmup) == (0, 3, 0)
    with pytest.raises(OptionError, match="leave out --minutes"):
        run_training(dataclasses.replace(request_of, minutes=1, resume=True, init=None))
    with pytest.raises(OptionError, match="--minutes is -1; expected more than 0"):
        run_training(dataclasses.replace(request_of, minutes=-1))


def test_the_minutes_are_a_limit_where_steps_turn_out_slower(
    request_of: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training ends as planned, with fewer steps, a state, and a comparison of the networks."""
    monkeypatch.setattr(vosrt_train.start, "measure_step", lambda *_: StepCost(1e-5, 0.0))
    monkeypatch.setattr(vosrt_train.keep_better, "_cycle", lambda *_: 0.5)
    assert run_training(dataclasses.replace(request_of, minutes=0.02)) == 0
    progress = load_state(request_of.run / "state.pt").progress
    assert 1 <= progress.step == progress.total_steps < 120_000
    assert (request_of.run / "best.safetensors").is_file()


def test_the_plan_follows_the_pace_of_the_steps() -> None:
    progress = Progress(total_steps=100, step=10)
    progress.fit(planned=100, left_s=30.0, step_s=2.0)
    assert progress.total_steps == 25
    progress.fit(planned=100, left_s=29.0, step_s=0.5)
    assert progress.total_steps == 68
    progress.fit(planned=100, left_s=1000.0, step_s=0.5)
    assert progress.total_steps == 100
    progress.fit(planned=100, left_s=-3.0, step_s=0.5)
    assert progress.total_steps == 10


def test_a_dry_run_plans_it(request_of: TrainRequest, capsys: pytest.CaptureFixture[str]) -> None:
    dry_run_training(request_of)
    assert "of 6 clips of 5 frames at 48 × 48 pixels" in capsys.readouterr().out
    assert not request_of.run.exists()


def test_equal_networks_score_the_same(tiny_cache: Cache, tmp_path: Path) -> None:
    """The runtime scores real frames; a network that embeds nothing scores less than one that embeds pixels."""
    config = load_config("finetune", ["clips.crop=48", "validation.cycle_frames=4", "encoder.layer4=false"])
    encoder = build_encoder(EncoderConfig(width=8, layer4=False), seed=0)
    training = Training(trained=True, seed=0, summary="", licence="")
    save_checkpoint(Checkpoint(encoder, training), tmp_path / "start.safetensors")
    save_checkpoint(Checkpoint(encoder, training), tmp_path / "last.safetensors")
    told: list[str] = []
    kept = keep_better(tmp_path, config, tiny_cache, told.append)
    assert kept.before == kept.after > 0.1
    assert not kept.improved
    assert len(told) == 4
    save_checkpoint(Checkpoint(blind(encoder), training), tmp_path / "last.safetensors")
    worse = keep_better(tmp_path, config, tiny_cache, told.append)
    assert worse.after < worse.before == kept.before
    assert same(tmp_path / "best.safetensors", tmp_path / "start.safetensors")


def blind(encoder: Encoder) -> Encoder:
    """The network with weights of its stem so small that every cell looks the same."""
    other = build_encoder(encoder.config, seed=0)
    with torch.no_grad():
        other.stem.weight.zero_()
    return other


def test_patches_lie_on_texture() -> None:
    frame = np.full((96, 160, 3), 128, np.uint8)
    frame[40:, :80] = np.random.default_rng(0).integers(0, 256, (56, 80, 3))
    mask = patches(frame)
    assert np.unique(mask).tolist() == [0, 1, 2, 3]
    assert (mask[40:, :80] > 0).sum() > 0.8 * (mask > 0).sum()


def test_a_run_means_its_best_weights(tmp_path: Path) -> None:
    assert weights_of(tmp_path / "some.safetensors") == tmp_path / "some.safetensors"
    with pytest.raises(CheckpointError, match="is a folder without best"):
        weights_of(tmp_path)
    (tmp_path / "last.safetensors").touch()
    assert weights_of(tmp_path).name == "last.safetensors"
    (tmp_path / "best.safetensors").touch()
    assert weights_of(tmp_path).name == "best.safetensors"


def test_the_time_left_runs_between_steps() -> None:
    """At 10 s a step, three of nine leave a minute, 56 s 4 s later; before the first it is unknown."""
    clock = [0.0]
    bar = progress_bar()
    bar.get_time = lambda: clock[0]
    task = bar.add_task("training", total=9, figures="")
    column = next(each for each in bar.columns if isinstance(each, ProgressColumn) and "_TimeLeft" in repr(type(each)))

    def shown() -> str:
        return re.sub(r"\s", "", str(column.render(bar.tasks[0])))

    assert shown() == "-:--:--"
    bar.start_task(task)
    for step in range(1, 4):
        clock[0] += 10
        bar.update(task, completed=step)
    assert shown() == "0:01:00"
    clock[0] += 4
    assert shown() == "0:00:56"
