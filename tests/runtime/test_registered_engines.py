"""An engine that another package registers: one file, and its entry point."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest

from vosrt.cli.doctor import examine
from vosrt.engines import registry
from vosrt.errors import EngineError, OptionError
from vosrt.model import Model

_SOURCE = """
from vosrt.engines.fake import FakeEngine
from vosrt.engines.registry import Registration

def create(graph, spec, *, precision, threads, reason):
    assert graph.content
    return FakeEngine(spec)

ENGINE = Registration(name="mine", needs="nothing", devices=("cpu",), precisions=("fp32",), factory=create)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages with one of engines."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "somebody.py").write_text(_SOURCE)
    info = tmp_path / "somebody-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[vosrt.engines]\nmine = somebody:ENGINE\nother = somebody:ENGINE\nbroken = somebody:NOTHING\n"
    )
    for each in (registry.names, registry.auto_order, registry.registered):
        each.cache_clear()
    yield tmp_path
    sys.modules.pop("somebody", None)
    for each in (registry.names, registry.auto_order, registry.registered):
        each.cache_clear()


def test_it_runs_by_its_name(site: Path) -> None:
    model, fake = (Model.load("fast", engine=name, threads=1) for name in ("mine", "fake"))
    frame = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(model.encode(frame).array, fake.encode(frame).array)
    assert Model.load("fast", precision="fp32", threads=1).describe()["engines"]["encoder"]["name"] in (
        "openvino",
        "cpu",
    )


def test_engines_are_named_by_their_own_files_alone() -> None:
    """No other module lists engines; names that are devices too are left aside."""
    ours = [repr(name).replace("'", '"') for name in registry.auto_order() if name not in ("cpu", "cuda")]
    package = Path(registry.__file__).parents[1]
    files = {entry.value.split(":")[0].rsplit(".")[-1] for entry in entry_points(group=registry.GROUP)}
    for path in package.rglob("*.py"):
        if path.stem not in {*files, "tensorrt_flavour", "tensorrt_files"}:
            assert sum(name in path.read_text() for name in ours) < 2, path


def test_former_names_lead_to_registered_engines() -> None:
    for name in ("openvino", "tensorrt", "tensorrt-rtx"):
        assert registry.plain_name(f"{name}-direct") == name
    for name in ("auto", "fake", "nobody", "cpu"):
        assert registry.plain_name(name) == name


def test_what_it_lacks_is_refused(site: Path) -> None:
    with pytest.raises(OptionError, match="the mine engine has no bf16; expected auto, fp32"):
        Model.load("fast", engine="mine", precision="bf16")
    with pytest.raises(EngineError, match="somebody:ENGINE registers no engine other"):
        Model.load("fast", engine="other")
    with pytest.raises(EngineError, match="the engine broken of somebody:NOTHING cannot be imported"):
        Model.load("fast", engine="broken")
    with pytest.raises(OptionError, match=r"expected one of auto, .*, cpu, broken, mine, other$"):
        Model.load("fast", engine="nobody")


def test_the_doctor_lists_it(site: Path) -> None:
    findings = {each.name: each for each in examine() if each.kind == "engine"}
    assert (findings["mine"].found, findings["mine"].detail) == (True, "cpu: fp32; needs nothing")
    assert not findings["broken"].found
