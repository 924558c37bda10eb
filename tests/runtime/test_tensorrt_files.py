"""Records of TensorRT engines: written and read back the same, and nothing else is accepted."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vosrt.engines.tensorrt_files import (
    ENGINE_PRECISIONS,
    EngineRecord,
    Profile,
    parse_record,
    read_records,
    write_record,
)
from vosrt.errors import EngineError

RECORD = EngineRecord(
    graph="encoder",
    graph_sha256="ab" * 32,
    flavour="tensorrt-rtx",
    version="1.7.1.116",
    architecture="sm_120",
    precision="fp16",
    profiles=(Profile(minimum=(480, 640), optimum=(480, 854), maximum=(480, 1152)),),
    recipe=1,
    layers=49,
    build_seconds=2.568,
    sha256="01" * 32,
    bytes=6076084,
)


def text_of(record: EngineRecord, folder: Path) -> str:
    return write_record(record, folder).read_text()


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    path = write_record(RECORD, tmp_path)
    assert path.name == "encoder-tensorrt-rtx-1.7.1.116-sm_120-fp16-abababababab.json"
    assert list(read_records(tmp_path)) == [(path, RECORD)]
    assert [str(profile) for profile in RECORD.profiles] == ["480x640:480x854:480x1152"]


def test_everything_that_an_engine_hangs_on_is_in_its_name() -> None:
    """Two engines that differ in any of it do not take each other's place."""
    changes: list[dict[str, Any]] = [
        {"flavour": "tensorrt"},
        {"version": "1.7.1.117"},
        {"architecture": "sm_89"},
        {"precision": "fp32"},
        {"graph_sha256": "cd" * 32},
        {"graph": "decoder"},
    ]
    stems = {RECORD.stem, *(replace(RECORD, **change).stem for change in changes)}
    assert len(stems) == len(changes) + 1


def edit(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda document: document.__setitem__(key, value)


BROKEN: dict[str, Callable[[dict[str, Any]], object]] = {
    "no schema": lambda document: document.pop("schema"),
    "newer schema": edit("schema", 3),
    "unknown key": edit("plugin", "lib.so"),
    "missing key": lambda document: document.pop("sha256"),
    "flavour": edit("flavour", "tensorrt-lite"),
    "flavour as a list": edit("flavour", ["tensorrt"]),
    "version with a path": edit("version", "../1.7"),
    "architecture": edit("architecture", "sm_86/../.."),
    "graph": edit("graph", "../encoder"),
    "short hash": edit("sha256", "01"),
    "precision": edit("precision", "fp4"),
    "negative size": edit("bytes", -1),
    "size as text": edit("bytes", "6076084"),
    "truth as a number": edit("layers", True),
    "absurd time": edit("build_seconds", 1e300),
    "no profiles": edit("profiles", []),
    "many profiles": lambda document: edit("profiles", document["profiles"] * 99)(document),
    "profile as text": edit("profiles", ["480x854"]),
    "profile out of order": lambda document: document["profiles"][0].update(minimum=[481, 640]),
    "size of three": lambda document: document["profiles"][0].update(maximum=[480, 1152, 3]),
    "absurd side": lambda document: document["profiles"][0].update(maximum=[480, 1 << 40]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_record_with_anything_else_in_it_is_refused(tmp_path: Path, name: str) -> None:
    document = json.loads(text_of(RECORD, tmp_path))
    BROKEN[name](document)
    path = tmp_path / f"{RECORD.stem}.json"
    path.write_text(json.dumps(document))
    ((_, found),) = read_records(tmp_path)
    assert isinstance(found, EngineError)
    assert "\n" not in str(found)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1, "schema": 1}', "[" * 100_000, "\ud800"])
def test_what_is_no_record_at_all(text: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"x\.json is no engine record"):
        parse_record(text, tmp_path / "x.json")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(sorted(vars(RECORD))),
)
def test_any_value_anywhere_is_accepted_or_refused(value: Any, key: str) -> None:
    """No other exception than ours is raised."""
    document = {"schema": 2, **vars(RECORD), "profiles": [vars(RECORD.profiles[0])], key: value}
    with contextlib.suppress(EngineError):
        assert isinstance(parse_record(json.dumps(document), Path("x.json")), EngineRecord)


def test_a_record_under_another_name_or_behind_a_link_is_refused(tmp_path: Path) -> None:
    """A record that differs from its name, a file from elsewhere and one of absurd size are refused."""
    path = write_record(RECORD, tmp_path)
    text = path.read_text()
    path.unlink()
    (tmp_path / "encoder.json").write_text(text)
    (tmp_path / "large.json").write_text(" " * 70_000)
    (tmp_path / "not-text.json").write_bytes(b"\xff")
    path.symlink_to(tmp_path / "encoder.json")
    found = {path.name: str(record) for path, record in read_records(tmp_path)}
    assert found["encoder.json"] == f"encoder.json describes {RECORD.stem}"
    assert found[path.name].startswith(f"{path.name} is reached through a link")
    assert "a record has at most" in found["large.json"]
    assert "cannot be read" in found["not-text.json"]
    assert len(found) == 4


def test_the_order_of_precisions_is_that_of_speed() -> None:
    assert ENGINE_PRECISIONS == ("int8", "fp8", "fp16", "bf16", "fp32")
