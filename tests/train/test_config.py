"""Configurations: presets, files, what is refused, the learning rate over time, and Adam's groups."""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import vosrt_train.network
from vosrt.errors import OptionError
from vosrt_train.cli import main
from vosrt_train.config import EncoderConfig, LossConfig, OptimiserConfig, ScheduleConfig, TrainConfig
from vosrt_train.config_file import build, differences, load_config, presets, to_toml
from vosrt_train.masks.config import MaskNetworkConfig
from vosrt_train.masks.networks import build_mask_embedding
from vosrt_train.model import build_encoder
from vosrt_train.network import uses_bf16
from vosrt_train.optimiser import build_optimiser, learning_rate_at, set_learning_rate
from vosrt_train.ranges import range_of

PRESETS = ("cpu-2h", "distil-cpu", "finetune", "gpu-30min", "mask-embedding-cpu", "masks-alone-cpu", "paper")


def test_the_presets_are_these() -> None:
    assert list(presets()) == list(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load_and_survive_being_written(name: str) -> None:
    """What a run writes down is what it ran with."""
    config = load_config(name)
    assert build(TrainConfig, tomllib.loads(to_toml(config))) == config


def test_paper_preset_is_the_papers() -> None:
    """Araslanov et al. 2021 as the released program ran it; the dataclasses' defaults agree."""
    config = load_config("paper")
    assert (config.clips.batch, config.clips.frames, config.clips.crop, config.clips.gap) == (16, 5, 256, 10)
    assert config.loss == LossConfig(anchors=8, points=4, temperature=0.05, cross_view=0.1)
    assert config.optimiser == OptimiserConfig(learning_rate=1e-4, betas=(0.5, 0.999), weight_decay=5e-4, bias_rate=2)
    assert (config.schedule.epochs, config.schedule.decay, config.schedule.halvings) == (500, "halving", 4)
    assert {each.split(".")[0] for each in differences(config, TrainConfig())} == {"clips", "validation"}


def test_changes_on_the_command_line() -> None:
    """Values are TOML; a bare word is a string; later ones win."""
    config = load_config(
        "cpu-2h",
        [
            "clips.crop=160",
            "clips.crop=96",
            "optimiser.betas=[0.8, 0.9]",
            "compute.device=cpu",
            "optimiser.bias_rate=1",
        ],
    )
    assert (config.clips.crop, config.optimiser.betas, config.compute.device) == (96, (0.8, 0.9), "cpu")
    assert config.optimiser.bias_rate == 1.0
    assert isinstance(config.optimiser.bias_rate, float)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("seed = 3\n[clips]\ncrop = 64\n")
    config = load_config(str(path))
    assert config == replace(TrainConfig(seed=3), clips=replace(TrainConfig().clips, crop=64, seed=3))
    path.write_text("seed = \n")
    with pytest.raises(OptionError, match="cannot be read as TOML"):
        load_config(str(path))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("clips.corp=1", "unknown key 'clips.corp'; the nearest known one is 'clips.crop'"),
        ("clip.crop=1", "unknown key 'clip'; the nearest known one is 'clips'"),
        ("clips.crop=1.5", "clips.crop is 1.5; expected a whole number"),
        ("clips.crop=true", "clips.crop is True; expected a whole number"),
        ("clips=3", "clips is 3; expected a table"),
        ("clips.crop.x=3", "'crop' is a value, not a table"),
        ("seed=x", "seed is 'x'; expected a whole number"),
        ("seed", "expected table.key=value"),
        ("compute.compile=1", "compute.compile is 1; expected true or false"),
        ("compute.precision=fp16", "compute.precision is 'fp16'; expected one of 'auto', 'fp32', 'bf16'"),
        ("optimiser.betas=[1]", "optimiser.betas is [1]; expected a list of 2 numbers"),
        ("optimiser.learning_rate=nan", "optimiser.learning_rate is nan; expected 0 to 10"),
        ("validation.sequences=[1]", "validation.sequences is 1; expected a string"),
        ("validation.feature=res5", "expected one of 'res3', 'res4', 'key', 'auto'"),
        ("schedule.steps=0", "expected one of them to be 0"),
        ("schedule.epochs=3", "expected one of them to be 0"),
        ("loss.anchors=0", "loss.anchors is 0; expected 1 to 64"),
        ("clips.seed=5", "clips.seed is 5, which follows seed (0); set seed instead"),
    ],
)
def test_what_is_refused(change: str, says: str) -> None:
    """One line names the key, the value and what was expected."""
    with pytest.raises(OptionError) as caught:
        load_config("cpu-2h", [change])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(
        OptionError,
        match="no preset or file 'cpu-3h'; choose from cpu-2h, distil-cpu, finetune, gpu-30min, mask-embedding-cpu, ",
    ):
        load_config("cpu-3h")


def test_validation_needs_a_feature_of_the_encoder() -> None:
    assert TrainConfig().validation_feature == "res4"
    assert TrainConfig(encoder=EncoderConfig(layer4=False)).validation_feature == "res3"
    with pytest.raises(OptionError, match="'res4'; this encoder has: res3"):
        load_config("paper", ["encoder.layer4=false", "validation.feature=res4"])


def rates(schedule: ScheduleConfig, steps: int) -> list[float]:
    return [learning_rate_at(step, steps, OptimiserConfig(learning_rate=1), schedule) for step in range(steps)]


def test_the_help_page_has_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """It has name, value, range and meaning as in the preset and needs no data."""
    assert main(["--preset", "finetune", "--help-settings"]) == 0
    page = capsys.readouterr().out
    lines = page.splitlines()
    config = load_config("finetune")
    assert "  clips.crop = 160  (8 to 4096 pixels)" in lines
    assert "  validation.size = 240  (16 to 4096 pixels, or 0 for the frames' own size)" in lines
    for table in dataclasses.fields(config):
        value = getattr(config, table.name)
        for each in dataclasses.fields(value) if dataclasses.is_dataclass(value) else ():
            (line,) = (index for index, text in enumerate(lines) if text.startswith(f"  {table.name}.{each.name} = "))
            assert lines[line + 1].strip(), each.name
            if type(getattr(value, each.name)) in (int, float):
                assert range_of(each.metadata), f"{table.name}.{each.name} has no range"
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("validation.size=8", "validation.size is 8; expected 16 to 4096 pixels, or 0 for the frames' own size"),
        ("encoder.width=0", "encoder.width is 0; expected 1 to 1024 channels"),
        ("cache.short_side=4", "cache.short_side is 4; expected 8 to 4096 pixels"),
        ("optimiser.betas=[0.9, 1.5]", "optimiser.betas is 1.5; expected 0 to 0.999999"),
        ("foreground.dominance=2", "foreground.dominance is 2.0; expected 0 to 1"),
        ("cache.min_frames=4000", "cache.min_frames is 4000; expected at most max_frames, 3000"),
        ("clips.segment=3", "clips.segment is 3; expected at least clips.frames, 5"),
    ],
)
def test_numbers_outside_their_range(change: str, says: str) -> None:
    with pytest.raises(OptionError) as caught:
        load_config("cpu-2h", [change])
    assert str(caught.value) == says


def test_zero_may_mean_something_else() -> None:
    assert load_config("cpu-2h", ["validation.size=0"]).validation.size == 0


def test_precision_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 where the processor has it natively: emulated, it is many times slower than fp32."""
    cpu = torch.device("cpu")
    for native in (True, False):
        monkeypatch.setattr(vosrt_train.network, "processor_has_bf16", lambda native=native: native)
        assert uses_bf16("auto", cpu) is native
        assert uses_bf16("bf16", cpu)
        assert not uses_bf16("fp32", cpu)
    assert {load_config(name).compute.precision for name in presets()} == {"auto"}


def test_halving() -> None:
    """The paper has 500 epochs and halves every 100."""
    curve = rates(ScheduleConfig(epochs=0, steps=500), 500)
    assert [(value, len(list(same))) for value, same in itertools.groupby(curve)] == [
        (1, 100),
        (0.5, 100),
        (0.25, 100),
        (0.125, 100),
        (0.0625, 100),
    ]


def test_warm_up_and_cosine() -> None:
    """The rate rises in even steps, peaks right after them and falls monotonically to its end."""
    curve = rates(ScheduleConfig(epochs=0, steps=100, warmup=4, decay="cosine", final=0.1), 100)
    assert curve[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(later < earlier for earlier, later in itertools.pairwise(curve[4:]))
    assert curve[52] == pytest.approx(0.55)
    assert curve[-1] == pytest.approx(0.1, abs=1e-3)


def test_hold_and_cool_down() -> None:
    """The first steps do not depend on the length; the last ones fall in a line."""
    short, long = (
        rates(ScheduleConfig(epochs=0, steps=n, warmup=2, decay="hold", cooldown=9, final=0), n) for n in (40, 60)
    )
    assert short[:31] == long[:31]
    assert set(long[2:51]) == {1}
    assert short[-9:] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_biases_have_their_own_rate_and_no_decay() -> None:
    encoder = build_encoder(EncoderConfig(width=2, key_channels=2), seed=0)
    optimiser = build_optimiser(encoder, OptimiserConfig(weight_decay=0.1, bias_rate=2))
    set_learning_rate(optimiser, 0.5)
    weights, biases = optimiser.param_groups
    named = dict(encoder.named_parameters())
    assert {id(p) for p in biases["params"]} == {id(p) for name, p in named.items() if name.endswith(".bias")}
    assert len(weights["params"]) + len(biases["params"]) == len(named)
    assert (weights["lr"], weights["weight_decay"]) == (0.5, 0.1)
    assert (biases["lr"], biases["weight_decay"]) == (1.0, 0.0)


def test_mask_networks_have_their_own_rate_and_decay() -> None:
    shape = EncoderConfig(width=2, key_channels=2, layer4=False)
    masks = build_mask_embedding(MaskNetworkConfig(width=2, value_channels=16), shape, seed=0)
    networks = nn.ModuleList([build_encoder(shape, seed=0), masks])
    config = OptimiserConfig(weight_decay=0.1, bias_rate=2, mask_weight_decay=0.2, mask_rate=0.5)
    optimiser = build_optimiser(networks, config)
    set_learning_rate(optimiser, 1)
    assert [(group["lr"], group["weight_decay"]) for group in optimiser.param_groups] == [
        (1, 0.1),
        (2, 0),
        (0.5, 0.2),
        (1, 0),
    ]
    of_masks = [p for group in optimiser.param_groups[2:] for p in group["params"]]
    assert {id(p) for p in of_masks} == {id(p) for p in masks.parameters()}
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(list(networks.parameters()))
