"""``vos-run batch`` with clips on stores: those of fsspec itself, and one that fails now and then."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.end_to_end.test_vos_batch import Batch
from vosrt.cli import batch as batching
from vosrt.cli.batch import Job
from vosrt.cli.clip_worker import ClipWorker, Outcome
from vosrt.cli.clips import list_clips
from vosrt.cli.run import main
from vosrt.cli.stores import is_on_store

fsspec = pytest.importorskip("fsspec", reason="the extra fsspec is not installed")
memory = pytest.importorskip("fsspec.implementations.memory")


class FlakyStore(memory.MemoryFileSystem):  # type: ignore[misc, name-defined]
    """A store in memory that fails the first time that a file is fetched, and some for ever."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    asked: ClassVar[list[str]] = []
    broken: ClassVar[set[str]] = set()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("flaky://", "memory://")))

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        """Fetch a file, or fail."""
        first = rpath not in self.asked
        self.asked.append(rpath)
        if first or Path(rpath).name in self.broken:
            raise ConnectionResetError("the store is busy\nand says more")
        super().get_file(rpath, lpath, **kwargs)


@pytest.fixture
def batch(tmp_path: Path, fake_bundle: Path) -> Batch:
    return Batch(tmp_path, fake_bundle)


@pytest.fixture
def flaky(batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[FlakyStore]:
    """The clips on a store of this process, which runs them itself."""

    def run(jobs: list[Job], stop: threading.Event, workers: int, threads: int) -> Iterator[tuple[str, Outcome]]:
        worker = ClipWorker()
        for name, request in jobs:
            yield name, worker.run(request)

    monkeypatch.setattr(batching, "run_locally", run)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    for name in ("store", "asked", "broken"):
        getattr(FlakyStore, name).clear()
    FlakyStore.pseudo_dirs[:] = [""]
    fsspec.register_implementation("flaky", FlakyStore, clobber=True)
    FlakyStore().put(str(batch.clips), "/bucket/clips", recursive=True)
    return FlakyStore


def run(batch: Batch, *given: str, out: str = "out") -> int:
    _, _, *options = batch.arguments(batch.root / out, "--jobs", "1", "--threads", "1", "--quiet")
    return main(["batch", *given, *options])


@pytest.mark.parametrize("given", ["file://{0}", "file://{0}/*.mp4", "{1}/list.txt", "{1}/jobs.csv"])
def test_clips_on_a_store_have_the_results_of_local_ones(batch: Batch, given: str) -> None:
    """Workers fetch them; what they are called, their marks and their results are the same."""
    urls = [f"file://{batch.clips}/clip{index}" for index in range(3)]
    (batch.root / "list.txt").write_text("".join(f"{url}.mp4\n" for url in urls))
    rows = [f"{url}.mp4,clip{index},0:{url}.png\n" for index, url in enumerate(urls)]
    (batch.root / "jobs.csv").write_text("source,name,mask\n" + "".join(rows))
    given = given.format(batch.clips, batch.root)
    assert [clip.name for clip in list_clips([given], None)] == ["clip0", "clip1", "clip2"]
    assert batch.run("--quiet", out="local") == 0
    assert run(batch, given) == 0
    assert batch.hashes() == batch.hashes("local")


def test_a_store_that_fails_is_asked_again(
    batch: Batch, flaky: type[FlakyStore], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every video fails once, and one always: when the store is well again, the batch goes on."""
    assert batch.run("--quiet", out="local") == 0
    flaky.asked += [f"/bucket/clips/clip{index}.png" for index in range(3)]
    flaky.broken = {"clip2.mp4"}
    assert run(batch, "flaky://bucket/clips") == 1
    assert "clip2: flaky:///bucket/clips/clip2.mp4: the store is busy; expected a file" in capsys.readouterr().err
    states = {name: (row["state"], row["attempts"]) for name, row in batch.rows().items()}
    assert states == {"clip0": ("done", "2"), "clip1": ("done", "2"), "clip2": ("failed", "2")}
    flaky.broken = set()
    _, _, *options = batch.arguments(batch.root / "out", "--jobs", "1", "--threads", "1", "--quiet", "--resume")
    assert main(["batch", "flaky://bucket/clips", *options]) == 0
    assert batch.hashes() == batch.hashes("local")
    assert list((batch.root / "temporary").iterdir()) == []


def test_marks_are_found_beside_clips(flaky: type[FlakyStore]) -> None:
    flaky().rm("/bucket/clips/clip1.png")
    flaky().pipe_file("/bucket/clips/clip1.json", b"{}")
    flaky().rm("/bucket/clips/clip2.png")
    assert [clip.options for clip in list_clips(["flaky://bucket/clips"], None)] == [
        {"mask": ["flaky:///bucket/clips/clip0.png"]},
        {"polygon": ["flaky:///bucket/clips/clip1.json"]},
        {},
    ]


def test_errors_are_one_line(batch: Batch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(batch, "memory://nowhere/*.mp4") == 2
    assert "memory://nowhere/*.mp4: no such file on the store" in capsys.readouterr().err
    assert run(batch, "stranger://bucket/a.mp4") == 2
    assert "stranger://bucket/a.mp4: Protocol not known: stranger" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(batch, "memory://bucket/a.mp4") == 2
    assert "fsspec is not installed" in (said := capsys.readouterr().err)
    assert "pip install 'vosrt[fsspec]'" in said
    assert not (batch.root / "out").exists()


def test_what_ffmpeg_reads_is_left_to_it() -> None:
    assert not any(map(is_on_store, ("rtsp://camera/1", "HTTPS://host/a.mp4", "a.mp4", "/dev/video0")))
    assert all(map(is_on_store, ("s3://bucket/a.mp4", "gs://bucket/a.mp4", "file:///a.mp4", "zip://a.mp4::s3://b.zip")))
