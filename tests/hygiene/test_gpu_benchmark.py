"""The one command for a GPU that is at hand for minutes: no part ends another one, and the time is kept."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.kernels import gpu
from benchmarks.report.gpu import tables

ROW = {"part": "p", "what": "frames", "peer": "a peer", "size": 480, "objects": 1, "fps": 12.5}
WRITE = f"import sys; open(sys.argv[1], 'a').write({json.dumps(ROW)!r} + chr(10)); "


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (WRITE, ""),
        (WRITE + "raise SystemExit('it broke')", "exit code 1: it broke"),
        (WRITE + "import os; os.abort()", "ended by SIGABRT"),
        (WRITE + "import time; time.sleep(600)", "ended after 5 s"),
        (WRITE + "open(sys.argv[1], 'a').write('{half'); import os; os.abort()", "ended by SIGABRT"),
    ],
    ids=["good", "fails", "crashes", "hangs", "is killed while it writes"],
)
def test_what_a_part_wrote_counts_however_it_ends(code: str, why: str, tmp_path: Path) -> None:
    """The rows before the end are kept, and a row says why it ended."""
    rows = tmp_path / "rows.jsonl"
    found = gpu.run_part("p", [sys.executable, "-c", code, str(rows)], rows, 5, dict(os.environ))
    assert found[0] == ROW
    assert [row["why_not"] for row in found if "why_not" in row] == ([why] if why else [])
    assert found[-1]["what"] == "part"


def test_children_of_a_part_are_ended_with_it(tmp_path: Path) -> None:
    """A compiler that a part started does not go on beside the next part."""
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    gpu.run_part("p", [sys.executable, "-c", code], tmp_path / "rows.jsonl", 5, dict(os.environ))
    child = int((tmp_path / "rows.log").read_text().split()[0])
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and "zombie" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_parts_that_the_time_does_not_hold_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of the time limits a part; one that has none left is a row, not a process."""
    limits: list[float] = []

    def run_part(_name: str, _command: object, _rows: Path, seconds: float, _environment: object) -> list[Any]:
        limits.append(seconds)
        return []

    monkeypatch.setattr(gpu, "run_part", run_part)
    file = io.StringIO()
    for seconds in (1000.0, 40.0, 3.0):
        gpu.Run(file, tmp_path, gpu.Budget(seconds), dict(os.environ), {}).measure(gpu.Part("parity", 60))
    assert limits == [60, pytest.approx(38, abs=1)]
    assert json.loads(file.getvalue()) == {
        "part": "parity", "what": "parity", "why_not": "no time was left for it"
    }  # fmt: skip
    assert sum(part.seconds for part in gpu.PARTS[3:8]) + 100 < gpu.SECONDS  # what is ours, behind a build


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    """It says so in one line, exits with 2 and writes nothing."""
    command = [sys.executable, "-m", "benchmarks.kernels.gpu", "-o", str(tmp_path / "gpu.jsonl")]
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=gpu.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: nvidia-smi names no GPU; --check runs everything on emulated kernels"
    )
    assert list(tmp_path.iterdir()) == []


def test_pytorch_names_the_gpu_where_nvidia_smi_is_missing(tmp_path: Path) -> None:
    """A container may have the driver's libraries alone."""
    (tmp_path / "torch.py").write_text(
        "from types import SimpleNamespace as S\n"
        "version = S(cuda='13.0')\n"
        "cuda = S(get_device_properties=lambda i: S(name='NVIDIA H200', major=9, minor=0))\n"
    )
    around = gpu.look_around({**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(tmp_path)})
    assert around["gpu"] == {
        "name": "NVIDIA H200", "driver_version": "of CUDA 13.0 or newer", "compute_cap": "9.0"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "check", "code"),
    [
        ([ROW], True, 0),
        ([ROW, {"why_not": "ModuleNotFoundError: No module named 'sam2'"}], True, 0),
        ([ROW, {"why_not": "compute-sanitizer is not installed"}], True, 0),
        ([ROW, {"why_not": "ended by SIGSEGV"}], True, 1),
        ([ROW, {"why_not": "ended by SIGSEGV"}], False, 0),
        ([ROW, {"why_not": "LostParityError: {}"}], False, 1),
        ([{"why_not": "exit code 1: nvcc failed"}], False, 1),
    ],
)
def test_the_exit_code_says_what_counts(rows: list[dict[str, Any]], check: bool, code: int) -> None:
    """A GPU's run ends well with what it got; a check holds every part."""
    assert gpu.verdict(rows, check=check) == code


def test_nothing_has_to_be_installed(tmp_path: Path, native: Any) -> None:
    """It runs from a clone and a libvosrt, without an installed vosrt, OpenCV, PyAV, rich, Pillow or PyTorch."""
    site = gpu.make_site(tmp_path, Path(native.libvosrt().path))
    code = (
        "import sys\n"
        "for name in ('cv2', 'av', 'rich', 'typer', 'PIL', 'safetensors', 'onnxscript', 'torch'):\n"
        "    sys.modules[name] = None\n"
        "import vosrt, vosrt.bench.clip, benchmarks.kernels.gpu_parts\n"
        "from vosrt.engines.registry import auto_order\n"
        "from vosrt.core.native import libvosrt\n"
        f"assert vosrt.__file__.startswith({str(site)!r}) and str(libvosrt().path).startswith({str(site)!r})\n"
        "assert 'tensorrt' in auto_order()\n"
        "frame = vosrt.bench.clip.render(48, 86, 5)\n"
        "assert frame.shape == (48, 86, 3) and frame.std() > 20\n"
        "print(vosrt.Model.load('default', engine='fake').describe()['versions']['vosrt'])\n"
    )
    packages = Path(np.__file__).parents[1]  # without -S, an installed vosrt would be found first
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (site, gpu.ROOT, packages)))}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_tables_hold_what_was_and_was_not_measured(tmp_path: Path) -> None:
    """They hold frames, kernels and checks, and the reasons why the rest is missing."""
    rows = [
        {"machine": {}, "python": "3.12.1", "gpu": {"name": "NVIDIA H200", "driver_version": "580.1"}},
        ROW,
        {"part": "k", "what": "kernel match", "grid": "60 x 107", "channels": 512, "objects": 1, "ms": 0.9,
         "floors_at_published_peaks": {"H200": {"useful_ms": 0.093, "memory_ms": 0.03}}},
        {"part": "parity", "what": "parity", "with": "NumPy twin", "labels_changed": 0.0},
        {"part": "memcheck", "what": "compute-sanitizer", "found": "nothing"},
        {"part": "SAM 2.1", "what": "SAM 2.1", "why_not": "ModuleNotFoundError: no | module"},
    ]  # fmt: skip
    path = tmp_path / "gpu.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = tables(path)
    for line in (
        "NVIDIA H200, driver 580.1, Python 3.12.1.",
        "| a peer | 480 | 1 | **12.5** | – |",
        "| kernel match | 60 x 107 | 512 | 1 | 0.9 | 0.093 | 0.03 |",
        "| compute-sanitizer memcheck | nothing |",
        "| SAM 2.1 | ModuleNotFoundError: no / module |",
    ):
        assert line in text.splitlines()
    assert tables(tmp_path / "none.jsonl") == "(not measured)"
