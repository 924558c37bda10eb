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

from tests.fakes.programs import printed_by

REPOSITORY = Path(__file__).resolve().parents[2]
LARGE = 1_000_000
# Files above LARGE bytes, each with the reason to be that size.
LARGE_FILES = {
    "runtime/src/vosrt/bundles/default/encoder.onnx": "weights of the bundled network, fp16",
    "runtime/src/vosrt/bundles/default/encoder_int8.onnx": "the same in int8, faster where processors have VNNI",
    "runtime/src/vosrt/bundles/fast/encoder.onnx": "weights of the fast network, fp16",
    "runtime/src/vosrt/bundles/refined/mask_encoder.onnx": "weights of the mask encoder, fp16",
}


def tracked_files() -> list[Path]:
    """Files under version control; skips where the sources were unpacked without it."""
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [REPOSITORY / name for name in listing.stdout.split("\0") if name and (REPOSITORY / name).exists()]


def test_top_level_is_the_agreed_one() -> None:
    """A newcomer meets ten entries; everything else has a place inside them or is a dotfile that a tool expects."""
    expected = {"README.md", "CHANGELOG.md", "LICENSE", "NOTICE", "pyproject.toml"} | {
        "train",
        "export",
        "runtime",
        "tests",
        "benchmarks",
    }
    dotfiles = {".ci", ".gitignore", ".github", ".pre-commit-config.yaml", ".clang-format"}
    assert {path.relative_to(REPOSITORY).parts[0] for path in tracked_files()} - expected <= dotfiles


def test_large_files_are_there_on_purpose() -> None:
    """A file above one megabyte is listed with its reason, or it was added by mistake."""
    large = {str(path.relative_to(REPOSITORY)) for path in tracked_files() if path.stat().st_size > LARGE}
    assert large <= set(LARGE_FILES)


def test_no_path_of_a_machine_is_written_down() -> None:
    """Code, documents and results name no home or work directory of their author."""
    foreign = re.compile(rb"(?<![\w.])/(?:home|root|work|Users)/[\w.]")
    found = [str(path) for path in tracked_files() if path.suffix != ".onnx" and foreign.search(path.read_bytes())]
    assert found == []


def test_links_between_documents_lead_somewhere() -> None:
    """Each names a file, and a heading of it where it goes on after ``#``."""
    heading, link = re.compile(r"^#+ (.*)$", re.MULTILINE), re.compile(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)")
    broken, count = [], 0
    for page in (path for path in tracked_files() if path.suffix == ".md"):
        for name, anchor in link.findall(page.read_text()):
            target, count = page.parent / name if name else page, count + 1
            titles = heading.findall(target.read_text()) if target.is_file() and anchor else []
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            if not target.exists() or (anchor and anchor not in anchors):
                broken.append(f"{page.relative_to(REPOSITORY)}: {name}#{anchor}")
    assert count > 50
    assert broken == []


@pytest.mark.parametrize("module", ["vosrt", "vosrt.cli.run", "vosrt.cli.evaluate", "vosrt.bundle", "vosrt.pipeline"])
def test_the_runtime_imports_neither_torch_nor_onnx(module: str) -> None:
    """In a fresh process, importing the runtime loads none of the training and export stack."""
    code = f"import sys, {module}; print(sorted(m for m in sys.modules if '.' not in m))"
    loaded = set(ast.literal_eval(printed_by(code)))
    assert "vosrt" in loaded
    assert loaded.isdisjoint({"torch", "onnx", "onnxscript", "safetensors", "vosrt_train", "vosrt_export"})


def test_one_module_prints() -> None:
    """Nothing else prints: rich would read markup in names, and a closed pipe or a strange name would raise."""
    printers = re.compile(
        r"(?<![.\w])print\(|\b(typer|click)\.(echo|secho|style)\b|\bsys\.(stdout|stderr)\.write|"
        r"^\s*(from|import) rich\b|pretty_exceptions_enable|\bwarnings\.showwarning\b",
        re.MULTILINE,
    )
    allowed = {"runtime/src/vosrt/console.py", "runtime/src/vosrt/cli/app.py"}
    sources = [p for p in tracked_files() if p.suffix == ".py" and p.relative_to(REPOSITORY).parts[1] == "src"]
    found = {str(p.relative_to(REPOSITORY)) for p in sources if printers.search(p.read_text())}
    assert len(sources) > 100
    assert found == allowed


def test_import_contracts_hold() -> None:
    """Export builds on train builds on the runtime, never the other way round (import-linter, pyproject.toml)."""
    linter = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("import-linter is not installed; it comes with: pip install 'vosrt[dev]'")
    result = subprocess.run([linter, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_only_the_c_abi_leaves_the_library(native: Any) -> None:
    """``libvosrt`` exports vosrt_* and nothing else: no C++ symbol can meet another library's."""
    library = native.libvosrt().path
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    listing = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    symbols = {line.split()[-1].split("@")[0] for line in listing.stdout.splitlines() if line.split()[-2] != "A"}
    header = (REPOSITORY / "runtime/native/include/vosrt.h").read_text()
    declared = set(re.findall(r"VOSRT_API [\w *]*?(vosrt_\w+)\(", header))
    assert symbols == declared


def test_nothing_above_the_door_asks_what_is_on_a_gpu() -> None:
    """Outside ``vosrt.cuda`` no module tells the classes behind ``open_device`` apart: it asks them."""
    package, found = REPOSITORY / "runtime" / "src" / "vosrt", []
    for path in package.rglob("*.py"):
        if path.is_relative_to(package / "cuda"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                names = {each.id for each in ast.walk(node.args[1]) if isinstance(each, ast.Name)}
                found += [f"{path.name}: {name}" for name in names if re.search("Cuda|OnGpu", name)]
    assert found == []
