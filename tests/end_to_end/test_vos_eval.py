"""``vos-eval`` from the command line to the files, with the fake engine, on tiny data sets of every layout."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.fakes.programs import error_line, start
from vosrt._files import locked
from vosrt.cli.eval import main
from vosrt.types import U8Array

KINDS = ("davis16", "davis17", "ytvos", "vip")
Clip = tuple[U8Array, U8Array]


def write_frames(folder: Path, frames: U8Array, stems: list[str]) -> None:
    folder.mkdir(parents=True)
    for stem, frame in zip(stems, frames, strict=True):
        cv2.imwrite(str(folder / f"{stem}.jpg"), frame, [cv2.IMWRITE_JPEG_QUALITY, 98])


def write_masks(folder: Path, masks: dict[str, U8Array]) -> None:
    folder.mkdir(parents=True)
    for stem, mask in masks.items():
        Image.fromarray(mask).save(folder / f"{stem}.png")


def write_davis(root: Path, kind: str, clip: Clip) -> None:
    """Two sequences; in DAVIS-2017 the second object of the second one is marked from frame 2 on only."""
    frames, masks = clip
    stems = [f"{t:05d}" for t in range(len(frames))]
    for name in ("one", "two"):
        write_frames(root / "JPEGImages/480p" / name, frames, stems)
        annotations = (masks == 1).astype(np.uint8) * np.uint8(255) if kind == "davis16" else masks.copy()
        if kind == "davis17" and name == "two":
            annotations[:2][annotations[:2] == 2] = 0
        write_masks(root / "Annotations/480p" / name, dict(zip(stems, annotations, strict=True)))
    write_frames(root / "JPEGImages/480p/training", frames, stems)
    write_masks(root / "Annotations/480p/training", dict(zip(stems, masks, strict=True)))
    if kind == "davis16":
        lines = [f"/JPEGImages/480p/{n}/{s}.jpg /Annotations/480p/{n}/{s}.png" for n in ("one", "two") for s in stems]
        listed = root / "ImageSets/480p/val.txt"
    else:
        lines, listed = ["one", "two"], root / "ImageSets/2017/val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("\n".join(lines) + "\n")


def write_ytvos(root: Path, clip: Clip) -> None:
    """Every frame is in valid_all_frames, every second one asked for; object 2 appears at 00010."""
    frames, masks = clip
    stems = [f"{5 * t:05d}" for t in range(len(frames))]
    write_frames(root.parent / "valid_all_frames/JPEGImages/one", frames, stems)
    write_frames(root / "JPEGImages/one", frames[::2], stems[::2])
    annotations = {stem: mask.copy() for stem, mask in list(zip(stems, masks, strict=True))[::2]}
    annotations["00000"][annotations["00000"] == 2] = 0
    write_masks(root / "Annotations/one", annotations)
    objects = {"1": {"category": "a", "frames": stems[::2]}, "2": {"category": "b", "frames": stems[2::2]}}
    (root / "meta.json").write_text(json.dumps({"videos": {"one": {"objects": objects}}}))


def write_vip(root: Path, clip: Clip) -> None:
    """Every second frame is annotated."""
    frames, masks = clip
    stems = [f"{25 * t:012d}" for t in range(len(frames))]
    write_frames(root / "Images/videos1", frames, stems)
    annotated = dict(list(zip(stems, masks, strict=True))[::2])
    write_masks(root / "Annotations/Category_ids/videos1", annotated)
    (root / "lists").mkdir()
    (root / "lists/val_videos.txt").write_text("videos1\n")


class Project:
    """A data set, a bundle and a place for results."""

    def __init__(self, root: Path, bundle: Path, clip: Clip) -> None:
        self.root, self.bundle, self.clip = root, bundle, clip
        self.data, self.out = root / "valid", root / "out"
        self.kind = ""

    def write(self, kind: str) -> Project:
        self.kind = kind
        if kind == "ytvos":
            write_ytvos(self.data, self.clip)
        elif kind == "vip":
            write_vip(self.data, self.clip)
        else:
            write_davis(self.data, kind, self.clip)
        return self

    def run_arguments(self, *given: str) -> list[str]:
        options = ["--bundle", str(self.bundle), "--engine", "fake", "--size", "128", "-o", str(self.out)]
        return ["run", str(self.data), "--dataset", self.kind, *options, *given]

    def run(self, *given: str) -> int:
        return main(self.run_arguments(*given))

    def score(self, *given: str) -> int:
        return main(["score", str(self.out), str(self.data), "--dataset", self.kind, *given])

    def masks(self, folder: Path | None = None) -> dict[str, bytes]:
        root = folder or self.out
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.png"))}


@pytest.fixture
def project(tmp_path: Path, fake_bundle: Path, tiny_clip: Clip) -> Project:
    return Project(tmp_path, fake_bundle, tiny_clip)


EXPECTED = {
    "davis16": ([f"{name}/{t:05d}.png" for name in ("one", "two") for t in range(6)], [{0, 255}] * 12),
    "davis17": (
        [f"{name}/{t:05d}.png" for name in ("one", "two") for t in range(6)],
        [{0, 1, 2}] * 6 + [{0, 1}] * 2 + [{0, 1, 2}] * 4,
    ),
    "ytvos": ([f"Annotations/one/{10 * t:05d}.png" for t in range(3)], [{0, 1}, {0, 1, 2}, {0, 1, 2}]),
    "vip": ([f"videos1/{25 * t:012d}.png" for t in range(6)], [{0, 1, 2}] * 6),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_set_is_run_and_scored_in_its_own_layout(
    project: Project, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Masks lie where the server wants them with palette and values; easy objects score well."""
    assert project.write(kind).run("--quiet") == 0
    names, values = EXPECTED[kind]
    assert list(project.masks()) == names
    for name, ids in zip(names, values, strict=True):
        with Image.open(project.out / name) as image:
            assert image.mode == "P"
            assert set(np.unique(np.asarray(image))) == ids, name
    assert capsys.readouterr().out == ""
    assert project.score("--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((project.out / "scores.json").read_text())
    headline = "mIoU" if kind == "vip" else "J&F"
    assert document["figures"][headline] > 0.7
    assert document["settings"]["bundle"] == "tiny"
    rows = (project.out / "scores-sequences.csv").read_text().splitlines()
    assert rows[0].startswith(f"sequence,frames,{headline}")
    assert len(rows) == 2 + len(document["sequences"])
    assert float(rows[-1].split(",")[2]) == pytest.approx(100 * document["figures"][headline], abs=1e-3)


def test_the_tables_and_the_report_are_for_people(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """The terminal names sequences and figures; one HTML file loads nothing and begins with the worst sequence."""
    assert project.write("davis17").run("--quiet") == 0
    for path in (project.out / "one").iterdir():
        Image.fromarray(np.zeros((64, 96), np.uint8)).save(path)
    assert project.score() == 0
    printed = capsys.readouterr().out
    assert re.search(r"one +4 +0\.0", printed)
    assert re.search(r"all objects +8", printed)
    assert re.search(r"two +2 +3 +[6-9]\d\.\d", printed), printed
    report = (project.out / "report.html").read_text()
    assert "DAVIS 2017 · tiny" in report
    assert "untrained weights" in report
    assert re.findall(r"<h3>(\w+) ", report) == ["one", "two"]
    assert report.count('<img src="data:image/jpeg;base64,') == 8
    assert not re.search(r'(?:src|href)="(?!data:)|url\(|<script|@import', report)
    assert re.search(r"J&(?!amp;|lt;|gt;)", report) is None


def test_results_are_kept_and_never_mixed(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run does nothing; another setting is refused by name; --overwrite starts again."""
    assert project.write("davis16").run("--quiet", "--jobs", "2") == 0
    before = {path: path.stat().st_mtime_ns for path in project.out.rglob("*.png")}
    capsys.readouterr()
    assert project.run() == 0
    assert "0 sequences to do, 2 complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in project.out.rglob("*.png")} == before
    assert project.run("--context", "3") == 2
    assert "holds results made with propagation = context 20, this run has context 3" in capsys.readouterr().err
    assert project.run("--size", "96") == 2
    assert "holds results made with size = 128, this run has 96" in capsys.readouterr().err
    masks = project.masks()
    assert project.run("--size", "96", "--overwrite", "--quiet") == 0
    assert project.masks() != masks
    assert json.loads((project.out / "results.json").read_text())["settings"]["size"] == 96


def test_without_a_size_frames_are_scored_at_their_own(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A protocol has its own size, where everything else shrinks large frames."""
    monkeypatch.setattr("vosrt.encoder.DEFAULT_SIZE", 32)  # of frames of 64 x 96
    masks = {}
    for size in ((), ("--size", "64"), ("--size", "32")):
        options = [
            "--bundle",
            str(project.bundle),
            "--engine",
            "fake",
            "-o",
            str(project.root / "-".join(("out", *size))),
        ]
        assert (
            main(["run", str(project.write("davis17").data), "--dataset", "davis17", *options, *size, "--quiet"]) == 0
        )
        masks[size] = project.masks(Path(options[-1]))
        shutil.rmtree(project.data)
    assert masks[()] == masks["--size", "64"] != masks["--size", "32"]


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr()
    assert all(command in printed.out for command in ("run", "score", "compare", "cycle"))
    assert printed.err == ""


def test_a_run_in_json_is_one_object(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.write("davis16").run("--json", "--sequences", "two") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["done"], document["kept"], document["failed"]) == (["two"], [], {})
    assert document["settings"] == json.loads((project.out / "results.json").read_text())["settings"]


def test_overwrite_follows_no_name_out_of_the_folder(project: Project) -> None:
    """Names in results.json, which anybody can write, are not what is removed."""
    precious = project.root / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("precious")
    assert project.write("davis16").run("--quiet") == 0
    record = json.loads((project.out / "results.json").read_text())
    record["sequences"] |= {"../precious": {}, str(precious): {}}
    (project.out / "results.json").write_text(json.dumps(record))
    assert project.run("--quiet", "--overwrite") == 2  # it is not the file that the run wrote
    (project.out / "results.json").unlink()
    (project.out / "one" / "drawn.png").write_bytes(b"drawn")
    assert project.run("--quiet", "--overwrite", "--sequences", "two") == 0
    assert (precious / "thesis.tex").read_text() == "precious"
    assert [path.name for path in (project.out / "one").iterdir()] == ["drawn.png"]
    assert sorted(project.masks()) == ["one/drawn.png", *(f"two/{t:05d}.png" for t in range(6))]


@pytest.mark.parametrize("name", ["../precious", "/precious", "..", "a/b"])
def test_a_list_that_names_no_plain_file_is_altered(
    project: Project, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert project.write("davis16").run("--quiet") == 0
    before = project.masks()
    with (project.out / ".vosrt.jsonl").open("a") as file:
        file.write(json.dumps({"folder": "one", "files": {name: [1, "0"]}}) + "\n")
    assert project.run("--quiet", "--overwrite") == 2
    assert "expected a plain name, which leads to no other folder" in capsys.readouterr().err
    assert project.masks() == before


@pytest.mark.parametrize("kind", ["davis16", "davis17", "ytvos"])
def test_sequences_that_lead_elsewhere_are_refused(
    project: Project, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A frame list with ``..`` and keys of meta.json that are paths are refused."""
    project.write(kind)
    planted = project.root / "planted"
    if kind == "ytvos":
        meta = json.loads((project.data / "meta.json").read_text())
        meta["videos"]["../../planted"] = meta["videos"]["one"]
        (project.data / "meta.json").write_text(json.dumps(meta))
        shutil.copytree(project.data / "Annotations/one", planted)
    else:
        listed = project.data / ("ImageSets/480p/val.txt" if kind == "davis16" else "ImageSets/2017/val.txt")
        line = "/JPEGImages/480p/../00000.jpg x" if kind == "davis16" else ".."
        listed.write_text(listed.read_text() + line + "\n")
    assert project.run("--quiet") == 2
    assert "expected a plain name" in error_line(capsys)
    assert not project.out.exists()


def test_tables_of_the_version_without_lists_are_set_aside(project: Project) -> None:
    """They are known by what is in them; a table of the user's own under such a name is not one of them."""
    assert project.write("davis16").run("--quiet") == 0
    tables = project.root / "tables"
    assert project.score("--quiet", "-o", str(tables)) == 0
    (tables / ".vosrt.jsonl").unlink()
    before = (tables / "scores-objects.csv").read_text() + "a remark of the user's"
    (tables / "scores-objects.csv").write_text(before)
    assert project.score("--quiet", "-o", str(tables)) == 0
    assert (tables / "scores-objects.csv.earlier").read_text() == before
    (tables / ".vosrt.jsonl").unlink()
    (tables / "scores-objects.csv").write_text("my,own,table")
    assert project.score("--quiet", "-o", str(tables)) == 2
    assert (tables / "scores-objects.csv").read_text() == "my,own,table"


def test_tables_replace_what_score_wrote_and_nothing_else(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.write("davis16").run("--quiet") == 0
    assert project.score("--quiet") == 0
    assert project.score("--quiet") == 0
    assert project.run("--quiet") == 0  # which is as complete as before
    tables = project.root / "tables"
    tables.mkdir()
    (tables / "report.html").write_text("mine")
    assert project.score("--quiet", "-o", str(tables)) == 2
    assert "report.html: is not a file that this run wrote" in capsys.readouterr().err
    assert [path.name for path in tables.iterdir()] == ["report.html"]
    assert project.score("--quiet", "--no-html", "-o", str(tables)) == 0
    assert (tables / "report.html").read_text() == "mine"


def test_two_runs_do_not_meet(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.write("davis16")
    project.out.mkdir()
    with locked(project.out):
        assert project.run("--quiet") == 2
        assert f"another run (process {os.getpid()}) is writing there" in capsys.readouterr().err
    assert project.run("--quiet") == 0


def test_several_at_once_give_the_same_masks(project: Project) -> None:
    assert project.write("davis17").run("--quiet", "--jobs", "2") == 0
    several = project.masks()
    assert project.run("--quiet", "--jobs", "1", "--overwrite") == 0
    assert project.masks() == several


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_goes_on_after_it_was_killed(project: Project, number: int) -> None:
    """Killed within the second sequence: the first is kept as it is, the second done again, the end is the same."""
    project.write("davis16")
    for kind, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        folder = project.data / kind / "480p/two"
        for t in range(6, 90):
            os.link(folder / f"{t % 6:05d}.{suffix}", folder / f"{t:05d}.{suffix}")
    part = project.out / ".two.part"
    process = start(project.root, project.run_arguments(), part / "*.png", command="eval", files=2)
    process.send_signal(number)
    error = process.communicate(timeout=120)[1]
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "interrupted: 1 of 2 sequences are complete" in error
    assert not (project.out / "two").exists()
    first = {path: path.stat().st_mtime_ns for path in (project.out / "one").iterdir()}
    assert len(first) == 6
    assert project.run("--quiet") == 0
    assert {path: path.stat().st_mtime_ns for path in (project.out / "one").iterdir()} == first
    assert not part.exists()
    resumed = project.masks()
    assert len(resumed) == 96
    assert project.run("--quiet", "--overwrite") == 0
    assert project.masks() == resumed


def test_a_broken_sequence_does_not_stop_the_others(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """It is named, exit code 1; once repaired, the next run does it alone."""
    frame = project.write("davis16").data / "JPEGImages/480p/one/00003.jpg"
    whole = frame.read_bytes()
    frame.write_bytes(whole[:400])
    assert project.run() == 1
    assert "error: one: " in capsys.readouterr().err
    assert "00003.jpg" in json.loads((project.out / "results.json").read_text())["failed"]["one"]
    assert not (project.out / "one").exists()
    assert project.score() == 2
    assert "has no masks of 1 of 2 sequences (one)" in capsys.readouterr().err
    assert project.score("--partial", "--no-html") == 0
    assert "warning: one is left out: has no masks" in capsys.readouterr().err
    frame.write_bytes(whole)
    assert project.run("--quiet") == 0
    assert json.loads((project.out / "results.json").read_text())["failed"] == {}
    assert project.score("--quiet") == 0


def test_names_with_brackets_are_shown_whole(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders named like markup of rich are neither lost from a table nor an error."""
    assert project.write("davis17").run() == project.score("--no-html") == 0
    runs = [project.out.rename(project.root / "[bold]one"), project.root / "v[red]2"]
    shutil.copytree(runs[0], runs[1])
    capsys.readouterr()
    assert main(["compare", *map(str, runs)]) == 0
    printed = capsys.readouterr().out
    assert all(run.name in printed for run in runs)


def test_runs_are_compared(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """The difference is tested; with two sequences no p below 0.5 is possible."""
    assert project.write("davis17").run("--quiet") == 0
    assert project.score("--quiet", "--no-html") == 0
    other = project.root / "other"
    assert project.run("--quiet", "--context", "0", "-o", str(other)) == 0
    assert main(["score", str(other), str(project.data), "--dataset", "davis17", "--quiet", "--no-html"]) == 0
    capsys.readouterr()
    assert main(["compare", str(project.out), str(other), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (test,) = document["tests"]
    differences = [b - a for a, b in document["sequences"].values()]
    assert test["mean"] == pytest.approx(np.mean(differences))
    assert (test["n"], test["exact"]) == (2, True)
    assert test["p"] in (0.5, 1.0)
    assert main(["compare", str(project.out), str(other), str(project.out)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "over n = 2 sequences" in printed
    assert "no p below 0.5 is possible" in printed
    assert "other differs in: propagation.context 20 → 0" in printed
    (other / "results.json").unlink()
    assert main(["score", str(other), str(project.data), "--dataset", "davis17", "--quiet", "--no-html"]) == 0
    assert main(["compare", str(project.out), str(other)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Of unknown settings, since made by another program: other." in printed
    assert "differs in" not in printed


Spoil = Callable[[Project], list[str]]


def run_with(*given: str) -> Spoil:
    return lambda project: project.run_arguments(*given)


def _other_layout(project: Project) -> list[str]:
    return ["run", str(project.root), "--dataset", "ytvos"]


def _broken_meta(project: Project) -> list[str]:
    data = project.root / "yt"
    write_ytvos(data, project.clip)
    (data / "meta.json").write_text('{"videos": {"one": {"objects": []}}}')
    return ["run", str(data), "--dataset", "ytvos"]


def _foreign_folder(project: Project) -> list[str]:
    project.out.mkdir()
    (project.out / "thesis.tex").write_text("precious")
    return project.run_arguments()


def _score(project: Project, *given: str) -> list[str]:
    return ["score", str(project.out), str(project.data), "--dataset", project.kind, *given]


def _exchanged(project: Project) -> list[str]:
    return ["score", str(project.data), str(project.out), "--dataset", project.kind]


def _no_results(project: Project) -> list[str]:
    return _score(project)


def _other_data_set(project: Project) -> list[str]:
    assert project.run("--quiet") == 0
    return ["score", str(project.out), str(project.data), "--dataset", "davis17"]


def _missing_mask(project: Project) -> list[str]:
    assert project.run("--quiet") == 0
    (project.out / "one/00003.png").unlink()
    return _score(project)


def _small_mask(project: Project) -> list[str]:
    assert project.run("--quiet") == 0
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(project.out / "one/00003.png")
    return _score(project)


def _hidden_annotations(project: Project) -> list[str]:
    assert project.run("--quiet") == 0
    for path in (project.data / "Annotations/480p/one").iterdir():
        if path.stem != "00000":
            path.unlink()
    return _score(project)


def _unscored(project: Project) -> list[str]:
    assert project.run("--quiet") == 0
    return ["compare", str(project.out), str(project.out)]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(lambda p: ["run", "x", "--dataset", "coco"], "--dataset is 'coco'; expected one of", id="kind"),
        pytest.param(lambda p: ["run", "x", "--dataset", "YouTube-VOS"], "davis17, ytvos, vip, here ytvos", id="alias"),
        pytest.param(lambda p: ["run", "x"], "--dataset", id="no kind"),
        pytest.param(_exchanged, "is none; expected RESULTS first, then PATH", id="exchanged"),
        pytest.param(_other_layout, "is not in the layout of YouTube-VOS; expected JPEGImages", id="layout"),
        pytest.param(_broken_meta, "meta.json: is not the meta.json of YouTube-VOS", id="meta.json"),
        pytest.param(run_with("--sequences", "one,three"), "--sequences three: not in", id="sequence"),
        pytest.param(run_with("--jobs", "-1"), "--jobs is -1; expected 0", id="jobs"),
        pytest.param(run_with("--engine", "warp"), "engine is 'warp'", id="engine"),
        pytest.param(run_with("--bundle", "nowhere"), "no such bundle: nowhere", id="bundle"),
        pytest.param(run_with("--context", "-1"), "context is -1", id="context"),
        pytest.param(run_with("--size", "0"), "--size is '0'; expected", id="size"),
        pytest.param(_foreign_folder, "no list (.vosrt.jsonl) of an earlier run", id="foreign folder"),
        pytest.param(_no_results, "no such folder; expected masks made by", id="no results"),
        pytest.param(_other_data_set, "holds masks of davis16, and --dataset is davis17", id="other data set"),
        pytest.param(_missing_mask, "00003.png: no such mask; expected one per annotated frame", id="missing mask"),
        pytest.param(_small_mask, "the mask is 9×8 but the frames are 96×64", id="small mask"),
        pytest.param(_hidden_annotations, "has 1 annotations, of which none counts", id="hidden annotations"),
        pytest.param(lambda p: ["compare", str(p.root)], "scores.json: no such file; make it with", id="unscored"),
        pytest.param(_unscored, "scores.json: no such file; make it with: vos-eval score", id="not scored"),
        pytest.param(lambda p: ["score", "x", "y", "--dataset", "vip", "--frobnicate"], "--frobnicate", id="option"),
    ],
)
def test_wrong_input_is_one_line(project: Project, capfd: pytest.CaptureFixture[str], spoil: Spoil, words: str) -> None:
    arguments = spoil(project.write("davis16"))
    capfd.readouterr()
    assert main(arguments) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert words in printed.err
    assert not (project.out / "scores.json").exists()


def test_errors_in_json(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a", "b", "--json"]) == 2
    error: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert error["exit_code"] == 2
    assert "a/scores.json: no such file" in error["error"]


def test_models_are_compared_on_a_clip_without_annotations(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same model twice gives the same figures, between 0 and 100."""
    project.write("davis17")
    frames, mask = project.data / "JPEGImages/480p/one", project.data / "Annotations/480p/one/00000.png"
    options = ["--engine", "fake", "--size", "128", "--turns", "2", "--bundle", str(project.bundle)]
    given = ["cycle", str(frames), "--mask", str(mask), *options]
    assert main([*given, "--bundle", str(project.bundle), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["runs"]
    assert first["cycle"] == second["cycle"]
    assert 0.7 < first["cycle"] <= 1
    assert [turn["frame"] for turn in first["turns"]] == [3, 5]
    assert main(given) == 0
    printed = capsys.readouterr()
    assert re.search(rf"cycle consistency +{100 * first['cycle']:.1f}", printed.out)
    assert "back from frame 3" in printed.out
    assert "random weights" in printed.err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param(["--frames", "1"], "--frames is 1; expected 2 or more", id="frames"),
        pytest.param(["--turns", "0"], "--turns is 0; expected 1 or more", id="turns"),
        pytest.param(["--mask", "5:MASK", "--frames", "5"], "frame 5 is not among the frames", id="late mask"),
        pytest.param(["--bundle", "nowhere"], "no such bundle: nowhere", id="bundle"),
    ],
)
def test_wrong_cycles_are_one_line(
    project: Project, capfd: pytest.CaptureFixture[str], given: list[str], words: str
) -> None:
    project.write("davis17")
    frames, mask = project.data / "JPEGImages/480p/one", project.data / "Annotations/480p/one/00000.png"
    options = [option.replace("MASK", str(mask)) for option in given]
    model = [] if "--bundle" in given else ["--bundle", str(project.bundle)]
    assert main(["cycle", str(frames), "--mask", str(mask), "--engine", "fake", *model, *options]) == 2
    assert words in error_line(capfd)
