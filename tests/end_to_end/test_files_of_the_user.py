"""Kills, signals, full disks, twin runs and planted files: nothing of the user's is lost, nothing is half written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.fakes.media import write_video
from tests.fakes.programs import error_line, program, start
from vosrt.cli.run import main

COUNT, FPS = 30, 5  # a group of pictures is 5 frames


class Project:
    """A clip, its first mask, and a way to run the command on them with the fake engine."""

    def __init__(self, root: Path, bundle: Path) -> None:
        self.root, self.bundle, self.out = root, bundle, root / "out"
        pictures = np.random.default_rng(7).integers(90, 130, (1, 64, 96, 3), dtype=np.uint8).repeat(COUNT, axis=0)
        for t, image in enumerate(pictures):
            image[8 + t : 28 + t, 8 + t : 32 + t] = (20, 20, 240)
        write_video(root / "clip.mp4", pictures, rate=FPS, pix_fmt="yuv444p", encoder={"crf": "10"})
        mask = np.zeros((64, 96), np.uint8)
        mask[8:28, 8:32] = 255
        Image.fromarray(mask).save(root / "mask.png")

    def arguments(self, *given: str, out: Path | None = None, size: int = 128) -> list[str]:
        what = [str(self.root / "clip.mp4"), "--mask", str(self.root / "mask.png"), "-o", str(out or self.out)]
        how = ["--bundle", str(self.bundle), "--engine", "fake", "--size", str(size), "--threads", "1", "--quiet"]
        return [*what, *how, *given]

    def run(self, *given: str, out: Path | None = None) -> int:
        return main(self.arguments(*given, out=out))

    def started(self, *given: str, masks: int, size: int = 128, folder: str = "masks") -> subprocess.Popen[str]:
        """A process that has written so many masks, and is slow from then on."""
        return start(self.root, self.arguments(*given, size=size), self.out / folder / f"{masks - 1:05d}.png")


@pytest.fixture
def project(tmp_path: Path, fake_bundle: Path) -> Project:
    return Project(tmp_path, fake_bundle)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the list of them and the summary, which holds times."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if name not in (".vosrt.jsonl", "summary.json")}


def count_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=60)


@pytest.mark.parametrize("masks", [3, 12, 24])
def test_a_killed_run_is_playable_and_goes_on_to_the_same_result(project: Project, masks: int) -> None:
    """After SIGKILL the video lacks a second at most; lines are whole; --resume gives every byte as if it never was."""
    assert project.run(out=project.root / "whole") == 0
    kill(project.started("--save-every", "0.0001", masks=masks, size=128))
    written = len(list((project.out / "masks").glob("*.png")))
    lines = (project.out / ".masks.jsonl.part").read_bytes().split(b"\n")
    assert [json.loads(line)["frame"] for line in lines[:written]] == list(range(written))
    if written > 2 * FPS:
        assert written - FPS <= count_frames(project.out / ".overlay.mp4.part") <= written + 1
    assert (project.out / ".vosrt-checkpoint").exists() == (written > FPS)
    assert project.run("--resume") == 0
    assert contents(project.out) == contents(project.root / "whole")
    assert json.loads((project.out / "summary.json").read_text())["frames"] == COUNT


@pytest.mark.parametrize(("codec", "name"), [("vp9", "overlay.webm"), ("av1", "overlay.mp4")])
def test_other_codecs_are_resumed_alike(codec: str, name: str, project: Project) -> None:
    """The file has the name that players know, its index comes first, and the encoder prints nothing."""
    assert project.run("--codec", codec, out=project.root / "whole") == 0
    process = project.started("--codec", codec, "--save-every", "0.0001", masks=12, size=128)
    process.kill()
    assert process.communicate(timeout=60)[1] == ""
    assert project.run("--resume") == 2  # with H.264
    assert project.run("--codec", codec, "--resume") == 0
    assert contents(project.out) == contents(project.root / "whole")
    assert name in json.loads((project.out / "summary.json").read_text())["files"]
    assert [path.name for path in project.out.glob("overlay.*")] == [name]
    data = (project.out / name).read_bytes()
    index, pictures = (b"moov", b"mdat") if name.endswith("mp4") else (b"\x1c\x53\xbb\x6b", b"\x1f\x43\xb6\x75")
    assert 0 < data.rindex(index, 0, data.index(pictures)) < data.index(pictures)
    with av.open(str(project.out / name)) as container:
        assert container.streams.video[0].codec.canonical_name == codec
        frames = [float(frame.time or 0) for frame in container.decode(video=0)]
    assert (len(frames), frames) == (COUNT, sorted(set(frames)))
    assert project.run("--overwrite") == 0
    assert [path.name for path in project.out.glob("overlay.*")] == ["overlay.mp4"]


def test_an_interrupted_run_goes_on_and_a_complete_one_is_left_alone(project: Project) -> None:
    assert project.run(out=project.root / "whole") == 0
    process = project.started("--save-every", "0.0001", masks=2, size=128)
    process.send_signal(signal.SIGINT)
    assert "--resume goes on" in process.communicate(timeout=60)[1]
    assert project.run("--resume") == 0
    assert contents(project.out) == contents(project.root / "whole")
    before = (project.out / "summary.json").stat().st_mtime_ns
    assert project.run("--resume") == 0
    assert (project.out / "summary.json").stat().st_mtime_ns == before


def test_without_a_session_a_resumed_run_begins_again(project: Project) -> None:
    assert project.run("--resume", out=project.root / "whole") == 0  # nothing is there yet
    kill(project.started("--save-every", "0", masks=8))
    assert not (project.out / ".vosrt-checkpoint").exists()
    assert project.run("--resume") == 0
    assert contents(project.out) == contents(project.root / "whole")


def test_resume_refuses_another_request_and_a_damaged_session(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    kill(project.started("--save-every", "0.0001", masks=12))
    assert project.run() == 2
    assert "holds an unfinished result; go on with --resume" in capsys.readouterr().err
    assert project.run("--resume", "--context", "3") == 2
    assert "made with propagation = context 20, this run has context 3" in capsys.readouterr().err
    assert project.run("--resume", "--overwrite") == 2
    session = project.out / ".vosrt-checkpoint"
    session.write_bytes(session.read_bytes()[:-1] + b"x")
    capsys.readouterr()
    assert project.run("--resume") == 2
    assert "is damaged" in error_line(capsys)
    assert project.run("--overwrite") == 0
    assert count_frames(project.out / "overlay.mp4") == COUNT


def test_a_run_that_cannot_be_resumed_does_not_say_so(project: Project) -> None:
    process = project.started("--budget-ms", "5000", masks=2, size=128)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1].endswith(f"frames are in {project.out}\n")
    assert process.returncode == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("gaps_s", [(), (0.0,), (0.02,)])
def test_a_signal_or_two_lose_nothing(project: Project, number: signal.Signals, gaps_s: tuple[float, ...]) -> None:
    process = project.started(masks=8, size=256)
    process.send_signal(number)
    for gap_s in gaps_s:
        time.sleep(gap_s)
        process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    masks = len(list((project.out / "masks").iterdir()))
    assert 8 <= masks < COUNT
    assert process.returncode == 130
    assert error == f"interrupted: the results of {masks} frames are in {project.out}; --resume goes on\n"
    assert count_frames(project.out / "overlay.mp4") == masks
    assert len((project.out / "masks.jsonl").read_text().splitlines()) == masks
    assert json.loads((project.out / "summary.json").read_text())["interrupted"] is True
    assert not list(project.out.rglob("*.part"))


def test_a_second_run_into_a_folder_is_refused_with_the_process_that_holds_it(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    process = project.started(masks=2, size=400)
    try:
        for given in ((), ("--overwrite",), ("--resume",)):
            assert project.run(*given) == 2
            assert f"another run (process {process.pid}) is writing there" in capsys.readouterr().err
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert project.run("--overwrite") == 0
    assert not (project.out / ".vosrt-lock").exists()


def test_overwrite_keeps_what_it_did_not_write(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Hand-drawn masks beside ours stay; one of ours that was retouched is refused before anything is touched."""
    assert project.run("--end", "8") == 0
    drawn = project.out / "masks" / "00003_by_hand.png"
    drawn.write_bytes(b"drawn")
    (project.out / "notes").mkdir()
    (project.out / "notes" / "a.txt").write_text("mine")
    assert project.run("--end", "4", "--overwrite") == 0
    assert drawn.read_bytes() == b"drawn"
    assert (project.out / "notes" / "a.txt").read_text() == "mine"
    assert sorted(path.name for path in (project.out / "masks").iterdir()) == [
        *(f"{t:05d}.png" for t in range(3)),
        "00003.png",
        "00003_by_hand.png",
    ]
    retouched = project.out / "masks" / "00002.png"
    retouched.write_bytes(retouched.read_bytes() + b"retouched")
    before = contents(project.out)
    assert project.run("--overwrite") == 2
    assert "masks/00002.png: was changed since vos-run wrote it" in capsys.readouterr().err
    assert contents(project.out) == before


def test_a_new_mask_does_not_replace_one_drawn_under_its_name(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert project.run("--end", "4") == 0
    old = contents(project.out)
    (project.out / "masks" / "00006.png").write_bytes(b"drawn")
    assert project.run("--overwrite") == 2
    assert "masks/00006.png: is not a file that this run wrote" in capsys.readouterr().err
    assert {name: contents(project.out)[name] for name in old} == old
    assert (project.out / "masks" / "00006.png").read_bytes() == b"drawn"


@pytest.mark.parametrize("name", ["summary.json", "overlay.mp4", "masks.jsonl", "masks/00000.png"])
def test_a_folder_without_a_list_is_not_ours(project: Project, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders of older versions and of other programs are left alone."""
    (project.out / "masks").mkdir(parents=True)
    (project.out / name).write_text("{}")
    for given in ((), ("--overwrite",), ("--resume",)):
        assert project.run(*given) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert contents(project.out) == {} if name == "summary.json" else {name: b"{}"}
    assert (project.out / name).read_text() == "{}"


@pytest.mark.parametrize(
    "stem", [b"caf\xe9", b"a\tb", "\u00f6".encode() * 125, b"n" * 250], ids=["latin-1", "tab", "long", "250"]
)
def test_masks_are_called_as_their_frames_whatever_these_are_called(project: Project, stem: bytes) -> None:
    frames = project.root / "frames"
    frames.mkdir()
    image = np.full((64, 96, 3), 100, np.uint8)
    image[8:28, 8:32] = (240, 20, 20)
    Image.fromarray(image).save(project.root / "frame.png")
    with open(os.path.join(os.fsencode(frames), stem + b".png"), "wb") as file:
        file.write((project.root / "frame.png").read_bytes())
    given = project.arguments()
    for end in ((), ("--overwrite",)):
        assert main([str(frames), *given[1:], *end]) == 0
    assert os.listdir(os.fsencode(project.out / "masks")) == [stem + b".png"]


def test_an_old_result_stands_until_the_new_one_is_complete(project: Project) -> None:
    assert project.run() == 0
    old = contents(project.out)
    kill(project.started("--overwrite", masks=5, size=256, folder=".vosrt-unfinished/masks"))
    assert {name: contents(project.out)[name] for name in old} == old
    assert main(project.arguments("--resume", size=256)) == 0
    assert sorted(contents(project.out)) == sorted(old)
    assert contents(project.out) != old
    assert not (project.out / ".vosrt-unfinished").exists()


Plant = Callable[[Path, Path], None]


def plant_folder(out: Path, victim: Path) -> None:
    for path in (out / "masks").iterdir():
        path.rename(victim / path.name)
    (out / "masks").rmdir()
    (out / "masks").symlink_to(victim)


def plant_part(out: Path, victim: Path) -> None:
    for name in (".overlay.mp4.part", ".masks.jsonl.part", ".summary.json.part"):
        (out / name).symlink_to(victim / "precious.txt")


def plant_file(out: Path, victim: Path) -> None:
    (out / "summary.json").rename(victim / "summary.json")
    (out / "summary.json").symlink_to(victim / "summary.json")


def plant_unfinished(out: Path, victim: Path) -> None:
    for name in ("masks", "summary.json", ".vosrt.jsonl"):
        source = out / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, victim / name)
    (victim / "empty").mkdir()
    (out / ".vosrt-unfinished").symlink_to(victim)


def plant_finished(out: Path, victim: Path) -> None:
    plant_unfinished(out, victim)
    (out / ".vosrt-unfinished").rename(out / ".vosrt-finished")


@pytest.mark.parametrize("plant", [plant_folder, plant_part, plant_file, plant_unfinished, plant_finished])
def test_links_are_not_followed(project: Project, plant: Plant) -> None:
    """Whether the run is refused or not, nothing behind a link is written or removed."""
    victim = project.root / "victim"
    victim.mkdir()
    (victim / "precious.txt").write_text("precious")
    assert project.run("--end", "6") == 0
    plant(project.out, victim)
    before = sorted(victim.rglob("*")), contents(victim)
    project.run("--overwrite", "--end", "3")
    assert (sorted(victim.rglob("*")), contents(victim)) == before
    assert (victim / "precious.txt").read_text() == "precious"


def test_a_full_disk_is_one_line_and_what_is_there_is_whole(project: Project) -> None:
    """No file may grow beyond 9 000 bytes, so that the lines, of five objects a frame, run out of space first."""
    squares = [[[x, 2], [x + 14, 2], [x + 14, 18], [x, 18]] for x in (2, 26, 50, 74)]
    objects = [{"id": number, "polygons": [square]} for number, square in enumerate(squares, start=5)]
    (project.root / "more.json").write_text(json.dumps({"objects": objects}))
    given = ("--no-video", "--quiet", "--polygon", str(project.root / "more.json"))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))

    arguments = program(*project.arguments(*given))
    process = subprocess.run(arguments, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert process.returncode == 1
    assert process.stderr.count("\n") == 1
    assert f"error: {project.out}/masks.jsonl: cannot be written (File too large)" in process.stderr
    masks = sorted(path.name for path in (project.out / "masks").iterdir())
    assert masks
    for name in masks:
        with Image.open(project.out / "masks" / name) as image:
            image.load()
    lines = (project.out / "masks.jsonl").read_text()
    assert lines.endswith("\n")
    assert [json.loads(line)["name"] + ".png" for line in lines.splitlines()] == masks
    assert project.run(*given, "--resume") == 0
    assert len((project.out / "masks.jsonl").read_text().splitlines()) == COUNT
