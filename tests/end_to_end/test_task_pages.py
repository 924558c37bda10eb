"""The commands of the documentation's pages run as they are typed, on a small clip; ``console`` blocks are not run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.fakes.media import write_video
from vosrt.types import U8Array

DOCS = Path(__file__).parents[2] / "runtime" / "docs"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = {page.stem: page for page in sorted(DOCS.rglob("*.md")) if BLOCK.search(page.read_text())}


@pytest.fixture
def folder(tmp_path: Path, tiny_clip: tuple[U8Array, U8Array]) -> Path:
    """What pages name: ``clip.mp4``, its masks ``first.png`` and ``late.png``, and ``footage`` with another clip."""
    frames, masks = tiny_clip
    (tmp_path / "footage").mkdir()
    for path in (tmp_path / "clip.mp4", tmp_path / "footage" / "a.mp4"):
        write_video(path, frames, options={"movflags": "frag_keyframe+empty_moov"})
    for name, mask in (("first.png", masks[0]), ("late.png", masks[3]), ("footage/a.png", masks[0])):
        Image.fromarray(mask).save(tmp_path / name)
    return tmp_path


def test_the_pages_have_commands() -> None:
    assert len(PAGES) >= 9


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_says_works(name: str, folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    tools = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    for kind, code in BLOCK.findall(PAGES[name].read_text()):
        command = ["bash", "-euo", "pipefail", "-c", code] if kind == "bash" else [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{code}\n{done.stderr[-2000:]}"
    for found in re.findall(r"`([\w./-]+/[\w.-]+\.(?:jpg|mov|html|csv|mp4))`", PAGES[name].read_text()):
        assert (folder / found).is_file() or found.startswith("vosrt-demo"), found
