"""Docstrings and comments are in plain English."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = re.compile(
    r"\b(anew|by turns|whoever|whatever|for ever|(?<!`)told(?!`)|wanted(?!:)|goes without saying|nobody|somebody|here|"
    r"there already|(?:that|as it) is there)\b",
    re.IGNORECASE,
)
PLAIN = [
    "benchmarks/*.py",
    *(f"benchmarks/{room}/*.py" for room in ("accuracy", "attack", "peers", "report", "scenes", "stream", "training")),
    *(f"runtime/src/vosrt/{room}/*.py" for room in ("bench", "cli", "core", "cuda", "engines", "evaluation", "video")),
    *(f"runtime/src/vosrt/{name}.py" for name in ("console", "text", "_files", "_listing", "_reading", "_results")),
    *(f"runtime/src/vosrt/{name}.py" for name in ("stream", "stream_batch", "host_stream", "encoder", "model")),
    *(f"runtime/src/vosrt/{name}.py" for name in ("pipeline", "refinement", "types")),
    "export/src/vosrt_export/*.py",
    "train/src/vosrt_train/**/*.py",
]


def prose_of(source: str) -> Iterator[str]:
    """Yield the comments and docstrings of a module."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def dialect_in(source: str) -> list[str]:
    """Return the lines of prose that hold words of the dialect."""
    return [line.strip() for text in prose_of(source) for line in text.splitlines() if WORDS.search(line)]


@pytest.mark.parametrize("pattern", PLAIN)
def test_prose_uses_the_words_of_the_field(pattern: str) -> None:
    files = sorted(REPOSITORY.glob(pattern))
    if not files and pattern.startswith("benchmarks"):
        pytest.skip("no benchmarks beside the tests")
    assert files, pattern
    assert {str(file): found for file in files if (found := dialect_in(file.read_text()))} == {}


ROLE = re.compile(r":(?:py:)?[a-z]+:`")


@pytest.mark.parametrize("package", ["runtime/src", "train/src", "export/src"])
def test_docstrings_have_no_roles_which_the_site_prints_as_they_are(package: str) -> None:
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert files
    found = {str(file): [text for text in prose_of(file.read_text()) if ROLE.search(text)] for file in files}
    assert {file: texts for file, texts in found.items() if texts} == {}
    assert ROLE.search("see :meth:`load`")
    assert not ROLE.search("see `load`: `size` is its own")


def test_comments_and_docstrings_are_read_and_code_is_not() -> None:
    assert dialect_in("wanted = 1  # what is wanted\n") == ["# what is wanted"]
    assert dialect_in('def f():\n    """Load it anew."""\n') == ["Load it anew."]
    assert dialect_in('wanted = here = "told"  # the mask of the user\n') == []
