"""vos-train and vos-export as a user meets them: offline, end to end, one line per mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vosrt_export.cli
import vosrt_train.cli
from tests.fakes.programs import printed_by
from vosrt.bundle import Feature, WeightPrecision, load_bundle
from vosrt.engines.onnxruntime import cpu_engine
from vosrt_export.write_bundle import claimed

CommandLine = Callable[..., subprocess.CompletedProcess[str]]
BundleOf = Callable[[Feature, WeightPrecision], Path]


def test_from_nothing_to_a_bundle_that_runs(command_line: CommandLine, tmp_path: Path) -> None:
    made = command_line("vosrt_train", "init", "-o", "c.safetensors", "--seed", "7", "--without-layer4")
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout == "c.safetensors: untrained, seed 7; features res3 (256 channels)\n"
    exported = command_line("vosrt_export", "c.safetensors", "-o", "bundle/")
    assert (exported.returncode, exported.stderr) == (0, "")
    assert exported.stdout.startswith("bundle: PyTorch and ONNX Runtime agree on ")
    assert all(word in exported.stdout for word in ("max abs", "mean abs", "min cosine"))
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.manifest.provenance["training"]["summary"] == "untrained, seed 7"
    axes = {"frames": ("n", "height", "width", None)}
    engine = cpu_engine(bundle.graph_path("encoder"), axes, threads=1, reason="test")
    embedding = engine.run({"frames": np.zeros((1, 48, 65, 3), dtype=np.uint8)})["embedding"]
    assert embedding.shape == (1, *bundle.manifest.encoder.grid(48, 65), bundle.manifest.encoder.channels)


def run_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str, *arguments: str
) -> tuple[int, str]:
    """Exit code and stderr of a command run in this process."""
    monkeypatch.setattr(sys, "argv", [package, *arguments])
    main = {"vos-train": vosrt_train.cli.main, "vos-export": vosrt_export.cli.main}[package]
    code = main()
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere.safetensors", "-o", "bundle"), "no such checkpoint: nowhere.safetensors"),
        (("broken.safetensors", "-o", "bundle"), "broken.safetensors is not a whole safetensors file"),
        (("part.safetensors", "-o", "bundle", "--feature", "res4"), "no feature 'res4'; choose from: res3"),
        (("part.safetensors", "-o", "taken"), "taken is there already"),
        (("part.safetensors", "-o", "bundle", "--name", ""), "--name is empty"),
        (("import-released", "nowhere.pth", "-o", "bundle"), "no such file: nowhere.pth"),
        (("import-released", "broken.safetensors", "-o", "bundle"), "is not a whole PyTorch file"),
        (("import-released", "x.pth", "-o", "x.safetensors", "--size", "240"), "--name and --size are for bundles"),
    ],
)
def test_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    says: str,
) -> None:
    """Bad input ends before any work, with nothing written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert run_here(monkeypatch, capsys, "vos-train", "init", "-o", "part.safetensors", "--without-layer4")[0] == 0
    code, stderr = run_here(monkeypatch, capsys, "vos-export", *arguments)
    assert code == 2
    assert says in stderr
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("vos-export", ("c", "-o", "b", "--feature", "res5")),
        ("vos-export", ("c", "-o", "b", "--weights", "int4")),
        ("vos-export", ("c", "-o", "b", "--size", "3")),
        ("vos-export", ("c",)),
        ("vos-train", ("init", "-o", "c", "--seed", "-1")),
        ("vos-train", ("fit",)),
    ],
)
def test_impossible_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str, arguments: tuple[str, ...]
) -> None:
    code, stderr = run_here(monkeypatch, capsys, package, *arguments)
    assert code == 2
    assert stderr.startswith("error: ")
    assert len(stderr.splitlines()) == 1
    assert "--help" in stderr


@pytest.mark.parametrize(
    ("package", "arguments", "missing", "says"),
    [
        (
            "vos-train",
            ("init", "-o", "c"),
            "torch",
            "PyTorch is not installed; install it with: pip install 'vosrt[train]'",
        ),
        (
            "vos-export",
            ("c", "-o", "b"),
            "torch",
            "PyTorch is not installed; install it with: pip install 'vosrt[export]'",
        ),
        ("vos-export", ("c", "-o", "b"), "onnxscript", "pip install 'vosrt[export]'"),
    ],
)
def test_missing_extras_name_the_command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
    arguments: tuple[str, ...],
    missing: str,
    says: str,
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    code, stderr = run_here(monkeypatch, capsys, package, *arguments)
    assert code == 2
    assert says in stderr


def test_help_needs_no_torch() -> None:
    """Heavy packages are imported by the commands that use them, not by the command line."""
    script = "import sys, vosrt_train.cli, vosrt_export.cli; print({'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
    assert printed_by(script) == "set()\n"


def stderr_on_a_terminal(package: str, *arguments: object) -> str:
    """What a command shows on standard error where that is a terminal."""
    program = f"import sys; from {package}.cli import main; sys.exit(main())"
    master, slave = os.openpty()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "COLUMNS": "100"}
    words = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=slave, env=environment) as process:
        os.close(slave)
        shown = b""
        try:
            while read := os.read(master, 4096):
                shown += read
        except OSError:  # how Linux says that the other end is closed
            pass
        finally:
            os.close(master)
    assert process.returncode == 0, shown
    return shown.decode()


def test_long_commands_show_what_they_do(small_bundle: BundleOf, tmp_path: Path) -> None:
    """A terminal shows the stage and its time."""
    clip = tmp_path / "clip"
    clip.mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (60, 90, 3), dtype=np.uint8)
        Image.fromarray(noise).save(clip / f"{number}.png")
    bundle = small_bundle("res3", "fp16")
    shown = stderr_on_a_terminal(
        "vosrt_export", "compress", bundle, "-o", tmp_path / "out", "--channels", 4, "--clip", clip
    )
    assert "comparing the new graph with the old one" in shown
    assert "0:00:0" in shown
    shown = stderr_on_a_terminal("vosrt_export", "verify", bundle, "--engine", "openvino", "--no-write", "--size", 48)
    assert "engines beside the yardstick" in shown


def test_a_second_command_that_makes_the_same_bundle_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The message names the process that holds it; another place is free, and the lock leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    assert run_here(monkeypatch, capsys, "vos-train", "init", "-o", "c.safetensors", "--without-layer4")[0] == 0
    with claimed(Path("bundle"), overwrite=False):
        code, error = run_here(monkeypatch, capsys, "vos-export", "c.safetensors", "-o", "bundle")
        assert (code, error.count("\n")) == (2, 1)
        assert f"bundle: another command (process {os.getpid()}) makes a bundle there" in error
        with claimed(Path("other"), overwrite=False):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.safetensors"]
    assert run_here(monkeypatch, capsys, "vos-export", "c.safetensors", "-o", "bundle") == (0, "")
    assert ".vosrt-lock" not in {path.name for path in (tmp_path / "bundle").iterdir()}
