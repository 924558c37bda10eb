"""The list of a result: what is ours, and a replacement that may be killed between any two of its steps."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vosrt._files import locked, plain_name, replacing, write_all
from vosrt._results import Results, check_results, open_results
from vosrt.errors import InputError, OutputError

OLD = {"summary.json": b"old", "masks/0.png": b"old 0", "masks/1.png": b"old 1", "only_old/a": b"old a"}
NEW = {"summary.json": b"new", "masks/0.png": b"new 0", "masks/2.png": b"new 2", "only_new/b": b"new b"}
USERS = {"notes.txt": b"mine", "masks/drawn.png": b"mine"}


class Killed(BaseException):
    """Stands for SIGKILL, which cannot be caught."""


def write(folder: Path, files: dict[str, bytes], *, overwrite: bool = False) -> None:
    folder.mkdir(exist_ok=True)
    check_results(folder, overwrite=overwrite)
    with open_results(folder, "test", {}, overwrite=overwrite) as results:
        for name, data in files.items():
            results.write(name, data)
        growing = results.append("lines")
        growing.write(files["summary.json"])
        growing.close()
        results.complete()


def contents(folder: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if name != ".vosrt.jsonl"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A result with files of the user among its own."""
    folder = tmp_path / "out"
    write(folder, OLD)
    for name, data in USERS.items():
        (folder / name).write_bytes(data)
    return folder


def killed_after(calls: int, function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ``os.replace``, ``os.unlink`` and ``os.rename`` die after so many calls of all of them."""
    left = [calls]

    def wrapped(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "rename"):
            patch.setattr(os, name, wrapped(name))
        function()


def test_a_replacement_that_is_killed_anywhere_is_old_or_new(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After every step the folder is the whole old result or the whole new one."""
    write(tmp_path / "new", NEW)
    old, new = contents(folder), contents(tmp_path / "new") | USERS
    seen = []
    for calls in range(100):
        try:
            killed_after(calls, lambda: write(folder, NEW, overwrite=True), monkeypatch)
        except Killed:
            check_results(folder, overwrite=True)
            found = {name: data for name, data in contents(folder).items() if not name.startswith(".vosrt-unfinished")}
            assert found in (old, new), calls
            seen.append(found == new)
            write(folder, OLD, overwrite=True)
            assert contents(folder) == old
            continue
        break
    assert contents(folder) == new
    assert seen == sorted(seen)
    assert {True, False} == set(seen)
    assert not [path for path in folder.iterdir() if path.name.startswith(".vosrt-")]


def test_a_file_that_appears_meanwhile_is_not_replaced(folder: Path) -> None:
    with open_results(folder, "test", {}, overwrite=True) as results:
        results.write("masks/7.png", b"new")
        (folder / "masks/7.png").write_bytes(b"mine")
        with pytest.raises(OutputError, match=r"7.png: is not a file that this run wrote"):
            results.complete()
    assert (folder / "masks/7.png").read_bytes() == b"mine"


def test_a_torn_last_line_is_left_out(folder: Path) -> None:
    path = folder / ".vosrt.jsonl"
    path.write_bytes(path.read_bytes() + b'{"file": "notes.txt", "si')
    write(folder, NEW, overwrite=True)
    assert contents(folder).items() >= (NEW | USERS).items()


@pytest.mark.parametrize(
    "line",
    [
        {"file": "../../notes.txt", "size": 4, "sha256": ""},
        {"file": "/etc/passwd", "size": 4, "sha256": ""},
        {"growing": "a/../../b"},
        {"folder": "..", "files": {}},
        {"file": "a"},
        [],
    ],
)
def test_a_list_that_was_tampered_with_is_refused(folder: Path, line: Any) -> None:
    before = contents(folder)
    with (folder / ".vosrt.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    with pytest.raises(OutputError):
        check_results(folder, overwrite=True)
    assert contents(folder) == before


def test_a_list_that_is_a_link_is_not_read(folder: Path, tmp_path: Path) -> None:
    (folder / ".vosrt.jsonl").rename(tmp_path / "list")
    (folder / ".vosrt.jsonl").symlink_to(tmp_path / "list")
    with pytest.raises(OutputError):
        check_results(folder, overwrite=True)


def test_a_growing_file_goes_on_at_the_checkpoint(tmp_path: Path) -> None:
    with Results(tmp_path, "test", {}) as results:
        growing = results.append("lines")
        growing.write(b"one\n")
        results.save_checkpoint({"frames": 1}, b"session")
        growing.write(b"two\n")
    with open_results(tmp_path, "test", {}, resume=True) as results:
        assert results.load_checkpoint() == ({"frames": 1}, b"session")
        growing = results.append("lines")
        growing.write(b"2\n")
        growing.close()
        results.complete()
    assert contents(tmp_path) == {"lines": b"one\n2\n"}


def test_a_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
        with pytest.raises(OutputError, match=f"process {os.getpid()}"), locked(tmp_path / "a" / "b"):
            pass
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "a"):
        (tmp_path / "a" / "kept").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]


def test_a_file_is_replaced_whole_and_a_link_is_not_followed(tmp_path: Path) -> None:
    precious, path = tmp_path / "precious", tmp_path / "link"
    precious.write_bytes(b"precious")
    path.symlink_to(precious)
    with pytest.raises(TypeError), replacing(path) as file:
        write_all(file, 7)  # type: ignore[arg-type]
    assert path.is_symlink()
    with replacing(path) as file:
        write_all(file, b"whole")
    assert (path.read_bytes(), path.is_symlink()) == (b"whole", False)
    assert precious.read_bytes() == b"precious"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "precious"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"meta.json: names .*expected a plain name"):
        plain_name(name, "meta.json")


@pytest.mark.parametrize("name", ["a", "...", "-", "Vögel 1", "a\\b", "caf\udce9"])
def test_plain_names_are_taken(name: str) -> None:
    assert plain_name(name, "meta.json") == name
