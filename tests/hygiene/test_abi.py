"""The C ABI is what was committed: layouts, constants and functions change only on purpose."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "runtime" / "native"


def test_the_binding_is_the_headers() -> None:
    """What ctypes passes is what vosrt.h and vosrt_cuda.h declare; its structs have the compiler's layout."""
    text: str = runpy.run_path(str(NATIVE / "abi.py"))["python_binding"]()
    assert text == (NATIVE.parent / "src" / "vosrt" / "core" / "abi.py").read_text(), (
        "run abi.py --python, see its docstring"
    )


@pytest.fixture(scope="module")
def abi() -> str:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    text: str = runpy.run_path(str(NATIVE / "abi.py"))["describe"]()
    return text


def test_the_abi_is_the_committed_one(abi: str) -> None:
    """``python runtime/native/abi.py > runtime/native/abi.txt`` renews it after a change that only adds."""
    assert abi.splitlines() == (NATIVE / "abi.txt").read_text().splitlines()


def test_every_struct_begins_with_its_size(abi: str) -> None:
    """Without ``struct_size`` in front, a struct could never grow."""
    first_fields = re.findall(r"struct (\w+): .*\n    (\w+) at 0, 4 bytes", abi)
    assert len(first_fields) == abi.count("struct vosrt_") - len(re.findall(r"function .*struct vosrt_", abi))
    assert {field for _, field in first_fields} == {"struct_size"}


def test_no_struct_hides_padding(abi: str) -> None:
    """Compilers agree on layouts without holes; trailing padding would be a field that old callers leave unset."""
    for name, size, body in re.findall(r"struct (\w+): (\d+) bytes\n((?:    .*\n)+)", abi):
        fields = [(int(at), int(length)) for at, length in re.findall(r"at (\d+), (\d+) bytes", body)]
        ends = [at + length for at, length in fields]
        assert [at for at, _ in fields] == [0, *ends[:-1]], name
        assert ends[-1] == int(size), name
