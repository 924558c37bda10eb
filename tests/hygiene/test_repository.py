"""The repository keeps its shape: top level, import rules, one stub, nothing large or foreign by accident."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LARGE = 1_000_000
# Files above LARGE bytes, each with the reason to be that size.
LARGE_FILES = {
    "runtime/src/vosrt/bundles/default/encoder.onnx": "weights of the bundled network, fp16",
    "runtime/src/vosrt/bundles/fast/encoder.onnx": "the same, projected to fewer channels",
    "runtime/src/vosrt/bundles/refined/encoder.onnx": "the same, which also hands out the maps that mask networks take",
    "runtime/src/vosrt/bundles/refined/mask_encoder.onnx": "weights of the mask encoder, fp16",
}


def tracked_files() -> list[Path]:
    """Files under version control; skips where the sources were unpacked without it."""
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [REPOSITORY / name for name in listing.stdout.split("\0") if name and (REPOSITORY / name).exists()]


def test_top_level_is_the_agreed_one() -> None:
    """A newcomer meets seven entries (and the licence); everything else has a place inside them."""
    expected = {"README.md", "pyproject.toml", "LICENSE", "train", "export", "runtime", "tests", "benchmarks"}
    assert {path.relative_to(REPOSITORY).parts[0] for path in tracked_files()} - expected <= {".ci", ".gitignore"}


def test_large_files_are_there_on_purpose() -> None:
    """A file above one megabyte is listed here with its reason, or it was added by mistake."""
    large = {str(path.relative_to(REPOSITORY)) for path in tracked_files() if path.stat().st_size > LARGE}
    assert large <= set(LARGE_FILES)


def test_no_path_of_a_machine_is_written_down() -> None:
    """Code, documents and results name no home or work directory of whoever made them."""
    foreign = re.compile(rb"(?<![\w.])/(?:home|root|work|Users)/[\w.]")
    found = [str(path) for path in tracked_files() if path.suffix != ".onnx" and foreign.search(path.read_bytes())]
    assert found == []


@pytest.mark.parametrize("module", ["vosrt", "vosrt.cli.run", "vosrt.cli.evaluate", "vosrt.bundle", "vosrt.pipeline"])
def test_the_runtime_imports_neither_torch_nor_onnx(module: str) -> None:
    """In a fresh process, importing the runtime loads none of the training and export stack."""
    code = f"import sys, {module}; print(sorted(m for m in sys.modules if '.' not in m))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(result.stdout))
    assert "vosrt" in loaded
    assert loaded.isdisjoint({"torch", "onnx", "onnxscript", "safetensors", "vosrt_train", "vosrt_export"})


def test_import_contracts_hold() -> None:
    """Export builds on train builds on the runtime, never the other way round (import-linter, pyproject.toml)."""
    linter = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("import-linter is not installed; it comes with: pip install 'vosrt[dev]'")
    result = subprocess.run([linter, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def signatures(source: str) -> dict[str, list[str]]:
    """Parameter names of every function and method in a stub."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
                arguments = child.args
                found[owner + child.name] = [a.arg for a in [*arguments.args, *arguments.kwonlyargs]]
    return found


def test_the_committed_stub_describes_the_binding(native: Any) -> None:
    """``_native.pyi`` has the functions and parameters that nanobind sees in the built module."""
    stubgen = pytest.importorskip("nanobind.stubgen", reason="nanobind is not installed: pip install 'vosrt[dev]'")
    generator = stubgen.StubGen(native)
    generator.put(native)
    committed = (REPOSITORY / "runtime/src/vosrt/_native.pyi").read_text()
    assert signatures(committed) == signatures(generator.get())


def test_only_the_c_abi_leaves_the_library(native: Any) -> None:
    """``libvosrt`` exports vosrt_* and nothing else: no C++ symbol can meet another library's."""
    library = Path(native.__file__).with_name("libvosrt.so")
    if shutil.which("nm") is None or not library.exists():
        pytest.skip("no nm, or no ELF library beside the binding")
    listing = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    symbols = {line.split()[-1].split("@")[0] for line in listing.stdout.splitlines() if line.split()[-2] != "A"}
    header = (REPOSITORY / "runtime/native/include/vosrt.h").read_text()
    declared = set(re.findall(r"VOSRT_API [\w *]*?(vosrt_\w+)\(", header))
    assert symbols == declared
