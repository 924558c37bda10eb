"""``vos-run batch`` with the fake engine: results, report, failures, and what a killed process leaves."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import threading
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fakes.media import write_video
from tests.fakes.programs import start, wait_for
from vosrt.cli import batch as batching
from vosrt.cli.batch import split_cores
from vosrt.cli.clips import list_clips
from vosrt.cli.run import main
from vosrt.errors import VosrtError

WIDTH, HEIGHT = 96, 64


def write_clip(path: Path, count: int) -> None:
    """A square in motion; its first mask lies beside the clip."""
    noise = np.random.default_rng(count).integers(90, 130, (1, HEIGHT, WIDTH, 3), dtype=np.uint8)
    pictures = noise.repeat(count, axis=0)
    for t, image in enumerate(pictures):
        image[8 : 8 + 24, 8 + t % 40 : 32 + t % 40] = (20, 20, 240)
    write_video(path, pictures, pix_fmt="yuv444p", encoder={"crf": "10"})
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[8:32, 8:32] = 255
    Image.fromarray(mask).save(path.with_suffix(".png"))


class Batch:
    """A folder of three clips, and a way to run the command on it."""

    def __init__(self, root: Path, bundle: Path) -> None:
        self.root, self.clips, self.bundle = root, root / "clips", bundle
        self.clips.mkdir()
        for index in range(3):
            write_clip(self.clips / f"clip{index}.mp4", 8 + 4 * index)

    def arguments(self, out: Path, *more: str) -> list[str]:
        own = ["--bundle", str(self.bundle), "--engine", "fake", "--size", "128", "--save-every", "0.01"]
        return ["batch", str(self.clips), "-o", str(out), *own, *more]

    def run(self, *more: str, out: str = "out") -> int:
        return main(self.arguments(self.root / out, "--jobs", "1", "--threads", "1", *more))

    def rows(self, out: str = "out") -> dict[str, dict[str, str]]:
        with (self.root / out / "report.csv").open(newline="") as file:
            return {row["name"]: row for row in csv.DictReader(file)}

    def hashes(self, out: str = "out") -> dict[str, str]:
        """Of the masks, lines and tables of all clips."""
        clips = self.root / out / "clips"
        kept = [
            path for path in clips.rglob("*") if path.suffix in (".png", ".csv", ".jpg") or path.name == "masks.jsonl"
        ]
        return {str(path.relative_to(clips)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(kept)}


@pytest.fixture
def batch(tmp_path: Path, fake_bundle: Path) -> Batch:
    return Batch(tmp_path, fake_bundle)


def test_a_folder_has_the_results_of_single_runs_and_a_report(batch: Batch) -> None:
    assert batch.run("--quiet") == 0
    rows = batch.rows()
    assert {name: (row["state"], row["frames"], row["attempts"]) for name, row in rows.items()} == {
        "clip0": ("done", "8", "1"),
        "clip1": ("done", "12", "1"),
        "clip2": ("done", "16", "1"),
    }
    single = batch.root / "single" / "clips" / "clip1"
    options = ["--bundle", str(batch.bundle), "--engine", "fake", "--size", "128", "--threads", "1", "--quiet"]
    marked = ["--mask", str(batch.clips / "clip1.png")]
    assert main([str(batch.clips / "clip1.mp4"), *marked, "-o", str(single), *options]) == 0
    alone = batch.hashes("single")
    assert len(alone) > 12
    assert alone.items() <= batch.hashes().items()
    page = (batch.root / "out" / "report.html").read_text()
    for name in rows:
        picture = batch.root / "out" / "pictures" / f"{name}.jpg"
        with Image.open(picture) as image:
            assert image.size == (3 * 180, 120)
        assert f'src="pictures/{name}.jpg"' in page


def test_a_failed_clip_is_tried_twice_and_the_others_are_done(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    (batch.clips / "clip0.mp4").write_bytes(b"no video")
    assert batch.run("--json") == 1
    said = capsys.readouterr()
    printed = json.loads(said.out)
    assert re.fullmatch(r"error: clip0: .*cannot be opened as a video.*\n", said.err)
    states = {clip["name"]: (clip["state"], clip["attempts"]) for clip in printed["clips"]}
    assert states == {"clip0": ("failed", 2), "clip1": ("done", 1), "clip2": ("done", 1)}
    assert "cannot be opened as a video" in batch.rows()["clip0"]["error"]
    # Once the clip is mended, the batch goes on and does not repeat what is done.
    before = (batch.root / "out" / "clips" / "clip1" / "summary.json").stat().st_mtime_ns
    write_clip(batch.clips / "clip0.mp4", 8)
    assert batch.run("--quiet", "--resume") == 0
    assert capsys.readouterr().err == ""
    assert batch.rows()["clip0"]["state"] == "done"
    assert (batch.root / "out" / "clips" / "clip1" / "summary.json").stat().st_mtime_ns == before


def _started(batch: Batch, *more: str, masks: int = 1) -> subprocess.Popen[str]:
    """A batch that has written so many masks; its frames are slow from the first one on."""
    arguments = batch.arguments(batch.root / "out", "--jobs", "2", "--threads", "1", *more)
    return start(batch.root, arguments, batch.root / "out/clips/*/masks/*.png", files=masks)


def _children(process: int) -> list[int]:
    """Workers of a batch: its children that were spawned to run clips."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == process and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.parametrize("masks", [1, 9])
def test_a_killed_batch_goes_on_to_the_same_results(batch: Batch, masks: int) -> None:
    assert batch.run("--quiet", out="whole") == 0
    process = _started(batch, "--quiet", masks=masks)
    workers = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not any(Path(f"/proc/{worker}/status").exists() for worker in workers))
    assert batch.run("--quiet", "--resume") == 0
    assert batch.hashes() == batch.hashes("whole")


def test_a_killed_worker_fails_its_clip_once(batch: Batch) -> None:
    assert batch.run("--quiet", out="whole") == 0
    process = _started(batch)
    os.kill(wait_for(lambda: _children(process.pid), process)[0], signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "its process was killed" in said
    assert sorted(row["attempts"] for row in batch.rows().values()) == ["1", "1", "2"]
    assert batch.hashes() == batch.hashes("whole")


def test_ctrl_c_finishes_files_and_says_how_to_go_on(batch: Batch) -> None:
    assert batch.run("--quiet", out="whole") == 0
    process = _started(batch)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "--resume goes on" in said
    assert batch.run("--quiet", "--resume") == 0
    assert batch.hashes() == batch.hashes("whole")


def test_a_manifest_gives_each_clip_its_marks_name_and_range(batch: Batch) -> None:
    manifest = batch.root / "jobs.csv"
    manifest.write_text(
        "source,name,mask,polygon,points,start,end,direction\n"
        'clips/clip0.mp4,"first.one",clips/clip0.png;5:late.png,,,2,6,\n'
        "clips/clip1.mp4,,,a.json,1=3,4 5,6,,,both\n".replace("1=3,4 5,6", '"1=3,4 5,6"')
    )
    clips = list_clips([str(manifest)], None)
    root = str(batch.root)
    assert [clip.name for clip in clips] == ["first.one", "clip1"]
    assert clips[0].source == f"{root}/clips/clip0.mp4"
    assert clips[0].options == {"mask": [f"{root}/clips/clip0.png", f"5:{root}/late.png"], "start": 2, "end": 6}
    assert clips[1].options == {"polygon": [f"{root}/a.json"], "points": ["1=3,4", "5,6"], "direction": "both"}


@pytest.mark.parametrize(
    "text",
    [
        "source,mask,points\na.mp4,m.png;5:n.png,1,2\n".replace("1,2", '"1,2"'),
        '\ufeffSource;Mask;Points\r\na.mp4;"m.png;5:n.png";1,2\r\n',
        "source\tmask\tpoints\na.mp4\tm.png;5:n.png\t1,2\n",
    ],
)
def test_a_manifest_may_come_from_a_spreadsheet(tmp_path: Path, text: str) -> None:
    (tmp_path / "jobs.csv").write_text(text, "utf-8")
    (clip,) = list_clips([str(tmp_path / "jobs.csv")], None)
    assert clip.source == f"{tmp_path}/a.mp4"
    assert clip.options == {"mask": [f"{tmp_path}/m.png", f"5:{tmp_path}/n.png"], "points": ["1,2"]}


@pytest.mark.parametrize(("stopped", "code"), [(True, 130), (False, 1)])
def test_a_worker_that_ends_with_its_batch_has_not_failed(
    monkeypatch: pytest.MonkeyPatch, stopped: bool, code: int
) -> None:
    """Ctrl-C reaches all processes of a terminal, also one that still loads Python and dies of it."""

    class Dying:
        def submit(self, *_: Any) -> Any:
            if stopped:
                threading.Timer(0.05, stop.set).start()
            raise BrokenProcessPool

    stop = threading.Event()
    monkeypatch.setattr(batching, "ProcessPoolExecutor", lambda *_: Dying())
    request: Any = None
    (found,) = batching.run_locally([("a", request)], stop, 1, 1)
    assert (found[0], found[1].code) == ("a", code)


def test_lists_patterns_and_folders_name_the_same_clips(batch: Batch) -> None:
    (batch.root / "list.txt").write_text("# three\n\nclips/clip0.mp4\nclips/clip1.mp4\nclips/clip2.mp4\n")
    marks = {"mask": [str(batch.clips / "clip1.png")]}
    for given in (str(batch.clips), str(batch.clips / "*.mp4"), str(batch.root / "list.txt")):
        clips = list_clips([given], None)
        assert [clip.name for clip in clips] == ["clip0", "clip1", "clip2"]
        assert clips[1].options == marks
    davis = batch.root / "marks"
    (davis / "clip2").mkdir(parents=True)
    (davis / "clip0.json").write_text("{}")
    options = [clip.options for clip in list_clips([str(batch.clips)], davis)]
    assert options == [{"polygon": [str(davis / "clip0.json")]}, {}, {"mask": [str(davis / "clip2")]}]


def test_clips_of_the_same_stem_are_named_by_their_path(batch: Batch) -> None:
    (batch.clips / "other").mkdir()
    write_clip(batch.clips / "other" / "clip0.mp4", 3)
    assert [clip.name for clip in list_clips([str(batch.clips)], None)] == [
        "clip0.mp4",
        "clip1",
        "clip2",
        "other-clip0.mp4",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name\na\n", "has no column 'source'"),
        ("source,colour\na,b\n", "has a column 'colour'"),
        ("source,start\na.mp4,soon\n", "start is 'soon'; expected the number of a frame"),
        ("source\na.mp4,b\n", "line 2 has more cells than columns"),
        ("source,name\na.mp4,../b\n", "expected a plain name"),
        ("source,name\na.mp4,b\nc.mp4,b\n", "two clips are called b; change the column name in one row"),
        ("source\n", "the batch is empty"),
    ],
)
def test_a_wrong_manifest_is_one_line(batch: Batch, text: str, complaint: str) -> None:
    manifest = batch.root / "jobs.csv"
    manifest.write_text(text)
    with pytest.raises(VosrtError, match=complaint) as raised:
        list_clips([str(manifest)], None)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--size", "large"], "--size is 'large'"),
        (["--jobs", "-1"], "--jobs is -1"),
        (["--marks", "nowhere"], "--marks nowhere: is no folder"),
        (["--mask", "first.png"], "No such option"),
    ],
)
def test_wrong_options_write_nothing(
    batch: Batch, more: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batch.run(*more) == 2
    assert complaint.lower() in capsys.readouterr().err.lower()
    assert not (batch.root / "out").exists()


def test_results_are_not_mixed(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch.run("--quiet") == 0
    assert batch.run("--quiet") == 2
    assert "is not empty" in capsys.readouterr().err
    assert batch.run("--quiet", "--resume", "--no-rle") == 2
    assert "rle" in capsys.readouterr().err


def test_cores_are_shared_out() -> None:
    assert split_cores(16, 0, 0) == (8, 2)
    assert split_cores(2, 2, 0) == (2, 1)
    assert split_cores(16, 0, 4) == (4, 4)
    assert split_cores(1, 0, 0) == (1, 1)
    assert split_cores(4, 8, 0) == (8, 1)
