"""``vos-export copy``: bundles that need no other, and such as take their encoder from one beside them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from vosrt.bundle import Bundle, Feature, WeightPrecision, load_bundle
from vosrt.engines.isolated import isolated_encoder
from vosrt.engines.select import create_encoder_engine
from vosrt.errors import BundleError, EngineError, MissingExtraError, OptionError
from vosrt_export.cli import main
from vosrt_export.compress import compress_bundle, project_graph
from vosrt_export.copying import copy_bundle
from vosrt_export.write_bundle import graph_file, write_files
from vosrt_train.bundle_weights import PROVENANCE_KEY

BundleOf = Callable[[Feature, WeightPrecision], Path]


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder with a copy of the packaged default bundle, `base`."""
    copy_bundle("default", tmp_path / "base")
    return tmp_path


def outputs(bundle: Bundle, engine: str) -> dict[str, np.ndarray]:
    frames = np.random.default_rng(0).integers(0, 256, (1, 41, 67, 3), dtype=np.uint8)
    created = create_encoder_engine(
        bundle.graph("encoder"), bundle.manifest.encoder, engine=engine, precision="fp32", threads=1
    )
    return created.run({"frames": frames})


@pytest.mark.parametrize("engine", ["cpu", "openvino"])
def test_a_shared_encoder_gives_the_same_bits(beside: Path, engine: str, skip_or_fail: Callable[..., None]) -> None:
    """It does so in each engine and in a process of its own; one kind of copy needs the other bundle, one does not."""
    alone, shared = beside / "alone", beside / "shared"
    copy_bundle("refined", alone)
    assert main(["copy", str(alone), "-o", str(shared), "--share", str(beside / "base")]) == 0
    assert not (shared / "encoder.onnx").exists()
    assert sum(each.stat().st_size for each in shared.iterdir()) < 2_500_000
    try:
        wanted = outputs(load_bundle("refined"), engine)
    except (EngineError, MissingExtraError) as error:
        skip_or_fail(str(error), required=engine)
    assert wanted.keys() == {"embedding", "res3", "res2"}
    for path in (alone, shared):
        found = outputs(load_bundle(path), engine)
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)
    copy_bundle("refined", shared, beside / "base", overwrite=True)
    bundle = load_bundle(shared)
    options = {"engine": engine, "precision": "fp32", "threads": 1}
    apart = isolated_encoder(bundle.graph("encoder"), bundle.manifest.encoder, **options)  # type: ignore[arg-type]
    assert apart.run({"frames": np.zeros((1, 16, 16, 3), np.uint8)}).keys() == wanted.keys()
    shutil.rmtree(beside / "base")
    assert load_bundle(alone).manifest.masks == load_bundle("refined").manifest.masks
    with pytest.raises(BundleError, match=r"lacks encoder\.onnx of the bundle .*base; copy both, side by side"):
        load_bundle(shared)


def test_what_is_made_of_a_bundle_that_shares_needs_no_other(beside: Path, tmp_path: Path) -> None:
    """The packaged bundle, whose encoder is another's, is compressed to fewer channels."""
    clip = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    cv2 = pytest.importorskip("cv2")
    (tmp_path / "clip").mkdir()
    for index, frame in enumerate(clip):
        cv2.imwrite(str(tmp_path / "clip" / f"{index}.png"), frame)
    compress_bundle("refined", tmp_path / "small", [str(tmp_path / "clip")], 16)
    made = load_bundle(tmp_path / "small")
    assert all(graph.bundle is None and graph.adds is None for graph in made.manifest.graphs.values())
    assert [*made.graph("encoder").outputs] == ["embedding", "res3", "res2"]


def test_the_same_graph_needs_nothing_added(beside: Path) -> None:
    copy_bundle("default", beside / "again", beside / "base")
    assert {each.name for each in (beside / "again").iterdir()} == {"manifest.json", "training.safetensors"}
    assert load_bundle(beside / "again").graph("encoder").content == load_bundle("default").graph("encoder").content


@pytest.mark.parametrize("engine", ["cpu", "openvino"])
@pytest.mark.parametrize("role", ["encoder", "encoder_int8"])
def test_a_projection_is_added_to_the_shared_encoder(beside: Path, role: str, engine: str) -> None:
    """The narrow embedding takes the wide one's place, in both precisions; engines compute the same bits."""
    pytest.importorskip({"cpu": "onnxruntime"}.get(engine, engine))
    packaged = load_bundle("default")
    default = packaged.manifest
    axes = np.linalg.qr(np.random.default_rng(1).normal(size=(256, 64)))[0].T.astype(np.float16)
    graphs, files = {}, {}
    for each in default.graphs:
        content = project_graph(onnx.load_from_string(packaged.graph(each).content), axes, default.encoder)
        graphs[each] = graph_file(each, content, default.graphs[each].precision)
        files[graphs[each].file] = content
    provenance = {key: value for key, value in default.provenance.items() if key != PROVENANCE_KEY}
    narrow = replace(default, encoder=replace(default.encoder, channels=64), graphs=graphs, provenance=provenance)
    write_files(narrow, files, beside / "alone")
    copy_bundle(str(beside / "alone"), beside / "shared", beside / "base")
    assert sum(each.stat().st_size for each in (beside / "shared").iterdir()) < 80_000
    frames = np.random.default_rng(0).integers(0, 256, (1, 41, 67, 3), dtype=np.uint8)
    (alone,), (shared,) = (
        create_encoder_engine(bundle.graph(role), bundle.manifest.encoder, engine=engine, precision="fp32", threads=1)
        .run({"frames": frames})
        .values()
        for bundle in map(load_bundle, (beside / "alone", beside / "shared"))
    )
    np.testing.assert_array_equal(alone, shared)
    assert alone.shape == (1, 6, 9, 64)


def test_only_the_same_encoder_is_shared(
    beside: Path, small_bundle: BundleOf, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(OptionError, match="the bundles' encoders differ"):
        copy_bundle(str(small_bundle("res3", "fp16")), beside / "x", beside / "base")
    away = tmp_path_factory.mktemp("away")
    with pytest.raises(OptionError, match="is no bundle beside"):
        copy_bundle("refined", away / "x", beside / "base")
    copy_bundle("refined", beside / "shared", beside / "base")
    with pytest.raises(OptionError, match="holds its own encoder"):
        copy_bundle("default", beside / "x", beside / "shared")
    assert not (beside / "x").exists()


@pytest.mark.parametrize("weights", ["fp32", "fp16"])
@pytest.mark.parametrize("feature", ["res3", "res4", "key"])
def test_what_export_writes_is_read(small_bundle: BundleOf, feature: Feature, weights: WeightPrecision) -> None:
    assert load_bundle(small_bundle(feature, weights)).manifest.encoder.feature == feature
