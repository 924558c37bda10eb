"""``vos-run`` from the command line to the files, with the fake engine: results, refusals, interruption."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from tests.fakes.media import write_video
from vosrt.cli.run import main
from vosrt.types import U8Array
from vosrt.video.polygons import read_polygons
from vosrt.video.rle import decode

WIDTH, HEIGHT, COUNT = 97, 65, 12


def scene(t: int) -> tuple[U8Array, U8Array]:
    """A red square from the start and a blue one from frame 5 on, both in motion; picture and truth."""
    image = np.random.default_rng(7).integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    boxes = [(1, 8 + t, 8 + 2 * t, (20, 20, 240))]
    if t >= 5:
        boxes.append((2, 36, 68 - 2 * t, (240, 40, 20)))
    for object_id, y, x, colour in boxes:
        image[y : y + 20, x : x + 24] = colour
        truth[y : y + 20, x : x + 24] = object_id
    return image, truth


def write_clip(path: Path, count: int = COUNT, options: dict[str, str] | None = None) -> Path:
    pictures = (scene(t)[0] for t in range(count))
    return write_video(path, pictures, pix_fmt="yuv444p", encoder={"crf": "10"}, options=options)


def save_mask(path: Path, mask: U8Array) -> Path:
    Image.fromarray(mask).save(path)
    return path


class Project:
    """A folder with a clip, masks and a bundle, and a way to run the command on them."""

    def __init__(self, root: Path, bundle: Path) -> None:
        self.root = root
        self.clip = write_clip(root / "clip.mp4")
        self.mask = save_mask(root / "first.png", np.where(scene(0)[1] == 1, 255, 0).astype(np.uint8))
        self.bundle = bundle
        self.out = root / "out"

    def arguments(self, *given: str, out: Path | None = None) -> list[str]:
        return ["--bundle", str(self.bundle), "--engine", "fake", "-o", str(out or self.out), *given]

    def segment(self, *given: str, source: Path | None = None, out: Path | None = None) -> int:
        return main(self.arguments(str(source or self.clip), *given, out=out))

    def listing(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.root)): p.read_bytes() for p in self.root.rglob("*") if p.is_file()}


@pytest.fixture
def project(tmp_path: Path, fake_bundle: Path) -> Project:
    return Project(tmp_path, fake_bundle)


def read_masks(folder: Path) -> dict[str, U8Array]:
    masks = {}
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            image.load()
            assert image.mode == "P"
            masks[path.name] = np.asarray(image, np.uint8)
    return masks


def count_video(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def overlap(a: Any, b: Any) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def test_a_clip_is_segmented_into_video_masks_lines_and_summary(project: Project) -> None:
    late = save_mask(project.root / "late.png", np.where(scene(5)[1] == 2, 2, 0).astype(np.uint8))
    # Twice the size of the frames, as the objects are three cells wide without it.
    assert project.segment("--mask", str(project.mask), "--mask", f"5:{late}", "--size", "130") == 0
    assert sorted(path.name for path in project.out.iterdir()) == [
        ".vosrt.jsonl",
        "first.jpg",
        "masks",
        "masks.jsonl",
        "objects.csv",
        "overlay.mp4",
        "summary.json",
    ]
    masks = read_masks(project.out / "masks")
    assert list(masks) == [f"{t:05d}.png" for t in range(COUNT)]
    for t, mask in enumerate(masks.values()):
        truth = scene(t)[1]
        for object_id in np.unique(truth[truth > 0]):
            assert overlap(mask == object_id, truth == object_id) > 0.6, (t, object_id)
    lines = [json.loads(line) for line in (project.out / "masks.jsonl").read_text().splitlines()]
    for mask, line in zip(masks.values(), lines, strict=True):
        for entry in line["objects"]:
            coded = entry["segmentation"]
            np.testing.assert_array_equal(decode(coded["counts"], *coded["size"]), mask == entry["id"])
    assert count_video(project.out / "overlay.mp4") == COUNT
    summary = json.loads((project.out / "summary.json").read_text())
    assert (summary["frames"], summary["object_ids"], summary["complete"]) == (COUNT, [1, 2], True)
    assert summary["model"]["weights"] == "untrained"
    assert {"decode", "encode", "track", "write", "match"} <= set(summary["stages_ms"])


def test_frames_before_the_first_mask_are_background(project: Project) -> None:
    late = save_mask(project.root / "late.png", scene(5)[1])
    assert project.segment("--mask", f"5:{late}", "--no-video", "--no-rle", "--quiet") == 0
    masks = list(read_masks(project.out / "masks").values())
    assert [bool(mask.any()) for mask in masks] == [t >= 5 for t in range(COUNT)]
    assert not (project.out / "overlay.mp4").exists()


def test_a_folder_of_frames_with_a_folder_of_masks(project: Project) -> None:
    frames, masks = project.root / "frames", project.root / "annotations"
    frames.mkdir()
    masks.mkdir()
    for t in range(COUNT):
        cv2.imwrite(str(frames / f"{t * 5:05d}.png"), scene(t)[0])
        save_mask(masks / f"{t * 5:05d}.png", scene(t)[1])
    assert project.segment("--mask", str(masks), "--start", "2", source=frames) == 0
    written = read_masks(project.out / "masks")
    assert list(written) == [f"{t * 5:05d}.png" for t in range(2, COUNT)]
    assert set(np.unique(written["00055.png"])) == {0, 1, 2}


def test_points_on_the_first_and_on_a_later_frame(project: Project) -> None:
    """The red square is clicked on frame 0, the blue one, which is not there before, on frame 5."""
    assert project.segment("--points", "20,18", "--points", "60,60,-", "--points", "5:2=66,46", "--quiet") == 0
    for t, ids in ((0, {0, 1}), (5, {0, 1, 2})):
        found, truth = np.asarray(Image.open(project.out / "masks" / f"{t:05d}.png")), scene(t)[1]
        assert set(np.unique(found)) == ids
        a, b = found == max(ids), truth == max(ids)  # the one that was clicked in this frame
        assert (a & b).sum() > 0.9 * (a | b).sum()


def test_box_and_polygon(project: Project) -> None:
    polygon = project.root / "p.json"
    polygon.write_text(json.dumps({"objects": [{"id": 4, "polygons": [[[60, 40], [90, 40], [90, 60]]]}]}))
    assert project.segment("--box", "4,4,32,28", "--polygon", str(polygon), "--quiet") == 0
    first = read_masks(project.out / "masks")["00000.png"]
    assert overlap(first == 1, scene(0)[1] == 1) > 0.9
    assert first[45, 85] == 4


def look(path: Path, background: U8Array) -> U8Array:
    """Where a picture differs from a frame: bool [H, W]."""
    picture = cv2.imread(str(path))
    assert picture is not None
    return np.asarray(np.abs(picture.astype(int) - background).max(axis=2) > 40)


def test_the_first_picture_shows_the_marks_and_is_named_at_once(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """It shows the marks on their frame, also where all other pictures are left out."""
    late = project.root / "late.png"
    save_mask(late, np.where(scene(5)[1] == 2, 255, 0).astype(np.uint8))
    assert project.segment("--mask", f"5:{late}", "--no-video", "--no-png") == 0
    changed = look(project.out / "first.jpg", scene(5)[0])
    assert overlap(changed, scene(5)[1] == 2) > 0.7
    summary = json.loads((project.out / "summary.json").read_text())
    assert summary["files"][0] == "first.jpg"
    assert f"{project.out}/first.jpg shows what is followed" in capsys.readouterr().err


def test_a_preview_writes_the_first_picture_and_gives_way_to_the_run(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    late = save_mask(project.root / "late.png", np.where(scene(5)[1] == 2, 255, 0).astype(np.uint8))
    with monkeypatch.context() as patch:
        patch.setattr("vosrt.model.Model.load", lambda **_: pytest.fail("a preview needs no model"))
        for given in (("--mask", str(project.mask)), ("--mask", f"5:{late}")):  # a second one replaces the first
            assert project.segment(*given, "--preview") == 0
            assert sorted(path.name for path in project.out.iterdir()) == [".vosrt.jsonl", "first.jpg"]
        assert overlap(look(project.out / "first.jpg", scene(5)[0]), scene(5)[1] == 2) > 0.7
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "first.jpg shows what is followed" in printed.err
        assert project.segment("--mask", str(project.mask), "--preview", "--json") == 0
        assert json.loads(capsys.readouterr().out)["object_ids"] == [1]
    assert project.segment("--mask", str(project.mask)) == 0
    assert count_video(project.out / "overlay.mp4") == COUNT
    assert project.segment("--mask", str(project.mask), "--preview") == 2
    assert project.segment("--mask", str(project.mask), "--preview", "--overwrite") == 2
    assert count_video(project.out / "overlay.mp4") == COUNT


def test_a_preview_past_the_end_is_wrong_input(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    late = save_mask(project.root / "late.png", np.where(scene(5)[1] == 2, 2, 0).astype(np.uint8))
    assert project.segment("--mask", f"5:{late}", "--end", "4", "--preview") == 2
    assert not project.out.exists()


def test_a_doubtful_box_is_told_before_the_work_and_only_once(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = "40,4,30,20"
    assert project.segment("--box", empty) == 0
    printed = capsys.readouterr().err
    assert printed.count(f"warning: --box {empty}: ") == 1
    assert printed.index("warning") < printed.index("first.jpg shows")
    assert "a --polygon or --mask would be better" in printed


def test_json_is_one_object_and_quiet_is_silent(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.segment("--mask", str(project.mask), "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads((project.out / "summary.json").read_text())
    assert printed.err == ""
    assert project.segment("--mask", str(project.mask), "--quiet", "--overwrite") == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_a_budget_gives_up_context_and_size_only_where_it_is_exceeded(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """The summary and the last lines say what was given up; a budget that is kept changes no mask."""
    outs = {budget: project.root / (budget or "none") for budget in ("", "1e6", "1e-6")}
    for budget, out in outs.items():
        more = ("--budget-ms", budget) if budget else ()
        assert project.segment("--mask", str(project.mask), *more, out=out) == 0
    assert "1e-06 ms kept in 0 % of frames; given up: context" in " ".join(capsys.readouterr().out.split())
    kept, exceeded = (json.loads((outs[each] / "summary.json").read_text())["budget"] for each in ("1e6", "1e-6"))
    assert (kept["within"], kept["changes"]) == (1.0, [])
    assert exceeded["within"] == 0
    assert exceeded["changes"][0]["context"] < exceeded["asked"]["context"]
    assert len(list((outs["1e-6"] / "masks").glob("*.png"))) == COUNT
    for mask in (outs[""] / "masks").glob("*.png"):
        assert mask.read_bytes() == (outs["1e6"] / "masks" / mask.name).read_bytes()


def test_the_table_names_what_ran(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.segment("--mask", str(project.mask)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "12 at 97×65" in printed
    assert "tiny, untrained" in printed
    assert "fake fp32" in printed
    assert "ms p50" in printed
    assert "peak memory" in printed


def test_all_results_agree(project: Project) -> None:
    """Table, cut-outs and polygons say what the masks say, in every frame, and the summary names their files."""
    late = save_mask(project.root / "late.png", np.where(scene(5)[1] == 2, 2, 0).astype(np.uint8))
    marks = ["--mask", str(project.mask), "--mask", f"5:{late}"]
    assert (
        project.segment(*marks, "--size", "130", "--cutout", "png", "--polygons", "coco", "--polygons", "labelme") == 0
    )
    files = json.loads((project.out / "summary.json").read_text())["files"]
    expected = ["first.jpg", "overlay.mp4", "masks", "masks.jsonl", "objects.csv"]
    expected += ["cutout", "coco.json", "labelme", "summary.json"]
    assert files == expected
    assert all((project.out / name).exists() for name in files)
    masks = list(read_masks(project.out / "masks").values())
    rows = list(csv.DictReader((project.out / "objects.csv").read_text().splitlines()))
    assert [(int(row["frame"]), int(row["object"])) for row in rows if int(row["frame"]) in (4, 5)] == [
        (4, 1),
        (5, 1),
        (5, 2),
    ]
    for row in rows:
        assert int(row["area_px"]) == (masks[int(row["frame"])] == int(row["object"])).sum()
    for t, mask in enumerate(masks):
        cut = cv2.imread(str(project.out / f"cutout/{t:05d}.png"), cv2.IMREAD_UNCHANGED)
        assert cut is not None
        np.testing.assert_array_equal(cut[..., 3] > 0, mask > 0)
        shapes = json.loads((project.out / f"labelme/{t:05d}.json").read_text())["shapes"]
        assert {shape["group_id"] for shape in shapes} == set(np.unique(mask)) - {0}
        for path in (project.out / "coco.json", project.out / f"labelme/{t:05d}.json"):  # as --polygon reads them
            drawn = read_polygons(path, WIDTH, HEIGHT, frame=t).labels
            for place, object_id in enumerate(sorted(set(np.unique(mask)) - {0}), start=1):
                assert overlap(drawn == place, mask == object_id) > 0.97
    coco = json.loads((project.out / "coco.json").read_text())
    assert [image["id"] for image in coco["images"]] == list(range(COUNT))
    assert {each["id"] for each in coco["categories"]} == {1, 2}
    areas = {(each["image_id"], each["category_id"]): each["area"] for each in coco["annotations"]}
    assert areas == {
        (int(row["frame"]), int(row["object"])): int(row["area_px"]) for row in rows if row["present"] == "1"
    }


@pytest.mark.parametrize("kind", ["mov", "webm"])
def test_a_cut_out_may_be_a_video(project: Project, kind: str) -> None:
    assert project.segment("--mask", str(project.mask), "--cutout", kind, "--no-video", "--no-png", "--no-rle") == 0
    assert sorted(path.name for path in project.out.glob("[!.]*")) == [
        f"cutout.{kind}",
        "first.jpg",
        "objects.csv",
        "summary.json",
    ]
    assert count_video(project.out / f"cutout.{kind}") == COUNT


def test_the_summary_says_when_an_object_left_and_came_back(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """A still square is covered in frames 3 and 4."""
    frames = project.root / "frames"
    frames.mkdir()
    for t in range(7):
        image = np.full((64, 96, 3), 90, np.uint8)
        if t not in (3, 4):
            image[16:48, 24:56] = (20, 20, 240)
        cv2.imwrite(str(frames / f"{t:02d}.png"), image)
    mask = np.zeros((64, 96), np.uint8)
    mask[16:48, 24:56] = 1
    marked = str(save_mask(project.root / "square.png", mask))
    assert project.segment("--mask", marked, "--min-area", "200", source=frames) == 0
    absence = {"object_id": 1, "left_frame": 3, "left_s": 0.125, "back_frame": 5, "back_s": 0.208333}
    assert json.loads((project.out / "summary.json").read_text())["absences"] == [absence]
    told = " ".join(capsys.readouterr().out.split())
    assert "object 1 left at frame 3 (0.12 s), came back at frame 5 (0.21 s)" in told


def test_the_overlay_is_drawn_as_asked(project: Project) -> None:
    """Colour, opacity, numbers and size are as asked; the other results keep their size."""
    options = ["--colour", "lime", "--opacity", "1", "--ids", "--overlay-size", "32", "--no-rle"]
    assert project.segment("--mask", str(project.mask), "--size", "130", *options) == 0
    with av.open(str(project.out / "overlay.mp4")) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert picture.shape == (32, 48, 3)
    inside = picture[8:11, 7:10].reshape(-1, 3).mean(axis=0)
    assert inside[1] > 150 > inside[[0, 2]].max()
    assert next(iter(read_masks(project.out / "masks").values())).shape == (HEIGHT, WIDTH)


def test_large_frames_are_segmented_at_480_and_that_is_said(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line before the work and the table report unrequested shrinking; masks keep the frames' size."""
    frames = project.root / "frames"
    frames.mkdir()
    for t in range(2):
        cv2.imwrite(str(frames / f"{t}.jpg"), np.full((500, 560, 3), 90, np.uint8))
    mask = str(save_mask(project.root / "mask.png", np.full((500, 560), 1, np.uint8)))
    for number, (options, working) in enumerate(
        {(): "538×480", ("--size", "native"): None, ("--size", "240"): "269×240"}.items()
    ):
        out = project.root / f"out{number}"
        assert project.segment("--mask", mask, "--no-video", "--no-rle", *options, source=frames, out=out) == 0
        told = capsys.readouterr()
        assert ("560×500 frames are segmented at 538×480; --size native" in told.err) == (not options)
        summary = json.loads((out / "summary.json").read_text())
        assert f"{summary['working_width']}×{summary['working_height']}" == (working or "560×500")
        assert (f"2 at 560×500, segmented at {working}" in told.out) == (working is not None)
        assert read_masks(out / "masks")["0.png"].shape == (500, 560)


def test_overwrite_replaces_results_and_nothing_else(project: Project) -> None:
    assert project.segment("--mask", str(project.mask), "--quiet") == 0
    (project.out / "notes.txt").write_text("mine")
    assert project.segment("--mask", str(project.mask), "--end", "3", "--no-rle", "--quiet", "--overwrite") == 0
    assert len(read_masks(project.out / "masks")) == 3
    assert not (project.out / "masks.jsonl").exists()
    assert (project.out / "notes.txt").read_text() == "mine"


def test_overwrite_spares_a_folder_of_somebody_else(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the summary of an earlier run nothing in a folder is taken for results."""
    (project.out / "masks").mkdir(parents=True)
    (project.out / "masks" / "precious.png").write_bytes(b"mine")
    assert project.segment("--mask", str(project.mask), "--overwrite") == 2
    assert "no list (.vosrt.jsonl) of an earlier run, so nothing in it is replaced" in capsys.readouterr().err
    assert [path.name for path in project.out.rglob("*.*")] == ["precious.png"]


def test_an_annotation_past_the_last_frame_is_warned_of(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write_clip(project.root / "clip.mkv")  # its header has no frame count
    arguments = ("--mask", str(project.mask), "--mask", f"99:{project.mask}", "--quiet")
    assert project.segment(*arguments, source=clip) == 0
    assert "warning: the annotation of frame 99 was not used: frame 11 is the last" in capsys.readouterr().err


Spoil = Callable[[Project], list[str]]


def _truncated(project: Project) -> list[str]:
    project.clip.write_bytes(project.clip.read_bytes()[:1500])
    return ["--mask", str(project.mask)]


def _of_another_size(project: Project) -> list[str]:
    return ["--mask", str(save_mask(project.root / "small.png", np.ones((8, 9), np.uint8)))]


def _of_many_objects(project: Project) -> list[str]:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    mask = (rows // 4 * (WIDTH // 4 + 1) + columns // 4).astype(np.uint16) % 300  # squares of 4 × 4 pixels
    return ["--mask", str(save_mask(project.root / "many.png", mask))]


def _a_picture(project: Project) -> list[str]:
    return ["--mask", str(save_mask(project.root / "rgb.png", scene(0)[0]))]


def _in_colours(project: Project) -> list[str]:
    colours = np.array([(0, 0, 0), (0, 0, 255), (90, 255, 0)], np.uint8)
    return ["--mask", str(save_mask(project.root / "rgb.png", colours[scene(5)[1]]))]


def _empty(project: Project) -> list[str]:
    return ["--mask", str(save_mask(project.root / "empty.png", np.zeros((HEIGHT, WIDTH), np.uint8)))]


def _zero_frames(project: Project) -> list[str]:
    project.clip.write_bytes(b"")
    return ["--mask", str(project.mask)]


def _used_folder(project: Project) -> list[str]:
    project.out.mkdir()
    (project.out / "thesis.tex").write_text("precious")
    return ["--mask", str(project.mask)]


def _file_as_folder(project: Project) -> list[str]:
    project.out.write_text("a file")
    return ["--mask", str(project.mask)]


def _mask_inside_out(project: Project) -> list[str]:
    project.out.mkdir()
    (project.out / "masks").mkdir()
    return ["--mask", str(save_mask(project.out / "masks" / "00000.png", scene(0)[1])), "--overwrite"]


def options(*given: str) -> Spoil:
    return lambda project: ["--mask", str(project.mask), *given]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(_truncated, "clip.mp4: cannot be opened as a video", id="truncated"),
        pytest.param(_zero_frames, "clip.mp4: is an empty file", id="zero frames"),
        pytest.param(_of_another_size, "small.png: the mask is 9×8 but the frames are 97×65", id="other size"),
        pytest.param(_empty, "empty.png: the mask is empty", id="empty mask"),
        pytest.param(_of_many_objects, "many.png: holds 299 objects; expected at most 255", id="many objects"),
        pytest.param(_a_picture, "rgb.png: has soft edges", id="a picture"),
        pytest.param(_in_colours, "rgb.png: is an RGB image of 2 colours, which do not say", id="colours"),
        pytest.param(lambda p: ["--mask", str(p.root / "no.png")], "no.png: no such mask", id="no mask file"),
        pytest.param(options("--mask", "n" * 300), "nnn: File name too long; expected", id="name too long"),
        pytest.param(options("--box", "90,1,20,20"), "--box 90,1,20,20: reaches outside the frame", id="box outside"),
        pytest.param(lambda p: [], "nothing to follow: give --mask FILE", id="no prompt"),
        pytest.param(options("--mask", "12:late.png"), "frame 12 is not among the frames", id="late frame"),
        pytest.param(_used_folder, "out: is not empty; choose another folder or", id="used folder"),
        pytest.param(_file_as_folder, "out: is a file; expected a folder", id="file as folder"),
        pytest.param(_mask_inside_out, "holds the input", id="input in output"),
        pytest.param(options("--engine", "warp"), "engine is 'warp'; expected one of", id="engine"),
        pytest.param(options("--precision", "fp64"), "precision is 'fp64'; expected", id="precision"),
        pytest.param(options("--context", "-1"), "context is -1; expected 0 to 1024", id="context"),
        pytest.param(options("--budget-ms", "0"), "--budget-ms is 0; expected more than 0", id="no budget"),
        pytest.param(options("--budget-ms", "nan"), "--budget-ms is nan; expected more than 0", id="nan budget"),
        pytest.param(
            options("--budget-ms", "9", "--direction", "both"), "--budget-ms works forward only", id="budget both ways"
        ),
        pytest.param(options("--budget-ms", "9", "--resume"), "--resume cannot go on with", id="budget and resume"),
        pytest.param(options("--top-k", "0"), "top_k is 0; expected 1 to 64", id="top-k"),
        pytest.param(options("--temperature", "nan"), "temperature is nan", id="temperature"),
        pytest.param(options("--size", "4"), "choose another size", id="size"),
        pytest.param(options("--size", "0"), "expected a short side in pixels, as in --size 360", id="no size"),
        pytest.param(options("--size=-3"), "expected a short side in pixels, as in --size 360", id="negative size"),
        pytest.param(options("--size", "480.0"), "expected a short side in pixels, as in --size 360", id="fraction"),
        pytest.param(options("--size", ""), "--size is empty", id="empty size"),
        pytest.param(options("--threads", "-2"), "--threads is -2; expected 0", id="threads"),
        pytest.param(options("--start", "12"), "has 12 frames; frame 12 (--start) is past the end", id="start"),
        pytest.param(options("--end", "0"), "--end is 0; expected more than --start", id="end"),
        pytest.param(options("--cutout", "gif"), "--cutout is 'gif'; expected png, mov or webm", id="cutout"),
        pytest.param(options("--polygons", "svg"), "--polygons is 'svg'; expected coco, labelme,", id="polygons"),
        pytest.param(options("--colour", "2=reddish"), "'reddish' is no colour", id="colour"),
        pytest.param(options("--opacity", "1.5"), "opacity is 1.5; expected 0 (outlines only) to 1", id="opacity"),
        pytest.param(options("--overlay-size", "4k"), "--overlay-size is '4k'; expected a short side", id="overlay"),
        pytest.param(options("--min-area=-1"), "--min-area is -1; expected a number of pixels", id="min-area"),
        pytest.param(options("--fill-holes=-1"), "--fill-holes is -1; expected a number of pixels", id="fill-holes"),
        pytest.param(options("--size", "big"), "--size", id="not a number"),
        pytest.param(options("--frobnicate"), "--frobnicate", id="unknown option"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    project: Project, capfd: pytest.CaptureFixture[str], spoil: Spoil, words: str
) -> None:
    given = spoil(project)
    before = project.listing()
    assert main([*project.arguments(str(project.clip)), *given]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert words in printed.err
    assert project.listing() == before
    assert project.out.exists() == any(name.split("/")[0] == "out" for name in before)


def test_a_name_that_looks_like_an_option_is_explained(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.clip.parent)
    project.clip.rename("-dash.mp4")
    arguments = project.arguments("--mask", str(project.mask), "--quiet")
    assert main(["-dash.mp4", *arguments]) == 2
    assert "the file -dash.mp4 is written ./-dash.mp4" in capsys.readouterr().err
    assert main(["./-dash.mp4", *arguments]) == 0


def test_an_absent_source_is_one_line_and_writes_nothing(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    missing = project.root / "absent.mp4"
    assert project.segment("--mask", str(project.mask), source=missing) == 2
    assert capfd.readouterr().err == f"error: {missing}: no such file or folder\n"
    assert not project.out.exists()


def test_a_source_that_may_not_be_looked_up_is_one_line(
    project: Project, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder of another user, asking whether a file exists is an error already."""
    stat = Path.stat

    def refuse(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path == project.clip:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", refuse)
    assert project.segment("--mask", str(project.mask)) == 2
    assert capfd.readouterr().err == f"error: {project.clip}: Permission denied; expected a path that can be used\n"
    assert not project.out.exists()


def test_errors_in_json(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.segment("--mask", "no.png", "--json") == 2
    assert json.loads(capsys.readouterr().out) == {
        "error": "no.png: no such mask",
        "exit_code": 2,
    }


def test_a_missing_engine_names_the_command(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert project.segment("--mask", str(project.mask), "--engine", "openvino") == 2
    expected = "error: OpenVINO is not installed; install it with: pip install 'vosrt[openvino]'\n"
    assert capsys.readouterr().err == expected
    assert not project.out.exists()


def test_a_folder_without_permission_is_refused(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert project.segment("--mask", str(project.mask)) == 2
    assert "is not writable; choose another folder with -o" in capsys.readouterr().err
    assert not project.out.exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that refuses new folders to everyone")
def test_a_folder_that_cannot_be_made_is_refused(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.segment("--mask", str(project.mask), out=Path("/proc/vosrt/out")) == 2
    assert capsys.readouterr().err.startswith("error: /proc/vosrt/out: ")


def test_a_video_that_breaks_half_way_keeps_what_was_decoded(
    project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(project.root / "cut.mp4", options={"movflags": "+faststart"})
    clip.write_bytes(clip.read_bytes()[: int(clip.stat().st_size * 0.75)])
    assert project.segment("--mask", str(project.mask), "--quiet", source=clip) == 1
    masks = read_masks(project.out / "masks")
    kept = len(masks)
    assert 2 <= kept < COUNT
    error = capfd.readouterr().err
    assert error.startswith(f"error: {clip}: the video breaks at frame {kept} (")
    assert error.endswith(f"; the results of {kept} frames are in {project.out}\n")
    assert count_video(project.out / "overlay.mp4") == kept
    assert len((project.out / "masks.jsonl").read_text().splitlines()) == kept
    summary = json.loads((project.out / "summary.json").read_text())
    assert (summary["complete"], summary["frames"]) == (False, kept)
    assert f"breaks at frame {kept}" in summary["error"]


def test_the_demo_outlines_fit_the_demo_clip() -> None:
    """The outlines lie on the balloons: what they hold is unlike the sky and the hills right around them."""
    from vosrt.cli.demo import CLIP, POLYGON
    from vosrt.video.prompts import Prompts, load_annotations
    from vosrt.video.source import open_source

    source = open_source(str(CLIP))
    mask = load_annotations(Prompts(polygons=(str(POLYGON),)), source).masks[0]
    frame = next(iter(source)).image.astype(float)
    source.close()
    assert set(np.unique(mask)) == {0, 1, 2}
    for number, blue_over_red in ((1, True), (2, False)):
        blue, _, red = frame[mask == number].mean(axis=0)
        assert (blue > red) == blue_over_red
    assert 0.05 < (mask > 0).mean() < 0.2


def test_licences_name_the_gpl_inside_pyav(capsys: pytest.CaptureFixture[str]) -> None:
    """Every package that vosrt runs with is listed, and what its wheel holds besides."""
    assert main(["licenses", "--json"]) == 0
    packages = {each["name"]: each for each in json.loads(capsys.readouterr().out)["packages"]}
    assert {"vosrt", "numpy", "av", "opencv-python-headless"} <= set(packages)
    assert "GPL-2.0" in packages["av"]["remark"]
    assert all(each["licence"] for each in packages.values())
    assert main(["licenses"]) == 0
    assert "x264" in capsys.readouterr().out


def test_doctor_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json"])
    findings = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["cpu"]["found"]
    assert findings["write H.264"]["found"]
    assert {"openvino", "native", "AVX2", "AMX BF16", "model 'default'", "webcam"} <= set(findings)
    main(["doctor"])
    assert "onnxruntime" in capsys.readouterr().out


def test_doctor_names_the_command_that_adds_an_engine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    main(["doctor", "--json"])
    findings = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["openvino"]["found"] is False
    assert findings["openvino"]["command"] == "pip install 'vosrt[openvino]'"


@pytest.mark.parametrize(("module", "name"), [("cv2", "OpenCV"), ("av", "PyAV"), ("onnxruntime", "cpu")])
def test_doctor_survives_what_it_looks_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    """A package that cannot be imported, as OpenCV without libGL, is a line of the table and exit code 1."""
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "openvino", None)  # one engine is enough
    assert main(["doctor", "--json"]) == 1
    findings = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["findings"]}
    assert (findings[name]["found"], findings[name]["needed"]) == (False, True)
    assert findings[name]["command"].startswith("pip install")


def test_help_needs_no_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "--mask" in printed
    assert "\n  demo " in printed


def test_what_a_source_had_to_mend_is_in_the_summary_and_the_results_keep_their_numbers(project: Project) -> None:
    wide = project.root / "wide.mp4"
    write_video(
        wide,
        (scene(t)[0] for t in range(COUNT)),
        pix_fmt="yuv444p",
        encoder={"crf": "10", "bf": "0", "g": "3"},
        options={"movflags": "+faststart"},
        prepare=lambda stream: setattr(stream.codec_context, "sample_aspect_ratio", Fraction(2)),
    )
    data = bytearray(wide.read_bytes())
    with av.open(str(wide)) as container:
        packet = next(packet for place, packet in enumerate(container.demux(video=0)) if place == 4)
        assert packet.pos is not None
        data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    wide.write_bytes(data)
    assert project.segment("--mask", str(project.mask), "--quiet", source=wide) == 0
    summary = json.loads((project.out / "summary.json").read_text())
    assert summary["complete"]
    assert summary["frames"] == COUNT - 1
    assert len(summary["warnings"]) == 1
    assert "frame 4 could not be decoded and is left out" in summary["warnings"][0]
    assert sorted(read_masks(project.out / "masks")) == [f"{t:05d}.png" for t in range(COUNT) if t != 4]
    with av.open(str(project.out / "overlay.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == 2
        assert [frame.time for frame in container.decode(video=0)] == [t / 10 for t in range(COUNT) if t != 4]
