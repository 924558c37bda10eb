"""Bundles appear whole, proven and reproducible, or not at all; nothing that is not a bundle is ever deleted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import vosrt_export.write_bundle
from vosrt.bundle import Feature, WeightPrecision, file_sha256, load_bundle
from vosrt.errors import BundleError, OptionError, OutputError, WorkError
from vosrt.types import F32Array, PropagationOptions
from vosrt_export.errors import ExportError
from vosrt_export.write_bundle import ExportOptions, export_bundle
from vosrt_train.checkpoint import Checkpoint, CheckpointError, Inference, Training, load_checkpoint, save_checkpoint
from vosrt_train.model import Encoder

ModelOf = Callable[[Feature, WeightPrecision], bytes]
BundleOf = Callable[[Feature, WeightPrecision], Path]


def listing(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_the_manifest_tells_what_was_exported(small_bundle: BundleOf, small_checkpoint: Path) -> None:
    """It has figures, limits and origin, but no dates and no paths of this machine."""
    path = small_bundle("key", "fp16")
    manifest = load_bundle(path).manifest
    assert (manifest.name, manifest.trained) == ("resnet18-key", True)
    assert (manifest.encoder.feature, manifest.encoder.channels) == ("key", 16)
    assert manifest.inference == PropagationOptions(guided=4)
    assert manifest.size is None
    figures, tolerance = manifest.verification["figures"], manifest.verification["tolerance"]
    assert 0 < figures["mean_abs"] < figures["max_abs"] <= tolerance["max_abs"]
    assert tolerance["min_cosine"] <= figures["min_cosine"] <= 1
    provenance = manifest.provenance
    assert provenance["checkpoint_sha256"] == file_sha256(small_checkpoint)
    assert provenance["training"] == {"trained": True, "summary": "trained for a test"}
    assert provenance["licence"] == "CC0-1.0"
    assert set(provenance["tools"]) == {"torch", "onnx", "onnxscript", "onnxruntime", "onnx_opset"}
    assert str(small_checkpoint.parent) not in (path / "manifest.json").read_text()


def test_exporting_twice_gives_the_same_bytes(small_bundle: BundleOf, small_checkpoint: Path, tmp_path: Path) -> None:
    """Nothing depends on the time or on what was exported before."""
    first, second = small_bundle("res4", "fp16"), tmp_path / "again"
    export_bundle(small_checkpoint, second)
    assert listing(first) == listing(second) == ["encoder.onnx", "manifest.json", "training.safetensors"]
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in listing(first))


@pytest.mark.usefixtures("quick_export")
def test_options_reach_the_manifest(small_checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(
        feature="res4", weights="fp32", name="mine", summary="For a test.", size=240, align_corners=True
    )
    export_bundle(small_checkpoint, tmp_path / "bundle", options)
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert (manifest.name, manifest.summary, manifest.size) == ("mine", "For a test.", 240)
    assert manifest.graphs["encoder"].precision == "fp32"
    assert manifest.encoder.align_corners


DEFAULT = Inference.of(load_bundle("default").manifest)
INHERITED = Inference(options=PropagationOptions(radius=14.4, centring=0.8, guided=2), size=576, enlarge_percent=120)


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, INHERITED),
        (
            {"size": 240, "context": 9, "pad_context": False, "guided": 0},
            replace(INHERITED, size=240, options=replace(INHERITED.options, context=9, pad_context=False, guided=0)),
        ),
        ({"propagation": "published"}, Inference(options=PropagationOptions())),
        ({"propagation": "published", "guided": 3}, Inference(options=PropagationOptions(guided=3))),
        ({"propagation": "default"}, DEFAULT),
        (
            {"propagation": "default", "align_corners": True},
            replace(DEFAULT, options=replace(DEFAULT.options, parts=1)),
        ),
    ],
)
def test_masks_are_propagated_as_by_the_start(
    small_checkpoint: Path, tmp_path: Path, options: dict[str, object], expected: Inference
) -> None:
    """A bundle inherits what its checkpoint has from another bundle, unless the options say otherwise."""
    heir = tmp_path / "heir.safetensors"
    save_checkpoint(replace(load_checkpoint(small_checkpoint), inference=INHERITED), heir)
    export_bundle(heir, tmp_path / "bundle", ExportOptions(feature="res3", **options))  # type: ignore[arg-type]
    assert Inference.of(load_bundle(tmp_path / "bundle").manifest) == expected


@pytest.mark.usefixtures("quick_export")
def test_a_bundle_to_propagate_as_has_to_be_one(small_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere"):
        export_bundle(small_checkpoint, tmp_path / "bundle", ExportOptions(propagation=str(tmp_path / "nowhere")))
    assert listing(tmp_path) == []


Weights = dict[str, F32Array]


def forget_colours(weights: Weights) -> None:
    stem = "encoder.backbone.conv1.weight"
    weights[stem] = weights[stem][:, ::-1]


def forget_to_normalise(weights: Weights) -> None:
    weights["offset"] = 0 * weights["offset"]


def lose_a_bias(weights: Weights) -> None:
    weights["encoder.backbone.layer4.1.conv2.bias"] *= 0


def give_nan(weights: Weights) -> None:
    weights["offset"] = np.nan * weights["offset"]


@pytest.mark.parametrize("damage", [forget_colours, forget_to_normalise, lose_a_bias, give_nan])
def test_a_graph_that_computes_something_else_is_not_written(
    small_model: ModelOf,
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Weights], None],
) -> None:
    """The error has the figures, and no file is left."""
    model = onnx.load_from_string(small_model("res4", "fp32"))
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    damage(weights)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(weights[tensor.name]), tensor.name))
    says = "does not compute what the checkpoint does: max abs .* nothing was written"
    refuses(model.SerializeToString(), says, small_checkpoint, tmp_path, monkeypatch)


def test_a_graph_of_another_length_or_shape_is_not_written(
    small_model: ModelOf, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directions alone do not pass; nor does a graph that does not load."""
    model = onnx.load_from_string(small_model("res4", "fp32"))
    last = model.graph.node[-1]
    assert last.op_type == "Transpose"
    last.attribute[0].ints[:] = [0, 3, 2, 1]
    refuses(model.SerializeToString(), "gives shape", small_checkpoint, tmp_path, monkeypatch)
    last.attribute[0].ints[:] = [0, 2, 3, 1]
    normalise = model.graph.node[-2]
    normalise.op_type = "Mul"
    refuses(model.SerializeToString(), "does not compute", small_checkpoint, tmp_path, monkeypatch)
    refuses(b"not a graph", "cannot run the exported graph", small_checkpoint, tmp_path, monkeypatch)


def refuses(model: bytes, says: str, checkpoint: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vosrt_export.write_bundle, "export_onnx", lambda *_: model)
    with pytest.raises(ExportError, match=says) as caught:
        export_bundle(checkpoint, directory / "bundle", ExportOptions(weights="fp32"))
    assert caught.value.exit_code == 1
    assert listing(directory) == []


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals that need no export must come before it: an export would take the user's time first."""

    def unexpected(*_: object) -> None:
        pytest.fail("exported although the output was to be refused")

    monkeypatch.setattr(vosrt_export.write_bundle, "export_onnx", unexpected)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_bundle_stays(small_checkpoint: Path, tmp_path: Path, overwrite: bool) -> None:
    """A folder of photographs, a file and a link are refused with or without --overwrite and left as they were."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    (photographs / "cat.jpg").write_bytes(b"cat")
    file = tmp_path / "file"
    file.write_bytes(b"file")
    link = tmp_path / "link"
    link.symlink_to(photographs)
    before = listing(tmp_path)
    for output in (photographs, file, link):
        with pytest.raises(OutputError, match=str(output)):
            export_bundle(small_checkpoint, output, overwrite=overwrite)
    assert listing(tmp_path) == before
    assert file.read_bytes() == b"file"


@pytest.mark.usefixtures("quick_export")
def test_overwrite_replaces_a_bundle_and_nothing_else(small_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    output.mkdir()
    export_bundle(small_checkpoint, output, ExportOptions(feature="res3"))
    with pytest.raises(OutputError, match=r"is there already; .* --overwrite"):
        export_bundle(small_checkpoint, output)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"more than a bundle \(notes.txt\)"):
        export_bundle(small_checkpoint, output, overwrite=True)
    assert load_bundle(output).manifest.encoder.feature == "res3"
    (output / "notes.txt").unlink()
    (output / "engines").mkdir()
    (output / "engines" / "encoder.engine").touch()  # built from the graph that goes
    export_bundle(small_checkpoint, output, overwrite=True)
    assert load_bundle(output).manifest.encoder.feature == "res4"
    assert listing(tmp_path) == ["bundle", "bundle/encoder.onnx", "bundle/manifest.json", "bundle/training.safetensors"]


@pytest.mark.usefixtures("quick_export")
def test_a_failed_replacement_keeps_the_old_bundle(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "bundle"
    export_bundle(small_checkpoint, output, ExportOptions(feature="res3"))
    rename = Path.rename

    def breaks(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", breaks)
    with pytest.raises(WorkError, match=r"bundle: cannot be written \(No space left on device\)"):
        export_bundle(small_checkpoint, output, overwrite=True)
    assert load_bundle(output).manifest.encoder.feature == "res3"
    assert listing(tmp_path) == ["bundle", "bundle/encoder.onnx", "bundle/manifest.json", "bundle/training.safetensors"]


@pytest.mark.usefixtures("no_work")
def test_a_place_that_does_not_exist(small_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write the bundle .*: there is no folder .*nowhere; make it first"):
        export_bundle(small_checkpoint, tmp_path / "nowhere" / "bundle")


@pytest.mark.parametrize("options", [{"name": ""}, {"name": "x" * 101}, {"name": "a\nb"}, {"summary": "\x1b[31m"}])
def test_texts_that_a_manifest_cannot_hold(options: dict[str, str]) -> None:
    with pytest.raises(OptionError, match="printable characters"):
        ExportOptions(**options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("quick_export")
def test_an_untrained_network_says_so(small_encoder: Encoder, tmp_path: Path) -> None:
    training = Training(trained=False, seed=0, summary="untrained, seed 0", licence="Apache-2.0")
    save_checkpoint(Checkpoint(small_encoder, training), tmp_path / "c.safetensors")
    export_bundle(tmp_path / "c.safetensors", tmp_path / "bundle", ExportOptions(feature="res3"))
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert not manifest.trained
    assert "untrained" in manifest.name
    assert "random weights (untrained, seed 0)" in manifest.summary


@pytest.mark.usefixtures("quick_export")
def test_the_folder_of_a_run_is_a_checkpoint(small_checkpoint: Path, tmp_path: Path) -> None:
    """Its best weights are taken, where it has any."""
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(CheckpointError, match="is a folder without best"):
        export_bundle(run, tmp_path / "bundle")
    (run / "last.safetensors").write_bytes(small_checkpoint.read_bytes())
    export_bundle(run, tmp_path / "bundle", ExportOptions(feature="res3"))
    digest = file_sha256(small_checkpoint)
    assert load_bundle(tmp_path / "bundle").manifest.provenance["checkpoint_sha256"] == digest
