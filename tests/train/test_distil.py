"""Distillation: the loss, the teachers that are taken, and a training from the command to a bundle."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vosrt.bundle import load_bundle
from vosrt.engines.onnxruntime import cpu_engine
from vosrt.errors import BundleError, OptionError
from vosrt.types import PropagationOptions
from vosrt_train.checkpoint import Checkpoint, CheckpointError, Inference, Training, load_checkpoint, save_checkpoint
from vosrt_train.cli import main
from vosrt_train.config import EncoderConfig, TrainConfig
from vosrt_train.config_file import load_config
from vosrt_train.distil import Teacher, affinity_loss
from vosrt_train.model import build_encoder
from vosrt_train.start import TrainRequest, run_training

INFERENCE = Inference(options=PropagationOptions(centring=0.8), size=576, enlarge_percent=120)
FRAMES = torch.randint(0, 256, (2, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def unit(*shape: int, seed: int = 0) -> Tensor:
    return nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=2)


def test_the_loss_is_the_distance_of_affinities() -> None:
    """As the definition says, cell by cell in NumPy; and 0 for the teacher's own features, rotated or not."""
    student, teacher = unit(2, 3, 5, 2, 3), unit(2, 3, 7, 2, 3, seed=1)
    expected = []
    for ours, theirs in zip(student.double().numpy(), teacher.double().numpy(), strict=True):
        ours, theirs = (each.transpose(0, 2, 3, 1).reshape(3, 6, -1) for each in (ours, theirs))
        for cell in range(6):
            p, q = (np.exp(each[:2].reshape(12, -1) @ each[2, cell] / 0.1) for each in (theirs, ours))
            p, q = p / p.sum(), q / q.sum()
            expected.append((p * np.log(p / q)).sum())
    found = affinity_loss(student, teacher, temperature=0.1)
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-4)
    rotation = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(2)))[0]
    rotated = torch.einsum("dc,btchw->btdhw", rotation, teacher)
    for same in (teacher, rotated):
        assert float(affinity_loss(same, teacher, temperature=0.1)) == pytest.approx(0, abs=1e-5)


def test_a_coarser_teacher_is_resampled() -> None:
    """Of a smooth teacher, half the grid is enough; no gradient reaches it."""
    smooth = nn.functional.interpolate(unit(1, 3, 5, 2, 2).flatten(0, 1), (8, 8), mode="bilinear", align_corners=False)
    fine = nn.functional.normalize(smooth, dim=1)[None].requires_grad_()
    coarse = nn.functional.avg_pool2d(fine.detach()[0], 2)[None]
    far = affinity_loss(fine.detach().roll(1, 1).roll(2, -1), coarse, temperature=0.1)
    near = affinity_loss(fine, coarse.requires_grad_(), temperature=0.1)
    assert near < far / 4
    near.backward()  # type: ignore[no-untyped-call]
    assert fine.grad is not None
    assert coarse.grad is None


def test_a_bundle_teaches_what_it_computes() -> None:
    """RGB in PyTorch's layout gives what the graph gives for BGR in its own."""
    spec = load_bundle("fast").manifest.encoder
    given = np.ascontiguousarray(FRAMES.numpy()[:, ::-1].transpose(0, 2, 3, 1))
    engine = cpu_engine(load_bundle("fast").graph("encoder"), {"frames": ("n", "height", "width", None)}, reason="test")
    right = engine.run({spec.input_name: given})[spec.output_name]
    found = Teacher("fast", threads=1)(FRAMES)
    assert found.shape == (2, 64, 6, 8)
    assert ((found.permute(0, 2, 3, 1).numpy() * right).sum(-1) > 0.99).all()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "teacher.safetensors"
    encoder = build_encoder(EncoderConfig(width=16, key_channels=8, layer4=False), seed=5)
    training = Training(trained=True, seed=5, summary="the teacher", licence="MIT")
    save_checkpoint(Checkpoint(encoder, training, inference=INFERENCE), path)
    return path


@pytest.fixture
def request_of(
    tiny_videos: Path, tiny_changes: tuple[str, ...], tmp_path: Path, checkpoint: Path
) -> Callable[..., TrainRequest]:
    own = ("encoder.", "schedule.", "log.every", "validation.")
    changes = [change for change in tiny_changes if not change.startswith(own)]
    changes += [
        "encoder.width=8",
        "schedule.steps=40",
        "schedule.warmup=2",
        "log.every=1",
        "optimiser.learning_rate=3e-3",
    ]

    def request(*more: str, **options: object) -> TrainRequest:
        given = {"distil": str(checkpoint), **options}
        return TrainRequest(
            data=tiny_videos,
            run=tmp_path / "run",
            changes=(*changes, *more),
            cache=tmp_path / "cache",
            quiet=True,
            **given,  # type: ignore[arg-type]
        )

    return request


def test_a_student_learns_and_resumes(request_of: Callable[..., TrainRequest], checkpoint: Path) -> None:
    """The loss falls; settings name the teacher; the licence is the teacher's; a resumed run needs no --distil."""
    request = request_of()
    assert run_training(request) == 0
    rows = [json.loads(line) for line in (request.run / "scalars.jsonl").read_text().splitlines()]
    losses = [row["loss/affinity"] for row in rows if "loss/affinity" in row]
    assert len(losses) == 40
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:4])
    config = load_config(str(request.run / "config.toml"))
    assert config.teacher == str(checkpoint)
    assert (config.encoder.width, config.encoder.layer4) == (8, False)
    made = load_checkpoint(request.run / "last.safetensors")
    assert (made.training.licence, made.encoder.config.channels) == ("MIT", {"res3": 32})
    assert made.training.summary.startswith("the correspondence of teacher.safetensors learnt without labels: 40 steps")
    assert made.inference == INFERENCE, "a student matches as its teacher does"
    again = dataclasses.replace(request, distil=None, resume=True, changes=())
    assert run_training(again) == 0, "all steps are done"


@pytest.mark.parametrize("width", [8, 32])
def test_a_student_starts_as_its_teacher_does_if_it_can(
    request_of: Callable[..., TrainRequest], checkpoint: Path, width: int
) -> None:
    """With fewer channels, its weights are the teacher's, narrowed, and are kept beside those it learns."""
    request = request_of(f"encoder.width={width}", "schedule.steps=1", "schedule.warmup=0", "optimiser.learning_rate=0")
    assert run_training(request) == 0
    made = load_checkpoint(request.run / "last.safetensors").encoder.eval()
    fresh = build_encoder(made.config, seed=0)
    same = torch.equal(made.state_dict()["backbone.conv1.weight"], fresh.state_dict()["backbone.conv1.weight"])
    assert same == (width == 32)


def test_mistakes_are_refused_before_any_work(request_of: Callable[..., TrainRequest], tmp_path: Path) -> None:
    """One line each, and no folder of a run."""
    for source, error, says in (
        (str(tmp_path / "none.safetensors"), CheckpointError, "none.safetensors"),
        (str(tmp_path), CheckpointError, "is a folder without best"),
    ):
        with pytest.raises(error, match=says):
            run_training(request_of(distil=source))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{}")
    with pytest.raises(BundleError, match="is missing"):
        run_training(request_of(distil=str(tmp_path / "broken")))
    assert not (tmp_path / "run").exists()
    with pytest.raises(OptionError, match="leave out --distil"):
        run_training(request_of(resume=True, preset="distil-cpu"))
    with pytest.raises(OptionError, match=r"a teacher is named, and segmentation\.weight is not 0"):
        TrainConfig(teacher="default", segmentation=load_config("mask-embedding-cpu").segmentation)


def test_from_the_command_line(
    tiny_videos: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``--distil`` selects its preset; --dry-run says how long it takes."""
    words = ["vos-train", tiny_videos, "-o", tmp_path / "run", "--distil", checkpoint, "--cache", tmp_path / "cache"]
    for change in ("clips.crop=32", "clips.batch=2", "encoder.width=8", "compute.threads=1"):
        words += ["--set", change]
    monkeypatch.setattr(sys, "argv", [*map(str, words), "--dry-run"])
    assert main() == 0
    assert "6000 steps" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
