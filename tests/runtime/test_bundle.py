"""The manifest's contract: a sound bundle loads, and every unsound one is refused with one clear line."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.bundles import cast_encoder, write_bundle
from vosrt.bundle import SCHEMA, EncoderSpec, load_bundle, packaged_bundles
from vosrt.errors import BundleError
from vosrt.types import PropagationOptions

Edit = Callable[[dict[str, Any]], object]


@functools.cache
def plain_graph() -> bytes:
    return cast_encoder(4)


def make_bundle(root: Path, **changes: Any) -> Path:
    """Write a small valid bundle."""
    further: dict[str, Any] = {"verification": {"max_abs": 1e-6}, "provenance": {"licence": "Apache-2.0"}}
    return write_bundle(root, plain_graph(), **further | changes)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def edit(bundle: Path, change: Edit) -> None:
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def refusal(bundle: Path | str) -> str:
    """The one line with which a bundle is refused."""
    with pytest.raises(BundleError) as caught:
        load_bundle(bundle)
    message = str(caught.value)
    assert message
    assert message.isprintable(), "an error is one line that is safe to print on a terminal"
    assert len(message) < 600
    return message


def test_the_same_manifest_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b")
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()


def test_a_manifest_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="channels"):
        make_bundle(tmp_path / "b", encoder=EncoderSpec(channels=0, feature="res3"))
    assert not (tmp_path / "b" / "manifest.json").exists()
    with pytest.raises(BundleError, match="not a finite number"):
        make_bundle(tmp_path / "c", verification={"max_abs": float("nan")})


def test_unknown_graph_names_those_that_exist(bundle: Path) -> None:
    with pytest.raises(BundleError, match="no graph 'decoder'; it has: encoder"):
        load_bundle(bundle).graph_path("decoder")


def test_options_newer_than_the_bundle_keep_their_default(bundle: Path) -> None:
    edit(bundle, lambda d: d["inference"].pop("yield_background"))
    edit(bundle, lambda d: d["encoder"].pop("align_corners"))
    assert load_bundle(bundle).manifest.inference == PropagationOptions()
    assert load_bundle(bundle).manifest.encoder.align_corners


@pytest.mark.parametrize(("side", "cells"), [(480, 60), (854, 107), (1, 1), (8, 1), (9, 2), (96, 12), (97, 13)])
def test_grid_follows_the_convolution_arithmetic(side: int, cells: int) -> None:
    """Each of three stages of stride 2 gives floor((x - 1) / 2) + 1."""
    chained = side
    for _ in range(3):
        chained = (chained - 1) // 2 + 1
    assert chained == cells
    assert EncoderSpec(channels=4, feature="res3").grid(side, 2 * side)[0] == cells


def test_missing_pieces(tmp_path: Path, bundle: Path) -> None:
    missing = refusal(tmp_path / "nowhere")
    assert f"no such bundle: {tmp_path / 'nowhere'}; expected default, " in missing
    assert all(name in missing for name in packaged_bundles())
    assert "a bundle is a directory" in refusal(bundle / "encoder.onnx")
    (bundle / "encoder.onnx").unlink()
    assert "lacks its file encoder.onnx" in refusal(bundle)
    (bundle / "encoder.onnx").mkdir()
    assert "lacks its file encoder.onnx" in refusal(bundle)
    (bundle / "manifest.json").unlink()
    assert "it has no manifest.json" in refusal(bundle)


@pytest.mark.parametrize(
    "name",
    [
        "../bundle/encoder.onnx",
        "a/../encoder.onnx",
        "..",
        ".",
        "",
        "/etc/passwd",
        "C:/encoder.onnx",
        "..\\encoder.onnx",
        "encoder.onnx\n",
        "encoder.onnx\x00",
        "\ud800.onnx",
        ".hidden",
        "a//b",
        7,
        None,
    ],
)
def test_file_names_that_escape(bundle: Path, name: object) -> None:
    edit(bundle, lambda d: d["graphs"]["encoder"].update(file=name))
    assert "graphs.encoder.file" in refusal(bundle)


def test_links_inside_are_followed(bundle: Path) -> None:
    (bundle / "encoder.onnx").rename(bundle / "stored.onnx")
    (bundle / "encoder.onnx").symlink_to("stored.onnx")
    assert load_bundle(bundle).graph_path("encoder").read_bytes() == plain_graph()


@pytest.mark.parametrize(("side", "whole"), [(480, 480), (854, 856), (427, 424), (3, 8), (12, 16), (11, 8)])
def test_working_frames_are_whole_numbers_of_cells(side: int, whole: int) -> None:
    """Without aligned corners it is the nearest number, halves up, and at least one."""
    assert EncoderSpec(channels=4, feature="res3", align_corners=False).whole_cells(side) == whole
    assert EncoderSpec(channels=4, feature="res3").whole_cells(side) == side


def test_a_newer_schema_is_named_before_anything_else(bundle: Path) -> None:
    def renew(document: dict[str, Any]) -> None:
        document.clear()
        document.update(schema=SCHEMA + 1, novelty=True)

    edit(bundle, renew)
    assert f"made by a newer vosrt (schema {SCHEMA + 1}; this one reads up to {SCHEMA}); upgrade" in refusal(bundle)


WRONG: dict[str, Edit] = {
    "schema true": lambda d: d.update(schema=True),
    "channels float": lambda d: d["encoder"].update(channels=4.0),
    "sides": lambda d: d["encoder"].update(min_side=64, max_side=32),
    "parts": lambda d: (d["encoder"].update(align_corners=True), d["inference"].update(parts=2)),
    "graphs empty": lambda d: d.update(graphs={}),
    "graph name": lambda d: d["graphs"].update({"\x1b[2J": d["graphs"]["encoder"]}),
    "graph": lambda d: d["graphs"].update(encoder="encoder.onnx"),
    "sha256": lambda d: d["graphs"]["encoder"].update(sha256="ABC"),
    "context float": lambda d: d["inference"].update(context=1.5),
    "global_reference": lambda d: d["inference"].update(global_reference=False),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_wrong_types_and_absurd_values(bundle: Path, change: Edit) -> None:
    """What ``schema.txt`` does not say by itself; `tests/hostile_bundles` goes through the table."""
    edit(bundle, change)
    assert "manifest.json" in refusal(bundle)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not JSON"),
        (b"[]", "expected a JSON object"),
        (b"null", "expected a JSON object"),
        (b'{"schema": 1, "encoder": {"\\u001b": 1, "\\u001b": 1}}', "occurs twice"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_files_that_are_no_manifest(bundle: Path, content: bytes, says: str) -> None:
    (bundle / "manifest.json").write_bytes(content)
    assert says in refusal(bundle)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    path=st.sampled_from([(s, k) for s in ("encoder", "inference", "graphs") for k in (None, "file", "size")]),
    key=st.text(),
    value=json_values,
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_content_crashes_the_reader(bundle: Path, path: tuple[str, str | None], key: str, value: object) -> None:
    """Any content of a section gives a bundle or a BundleError, never another exception."""
    original = (bundle / "manifest.json").read_text()
    document = json.loads(original)
    if path[1] is None:
        document[path[0]] = value
    else:
        document[path[0]][path[1]] = value
        document[path[0]][key] = value
    try:
        (bundle / "manifest.json").write_text(json.dumps(document))
        with contextlib.suppress(BundleError):
            load_bundle(bundle)
    finally:
        (bundle / "manifest.json").write_text(original)


def test_operating_system_errors_become_one_line(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").symlink_to("manifest.json")
    assert "cannot be read: Too many levels of symbolic links" in refusal(tmp_path)


def test_default_is_a_name_only_as_a_string(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the user's called "default" is reached through a path."""
    monkeypatch.chdir(tmp_path)
    make_bundle(tmp_path / "default")
    assert load_bundle(Path("default")).manifest.name == "test"
    assert load_bundle("./default").manifest.name == "test"
