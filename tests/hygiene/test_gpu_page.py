"""The page on GPUs names what there is: extras, engines, options, and the words of errors."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = (
    *("runtime/GPU.md", "README.md", "runtime/README.md", "export/README.md"),
    *(f"runtime/docs/reference/{page}.md" for page in ("engines", "gpu", "page", "sources")),
)


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return table


@pytest.mark.parametrize("page", PAGES)
def test_every_extra_of_a_pip_line_exists(page: str, project: dict[str, Any]) -> None:
    """A line that pip would take with a warning and install nothing for is none."""
    lines = re.findall(r"pip install [^|`\n]*", (REPOSITORY / page).read_text())
    named = {extra for line in lines for found in re.findall(r"\[([\w,-]+)\]", line) for extra in found.split(",")}
    assert named
    assert named <= set(project["optional-dependencies"]) | {"cuda", "cudnn"}


def test_requirements_beside_the_extras_are_those_of_an_extra(project: dict[str, Any]) -> None:
    """The Jetson's line has what the extra has but for TensorRT, which JetPack brings."""
    page = (REPOSITORY / "runtime/GPU.md").read_text()
    (line,) = re.findall(r'pip install ("cuda-bindings.*)', page)
    assert re.findall(r'"([^"]+)"', line) == project["optional-dependencies"]["tensorrt"][1:]


def test_engines_and_their_extras_have_one_name(project: dict[str, Any]) -> None:
    """What a table row calls an engine is one, and its extra has its name."""
    rows = re.findall(r'\| `([\w-]+)` \| `pip install "\.\[([\w,-]+)\]"`', (REPOSITORY / "runtime/GPU.md").read_text())
    assert {engine for engine, _ in rows} == {"tensorrt", "tensorrt-rtx", "cuda"}
    for engine, extras in rows:
        assert engine in project["entry-points"]["vosrt.engines"]
        assert extras.split(",")[0] == "gpu"
        assert engine == "cuda" or extras.split(",")[1] == engine


def test_the_quoted_errors_are_in_the_sources() -> None:
    """Who searches for a message finds it."""
    page = (REPOSITORY / "runtime/GPU.md").read_text().split("## If it does not work")[1]
    quoted = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    sources = "".join(path.read_text() for path in (REPOSITORY / "runtime/src/vosrt").rglob("*.py"))
    assert len(quoted) == 5
    for message in quoted:
        if message.startswith("CUDA driver version"):  # CUDA's own words
            continue
        for part in re.split(r" … |…|libcuda\.so\.1|libvosrt_cuda\.so|tensorrt-rtx|CUDAExecutionProvider", message):
            assert part.strip() in sources, part
