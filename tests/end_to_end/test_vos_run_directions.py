"""``vos-run --direction``: files of both ways, refusals, and going on after an interruption."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.end_to_end.test_vos_run import COUNT, Project, count_video, read_masks, save_mask, scene
from vosrt import directions
from vosrt.cli.run import main
from vosrt.errors import WorkError
from vosrt.types import U8Array
from vosrt.video.base import SegmentedFrame
from vosrt.video.spool import Spool


@pytest.fixture
def project(tmp_path: Path, fake_bundle: Path) -> Project:
    made = Project(tmp_path, fake_bundle)
    save_mask(made.root / "middle.png", np.where(scene(6)[1] == 1, 1, 0).astype(np.uint8))
    return made


def masks_of(project: Project, name: str, *given: str) -> list[U8Array]:
    out = project.root / name
    mark = f"6:{project.root / 'middle.png'}"
    assert project.segment("--mask", mark, "--no-video", "--no-rle", "--quiet", *given, out=out) == 0
    return list(read_masks(out / "masks").values())


def test_both_ways_write_all_results_in_the_order_of_time(project: Project) -> None:
    """With one mark in the middle, each half equals that of its single direction, with numbers and times."""
    forward = masks_of(project, "forward")
    backward = masks_of(project, "backward", "--direction", "backward")
    given = ["--mask", f"6:{project.root / 'middle.png'}", "--direction", "both"]
    assert project.segment(*given, "--cutout", "png", "--polygons", "coco", "--json") == 0
    both = list(read_masks(project.out / "masks").values())
    assert len(both) == COUNT
    for t in range(COUNT):
        np.testing.assert_array_equal(both[t], forward[t] if t >= 6 else backward[t])
        assert both[t].any()
    assert not forward[5].any()
    assert not backward[7].any()
    lines = [json.loads(line) for line in (project.out / "masks.jsonl").read_text().splitlines()]
    assert [(line["frame"], line["time_s"]) for line in lines] == [(t, t / 10) for t in range(COUNT)]
    with (project.out / "objects.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["frame"]), int(row["object"]), int(row["area_px"])) for row in rows] == [
        (t, 1, int((both[t] == 1).sum())) for t in range(COUNT)
    ]
    assert all(0 < float(row["confidence"]) <= 1 for row in rows)
    assert len(list((project.out / "cutout").iterdir())) == COUNT
    assert (project.out / "coco.json").is_file()
    assert count_video(project.out / "overlay.mp4") == COUNT
    summary = json.loads((project.out / "summary.json").read_text())
    assert (summary["frames"], summary["direction"], summary["complete"]) == (COUNT, "both", True)


def test_a_range_and_an_earlier_result_are_respected(project: Project) -> None:
    whole = masks_of(project, "out", "--direction", "backward", "--end", "9")
    part = masks_of(project, "out", "--direction", "backward", "--start", "3", "--end", "9", "--overwrite")
    assert (len(whole), len(part)) == (9, 6)
    for found, expected in zip(part, whole[3:], strict=True):
        np.testing.assert_array_equal(found, expected)


def test_an_interrupted_run_goes_on(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way back is taken again, to where the results end; they are those of a run without interruption."""
    whole = masks_of(project, "whole", "--direction", "both")
    write, written = directions.Fused.write, 0

    def interrupted(self: Any, item: Any) -> None:
        nonlocal written
        if written == 4:
            raise WorkError("stopped by the test")
        written += 1
        write(self, item)

    given = ["--mask", f"6:{project.root / 'middle.png'}", "--no-video", "--no-rle", "--quiet", "--direction", "both"]
    given += ["--save-every", "0.000001"]
    with monkeypatch.context() as patch:
        patch.setattr(directions.Fused, "write", interrupted)
        assert project.segment(*given) == 1
    assert len(read_masks(project.out / "masks")) == 4
    met: list[int] = []
    put = Spool.put

    def noted(self: Spool, index: int, item: SegmentedFrame) -> None:
        met.append(index)
        put(self, index, item)

    monkeypatch.setattr(Spool, "put", noted)
    assert project.segment(*given, "--resume") == 0
    assert met == [6, 5, 4]
    for found, expected in zip(read_masks(project.out / "masks").values(), whole, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("source", "direction", "text"),
    [
        ("0", "both", "--direction both reads frames a second time, which 0 does not allow"),
        ("-", "backward", "--direction backward reads frames a second time, which - does not allow"),
        ("rtsp://127.0.0.1:1/x", "both", "does not allow; give a video file or a folder of frames"),
        ("clip", "sideways", "--direction is 'sideways'; expected forward, backward or both"),
    ],
)
def test_what_cannot_be_read_again_is_refused(
    project: Project, capsys: pytest.CaptureFixture[str], source: str, direction: str, text: str
) -> None:
    before = project.listing()
    given = ["--mask", str(project.mask), "--direction", direction]
    assert main(project.arguments(str(project.clip) if source == "clip" else source, *given)) == 2
    errors = capsys.readouterr().err
    assert text in errors
    assert len(errors.splitlines()) == 1
    assert project.listing() == before
