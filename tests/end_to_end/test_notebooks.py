"""The notebooks of the documentation run from their first cell to the last, and are kept without outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "runtime" / "docs" / "notebooks").glob("*.ipynb"))
# What Jupyter does with cells: Python's share one process, and those of bash are scripts in its folder.
PROGRAM = """
import json, subprocess, sys
names = {"__name__": "__main__"}
for cell in json.load(sys.stdin):
    if cell.startswith("%%bash\\n"):
        subprocess.run(["bash", "-euo", "pipefail", "-c", cell.partition("\\n")[2]], check=True)
    else:
        exec(compile(cell, cell, "exec"), names)
"""


def cells(notebook: Path) -> list[dict[str, Any]]:
    """The notebook's cells of code."""
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_order(notebook: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    if notebook.stem in ("fine-tune", "quantise-and-verify"):
        pytest.importorskip("onnxscript")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    code = json.dumps(["".join(cell["source"]) for cell in cells(notebook)])
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, input=code, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]


def test_notebooks_are_committed_without_what_a_run_left() -> None:
    assert len(NOTEBOOKS) == 4
    for notebook in NOTEBOOKS:
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(notebook)), notebook
