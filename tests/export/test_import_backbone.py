"""Released weights of other methods: random ones in their published names give what their own program computes."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vosrt_export.cli
from vosrt.bundle import load_bundle
from vosrt.errors import InputError, OptionError
from vosrt.model import Model
from vosrt_export.families import Family
from vosrt_export.import_backbone import ImportOptions, import_backbone
from vosrt_train.backbones import build_network, resnet18_mirrored, resnet50, vit
from vosrt_train.checkpoint import load_checkpoint
from vosrt_train.config import EncoderConfig
from vosrt_train.model import build_encoder
from vosrt_train.model.contract import VisualConfig

State = dict[str, Tensor]
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL_VIT = vit.Config(patch=8, width=64, depth=2, heads=1, positions=4)
SCALED_VIT = vit.Config(patch=7, width=64, depth=2, heads=1, positions=4, scaled=True)
ROTARY_VIT = vit.Config(
    patch=8, width=64, depth=2, heads=2, positions=0, registers=4, rotary=100.0, scaled=True, epsilon=1e-5
)


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    module: ModuleType = pytest.importorskip("transformers", reason="pip install transformers")
    return module


def randomised(network: Any) -> Any:
    """Every weight drawn: initial ones such as zero biases and equal scales would hide a mistake."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr]
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


def vit_model(transformers: ModuleType) -> Any:
    config = transformers.ViTConfig(patch_size=8, image_size=32, intermediate_size=48, **TINY)
    return transformers.ViTModel(config, add_pooling_layer=True)


def dinov2_model(transformers: ModuleType, *, gated: bool = False) -> Any:
    return transformers.Dinov2Model(
        transformers.Dinov2Config(patch_size=7, image_size=35, use_swiglu_ffn=gated, **TINY)
    )


def registers_model(transformers: ModuleType) -> Any:
    config = transformers.Dinov2WithRegistersConfig(patch_size=7, image_size=63, **TINY)
    return transformers.Dinov2WithRegistersModel(config)


def dinov3_model(transformers: ModuleType, *, gated: bool = False) -> Any:
    config = transformers.DINOv3ViTConfig(
        patch_size=8,
        image_size=32,
        intermediate_size=48,
        num_register_tokens=4,
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
        **TINY,
    )
    return transformers.DINOv3ViTModel(config)


VITS: dict[str, tuple[Family, Callable[[ModuleType], Any]]] = {
    "dino": (Family.DINO, vit_model),
    "dinov2": (Family.DINOV2, dinov2_model),
    "dinov2 with SwiGLU": (Family.DINOV2, lambda module: dinov2_model(module, gated=True)),
    "dinov2 with registers": (Family.DINOV2, registers_model),
    "dinov3": (Family.DINOV3, dinov3_model),
    "dinov3 with SwiGLU": (Family.DINOV3, lambda module: dinov3_model(module, gated=True)),
}


def patch_tokens(network: Any, frames: Tensor, patch: int) -> Tensor:
    """What the family's program gives for the patches: f32 [n, width, h, w]."""
    more = {"interpolate_pos_encoding": True} if type(network).__name__ == "ViTModel" else {}
    height, width = (side // patch for side in frames.shape[2:])
    with torch.no_grad():
        tokens: Tensor = network(frames, **more).last_hidden_state[:, -height * width :]
    return tokens.transpose(1, 2).reshape(len(frames), -1, height, width)


@pytest.mark.parametrize(("family", "build"), VITS.values(), ids=VITS.keys())
def test_vits_compute_what_transformers_does(
    family: Family, build: Callable[[ModuleType], Any], transformers: ModuleType, tmp_path: Path
) -> None:
    """They agree at grids that are smaller and larger than the learnt one, none of them square."""
    network = randomised(build(transformers))
    network.save_pretrained(tmp_path / "folder")
    encoder = import_backbone(family, tmp_path / "folder").encoder
    config = encoder.config
    assert config.patch == network.config.patch_size
    assert config.registers == getattr(network.config, "num_register_tokens", 0)
    assert config.epsilon == network.config.layer_norm_eps
    for height, width in ((3, 4), (11, 6)):
        frames = torch.randn(2, 3, height * config.patch, width * config.patch)
        with torch.no_grad():
            found = encoder(frames).key
        torch.testing.assert_close(found, patch_tokens(network, frames, config.patch), atol=2e-4, rtol=1e-4)
    same = import_backbone(Family.TRANSFORMERS, tmp_path / "folder").encoder
    assert same.config == config


def test_shards_and_pickles_and_names_of_newer_versions(transformers: ModuleType, tmp_path: Path) -> None:
    """Weights in several files, in a pickle, and under the names of the module are the same weights."""
    network = randomised(dinov2_model(transformers))
    network.save_pretrained(tmp_path / "whole")
    network.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    wanted = import_backbone(Family.DINOV2, tmp_path / "whole").encoder.state_dict()
    for folder, state in (
        ("pickle", load_file(tmp_path / "whole" / "model.safetensors")),
        ("newer", network.state_dict()),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_bytes((tmp_path / "whole" / "config.json").read_bytes())
        torch.save(state, tmp_path / folder / "pytorch_model.bin")
    for folder in ("shards", "pickle", "newer"):
        found = import_backbone(Family.DINOV2, tmp_path / folder).encoder.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def original_dino(prefix: str = "") -> State:
    state = build_network(SMALL_VIT, seed=1).state_dict()
    del state["register_tokens"]
    return {prefix + name: tensor for name, tensor in state.items()}


def original_dinov2(config: vit.Config, *, chunked: bool = False) -> State:
    state: State = randomised(build_network(config, seed=1)).state_dict()
    if not config.registers:
        del state["register_tokens"]
    if chunked:
        state = {name.replace("blocks.", "blocks.0.", 1): tensor for name, tensor in state.items()}
    return state | {"mask_token": torch.zeros(1, config.width)}


def original_dinov3() -> State:
    """Names of the original: storage tokens, periods of the rotation, and a mask of biases with NaN where it masks."""
    state: State = randomised(build_network(ROTARY_VIT, seed=1)).state_dict()
    state["storage_tokens"] = state.pop("register_tokens")
    for block in range(ROTARY_VIT.depth):
        mask = torch.ones(3 * ROTARY_VIT.width)
        mask[ROTARY_VIT.width : 2 * ROTARY_VIT.width] = 0
        state[f"blocks.{block}.attn.qkv.bias_mask"] = mask
    channels = ROTARY_VIT.width // ROTARY_VIT.heads
    state["rope_embed.periods"] = 100.0 ** (4 * torch.arange(channels // 4) / channels)
    return state | {"mask_token": torch.zeros(1, 64), "local_cls_norm.weight": torch.zeros(64)}


def mmcv(state: State) -> State:
    """Names as of VFS: each convolution with its normalisation in a module of their own."""
    renamed = {}
    for name, tensor in state.items():
        name = name.replace("downsample.0.", "downsample.conv.").replace("downsample.1.", "downsample.bn.")
        for i in "123":
            name = name.replace(f"conv{i}.", f"conv{i}.conv.").replace(f"bn{i}.", f"conv{i}.bn.")
        renamed[name] = tensor
    return renamed | {"img_head.fc.weight": torch.zeros(2, 2)}


def with_layer4(state: State) -> State:
    return state | {"backbone.layer4.0.conv1.weight": torch.zeros(2, 2, 1, 1), "backbone.fc.weight": torch.zeros(2, 2)}


def resnet50_state() -> State:
    return with_layer4(dict(randomised(build_network(RESNET50, seed=1)).state_dict()))


def resnet18_state() -> State:
    return with_layer4(dict(randomised(build_encoder(RESNET18, seed=1)).state_dict()))


def under(prefix: str, state: State) -> State:
    return {name.replace("backbone.", prefix, 1): tensor for name, tensor in state.items()}


RESNET50 = resnet50.Config(width=4, reduction=0)
RESNET18 = EncoderConfig(width=4, layer4=False)
MIRRORED = resnet18_mirrored.Config(width=4)


def original_crw() -> State:
    return under("encoder.model.", resnet18_state()) | {"selfsim_fc.0.weight": torch.zeros(2, 2)}


ORIGINALS: dict[str, tuple[Family, Callable[[], Any], object]] = {
    "crw": (Family.CRW, lambda: {"model": original_crw(), "epoch": 25}, MIRRORED),
    "dino": (Family.DINO, original_dino, SMALL_VIT),
    "dino, both networks": (
        Family.DINO,
        lambda: {
            "student": original_dino("module.backbone."),
            "teacher": original_dino("backbone.") | {"head.last_layer.weight_g": torch.ones(1)},
            "epoch": 100,
            "args": argparse.Namespace(arch="vit_small"),
        },
        SMALL_VIT,
    ),
    "dino resnet50": (Family.DINO, lambda: under("", resnet50_state()), RESNET50),
    "dinov2": (Family.DINOV2, lambda: original_dinov2(SCALED_VIT), SCALED_VIT),
    "dinov2 trained by oneself": (
        Family.DINOV2,
        lambda: {
            "teacher": {f"backbone.{name}": each for name, each in original_dinov2(SCALED_VIT, chunked=True).items()}
        },
        SCALED_VIT,
    ),
    "dinov3": (Family.DINOV3, original_dinov3, ROTARY_VIT),
    "moco": (
        Family.MOCO,
        lambda: {
            "epoch": 200,
            "arch": "resnet50",
            "state_dict": under("module.encoder_q.", resnet50_state())
            | under("module.encoder_k.", resnet50_state())
            | {"module.queue": torch.zeros(2, 2)},
        },
        RESNET50,
    ),
    "vfs resnet18": (Family.VFS, lambda: {"meta": {}, "state_dict": mmcv(resnet18_state())}, RESNET18),
    "vfs resnet50": (Family.VFS, lambda: {"meta": {}, "state_dict": mmcv(resnet50_state())}, RESNET50),
}


@pytest.mark.parametrize(("family", "make", "config"), ORIGINALS.values(), ids=ORIGINALS.keys())
def test_original_files(family: Family, make: Callable[[], Any], config: object, tmp_path: Path) -> None:
    """The shape is read off the file, and each weight arrives."""
    torch.save(make(), tmp_path / "released.pth")
    encoder = import_backbone(family, tmp_path / "released.pth").encoder
    assert encoder.config == config
    built: nn.Module
    if isinstance(config, EncoderConfig):
        built = randomised(build_encoder(config, seed=1))
    else:
        built = build_network(config, seed=1)  # type: ignore[arg-type]
        built = built if family is Family.DINO and config is SMALL_VIT else randomised(built)
    for name, tensor in built.state_dict().items():
        found = encoder.state_dict()[name]
        if family is Family.DINOV3 and name.endswith("qkv.bias"):
            assert not found[64:128].any()  # the bias of keys is masked
            found, tensor = torch.cat([found[:64], found[128:]]), torch.cat([tensor[:64], tensor[128:]])
        assert torch.equal(found, tensor), name


def test_moco_v3_has_twelve_heads_and_options_win(tmp_path: Path) -> None:
    config = vit.Config(patch=8, width=48, depth=1, heads=12, positions=4)
    state = build_network(config, seed=1).state_dict()
    del state["register_tokens"]
    torch.save(
        {"state_dict": {f"module.base_encoder.{name}": each for name, each in state.items()}}, tmp_path / "m.pth"
    )
    assert import_backbone(Family.MOCO, tmp_path / "m.pth").encoder.config == config
    options = ImportOptions(heads=3, mean=(0.5, 0.5, 0.5), deviation=(0.25, 0.5, 0.5), licence="CC-BY-NC-4.0")
    checkpoint = import_backbone(Family.MOCO, tmp_path / "m.pth", options)
    assert checkpoint.encoder.config.heads == 3
    assert checkpoint.encoder.normalisation == (options.mean, options.deviation)
    assert checkpoint.training.licence == "CC-BY-NC-4.0"
    with pytest.raises(OptionError, match="heads 5; expected a width that they divide"):
        import_backbone(Family.MOCO, tmp_path / "m.pth", ImportOptions(heads=5))


def test_resnets_compute_what_transformers_does(transformers: ModuleType, tmp_path: Path) -> None:
    """layer3 at stride 1, as correspondence takes it; the family's program is given that stride, too."""
    for kind, hidden, depths in (("bottleneck", [16, 32, 64, 128], [3, 4, 6, 1]), ("basic", [4, 8, 16, 32], [2] * 4)):
        config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=hidden, depths=depths, layer_type=kind)
        network = randomised(transformers.ResNetModel(config))
        network.save_pretrained(tmp_path / kind)
        for module in network.encoder.stages[2].modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
        frames = torch.randn(1, 3, 40, 56)
        encoder = import_backbone(Family.TRANSFORMERS, tmp_path / kind).encoder
        with torch.no_grad():
            wanted = network(frames, output_hidden_states=True).hidden_states[3]
            torch.testing.assert_close(encoder(frames).res3, wanted, atol=1e-4, rtol=1e-4)


def run_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = vosrt_export.cli.main(list(arguments))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_one_command_from_a_download_to_a_bundle(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Patch, normalisation and working size are right without an option."""
    processor = {"image_mean": [0.43, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    state = build_network(SCALED_VIT, seed=1).state_dict()
    del state["register_tokens"]
    save_file(state, folder / "model.safetensors")
    output, checkpoint = folder.parent / "bundle", folder.parent / "net.safetensors"
    code, out, err = run_here(capsys, "import", "dinov2", str(folder), "-o", str(output))
    assert (code, err) == (0, "")
    assert "stride 7" in out
    manifest = load_bundle(output).manifest
    assert (manifest.encoder.stride, manifest.encoder.channels, manifest.encoder.align_corners) == (7, 64, False)
    assert manifest.trained
    assert manifest.provenance["encoder"]["mean"] == [0.43, 0.411, 0.296]
    model = Model.load(output, engine="cpu", threads=1)
    assert [side % 7 for side in model.working_size(477, 853)] == [0, 0]
    assert run_here(capsys, "import", "dinov2", str(folder), "-o", str(checkpoint))[0] == 0
    assert load_checkpoint(checkpoint).encoder.config.mean == (0.43, 0.411, 0.296)


REGISTERS_VIT = replace(SCALED_VIT, registers=4, antialias=True)
RARE: dict[str, tuple[Family, Callable[[], Any], object]] = {
    "mirrored border": (Family.CRW, original_crw, MIRRORED),
    "averaged positions": (Family.DINOV2, lambda: original_dinov2(REGISTERS_VIT), REGISTERS_VIT),
    "rotary positions": (Family.DINOV3, original_dinov3, ROTARY_VIT),
    "SwiGLU": (
        Family.DINOV2,
        lambda: original_dinov2(replace(SCALED_VIT, hidden=48, gated=True)),
        replace(SCALED_VIT, hidden=48, gated=True),
    ),
}


@pytest.mark.parametrize(("family", "make", "config"), RARE.values(), ids=RARE.keys())
def test_rarer_parts_become_bundles(
    family: Family, make: Callable[[], Any], config: VisualConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The operators of their graphs are those that a bundle may hold; the export compares them with PyTorch."""
    torch.save(make(), tmp_path / "released.pth")
    arguments = ("import", family.value, str(tmp_path / "released.pth"), "-o")
    assert run_here(capsys, *arguments, str(tmp_path / "net.safetensors"))[0] == 0
    assert load_checkpoint(tmp_path / "net.safetensors").encoder.config == config
    code, out, _ = run_here(capsys, *arguments, str(tmp_path / "bundle"))
    assert (code, "PyTorch and ONNX Runtime agree" in out) == (0, True)
    model = Model.load(tmp_path / "bundle", engine="cpu", threads=1)
    embedding = model.encode(np.zeros((61, 93, 3), np.uint8), "native").array
    height, width = model.working_size(61, 93, "native")
    assert embedding.shape == (-(-height // config.stride), -(-width // config.stride), model.manifest.encoder.channels)


def test_crw_sees_the_picture_mirrored_beyond_its_border(tmp_path: Path) -> None:
    torch.save(original_crw(), tmp_path / "crw.pth")
    mirrored = import_backbone(Family.CRW, tmp_path / "crw.pth").encoder.eval()
    expected = build_encoder(RESNET18, seed=0).eval()
    expected.load_state_dict(mirrored.state_dict())
    for module in expected.modules():
        if isinstance(module, nn.Conv2d) and sum(module.padding) > 0:  # type: ignore[arg-type]
            module.padding_mode = "reflect"
    frames = torch.randn(2, 3, 40, 57)
    with torch.no_grad():
        torch.testing.assert_close(mirrored(frames).res3, expected(frames).res3)


def index_of(file: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))

    return change


def write_json(name: str, content: object) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(json.dumps(content))


def changed(**values: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return change


def retensored(change: Callable[[Any], object]) -> Callable[[Path], object]:
    def alter(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return alter


UNSOUND: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json; expected"),
    "no weights": (
        lambda folder: os.unlink(folder / "model.safetensors"),
        "has no weights; expected model.safetensors",
    ),
    "cut off": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x00" * 20),
        "is not a whole safetensors file",
    ),
    "config cut off": (lambda folder: (folder / "config.json").write_text("{"), "cannot read"),
    "config of a list": (write_json("config.json", []), "holds a list"),
    "another model": (changed(model_type="bert"), "has model_type 'bert'; expected one of vit, dinov2"),
    "no model": (changed(model_type=7), "has model_type 7"),
    "no heads": (changed(num_attention_heads="six"), "has num_attention_heads 'six'; expected a number"),
    "odd heads": (changed(num_attention_heads=7), "width is 64, heads 7"),
    "another activation": (changed(hidden_act="relu"), "has hidden_act 'relu'; expected 'gelu'"),
    "another patch": (changed(patch_size=14), "has patch_size '14'; expected 7"),
    "grey frames": (changed(num_channels=1), "has num_channels '1'; expected 3"),
    "another family": (
        retensored(lambda state: [state.pop(name) for name in list(state) if ".ls" in name]),
        "holds a ViT as of DINO; dinov2 expects a ViT with layer scale",
    ),
    "a weight that is missing": (retensored(lambda state: state.pop("blocks.1.norm2.bias")), "lacks 1 tensors"),
    "a weight too many": (
        retensored(lambda s: s.update(more=torch.zeros(1))),
        "has 1 tensors that the encoder has not",
    ),
    "no square grid": (
        retensored(lambda s: s.update(pos_embed=torch.zeros(1, 6, 64))),
        "has 5 position embeddings; expected those of a square grid",
    ),
    "flat patches": (retensored(lambda s: s.update({"patch_embed.proj.weight": torch.zeros(3)})), "has [3]"),
    "not finite": (retensored(lambda s: s["norm.bias"].fill_(float("nan"))), "has values that are not finite"),
    "language": (retensored(lambda s: (s.clear(), s.update(wte=torch.zeros(2)))), "holds 'wte' …; expected"),
    "a mean of words": (write_json("preprocessor_config.json", {"image_mean": "grey"}), "has the image_mean 'grey'"),
    "shards elsewhere": (
        index_of("../model.safetensors"),
        "names 1 files; expected 1 to 64 names of files beside it",
    ),
    "a shard too few": (index_of("part.safetensors"), "no such file"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "dinov2"
    folder.mkdir()
    config = {"model_type": "dinov2", "patch_size": 7, "num_attention_heads": 1, "hidden_act": "gelu"}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(original_dinov2(SCALED_VIT), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(("harm", "says"), UNSOUND.values(), ids=UNSOUND.keys())
def test_unsound_folders(harm: Callable[[Path], object], says: str, folder: Path) -> None:
    """Each gives one line that names the folder or the file in it."""
    import_backbone(Family.DINOV2, folder)
    harm(folder)
    with pytest.raises((InputError, OptionError)) as caught:
        import_backbone(Family.DINOV2, folder)
    message = str(caught.value)
    assert says in message
    assert str(folder) in message
    assert message.isprintable()
    assert len(message) < 500


class Code:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"model": Code()}, "holds more than tensors (posix.mkdir)"),
        ([1, 2], "holds a list"),
        ({"epoch": 3}, "no tensors"),
        ({"cls_token": torch.zeros(1).expand(1, 1, 1 << 40)}, "repeated"),
        ({"cls_token": torch.zeros(2, 2).to_sparse()}, "sparse"),
        ({"embeddings.cls_token": torch.zeros(1, 1, 4)}, "give its folder, which has config.json too"),
        ({"conv1.weight": torch.zeros(4, 3, 7, 7)}, "holds a ResNet-18; dinov2 expects"),
    ],
)
def test_unsound_files(
    document: object, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each gives one line and exit code 2; nothing is written and no code is run."""
    monkeypatch.chdir(tmp_path)
    torch.save(document, tmp_path / "x.pth")
    code, _, err = run_here(capsys, "import", "dinov2", "x.pth", "-o", "bundle")
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "bundle").exists()
    assert not (tmp_path / "ran").exists()
    assert run_here(capsys, "import", "dinov9", "x.pth", "-o", "bundle")[0] == 2
