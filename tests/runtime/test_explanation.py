"""A pixel explained: the votes are what the label was read from, in Python and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.fakes.bundles import cast_encoder, write_bundle
from vosrt import InputError, Model, PropagationOptions
from vosrt.bundle import EncoderSpec
from vosrt.cli.run import main
from vosrt.explanation import explain
from vosrt.types import U8Array

HEIGHT, WIDTH, COUNT = 64, 96, 6


def scene(t: int) -> tuple[U8Array, U8Array]:
    """A red square that moves over a texture; picture and truth."""
    image = np.random.default_rng(3).integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    truth[16:48, 8 + 5 * t : 40 + 5 * t] = 1
    image[truth == 1] = (20, 20, 240)
    return image, truth


@pytest.fixture
def model(fake_bundle: Path) -> Model:
    return Model.load(fake_bundle, engine="fake", threads=1)


@pytest.mark.parametrize("parts", [1, 2])
def test_weighted_votes_are_the_soft_mask(tmp_path: Path, parts: int) -> None:
    encoder = EncoderSpec(channels=32, feature="res3", align_corners=parts == 1)
    model = Model.load(
        write_bundle(tmp_path / "b", cast_encoder(32), channels=32, encoder=encoder), engine="fake", threads=1
    )
    options = PropagationOptions(context=3, top_k=4, sharpness=1.0, object_bias=0.0, parts=parts)
    with model.stream(options=options) as stream:
        soft = []
        for t in range(COUNT):
            stream.step(scene(t)[0], scene(0)[1] if t == 0 else None)
            soft.append(stream.soft_masks())
        for y, x in ((0, 0), (30, 60), (40, 90), (HEIGHT - 1, WIDTH - 1)):
            found = stream.explain(y, x)
            assert found.frame == COUNT - 1
            assert found.grid == soft[0].shape[:2]
            assert {vote.frame for vote in found.votes} <= {0, 2, 3, 4}  # the reference and three recent frames
            weights = [vote.weight for vote in found.votes]
            assert weights == sorted(weights, reverse=True)
            assert sum(weights) == pytest.approx(1, abs=1e-5)
            read = sum(vote.weight * soft[vote.frame][vote.cell] for vote in found.votes)
            np.testing.assert_allclose(read, soft[-1][found.cell], atol=2e-3)


@pytest.mark.parametrize("align_corners", [True, False])
def test_cells_and_pixels_are_each_others_inverse(align_corners: bool) -> None:
    """A cell that looks at its like in the frame before is explained by it, at its own pixel."""
    from vosrt.core.memory import create_memory

    keys = np.eye(20, dtype=np.float32).reshape(4, 5, 20)
    options = PropagationOptions(context=1, radius=1, top_k=1, centring=0.0)
    memory, _ = create_memory(4, 5, 20, options, align_corners=align_corners, precision="fp32", threads=1)
    memory.push(keys)
    memory.annotate(np.ones((32, 40), np.uint8))
    memory.push(keys)
    for cell in np.ndindex(4, 5):
        near = explain(memory, options.temperature, (32, 40), 0, 0).votes[0]
        assert near.cell == (0, 0)
        y, x = (
            (side * (pixels - 1) / (cells - 1) if align_corners else (side + 0.5) * pixels / cells - 0.5)
            for side, cells, pixels in zip(cell, (4, 5), (32, 40), strict=True)
        )
        found = explain(memory, options.temperature, (32, 40), round(y), round(x))
        assert (found.cell, found.votes[0].cell) == (cell, cell)
        assert (found.votes[0].y, found.votes[0].x) == pytest.approx((y, x), abs=0.01)


def test_what_cannot_be_explained_is_refused(model: Model) -> None:
    with model.stream() as stream:
        with pytest.raises(InputError, match="before the first frame"):
            stream.explain(0, 0)
        stream.start(*scene(0))
        with pytest.raises(InputError, match="has them"):
            stream.explain(0, 0)
        stream.step(scene(1)[0])
        stream.explain(0, 0)
        with pytest.raises(InputError, match=f"0,0 to {WIDTH - 1},{HEIGHT - 1}"):
            stream.explain(0, WIDTH)
        session = stream.save()
    with model.stream() as loaded:
        loaded.load(session)
        with pytest.raises(InputError, match="from its start"):
            loaded.explain(0, 0)


@pytest.fixture
def clip(tmp_path: Path) -> list[str]:
    """Arguments that name a clip, its mask and the fake engine."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for t in range(COUNT):
        cv2.imwrite(str(folder / f"{t:03d}.png"), scene(t)[0])
    cv2.imwrite(str(tmp_path / "mask.png"), scene(1)[1])
    return ["explain", str(folder), "--mask", f"1:{tmp_path / 'mask.png'}", "--engine", "fake"]


def test_the_command_writes_a_picture_and_a_document(
    clip: list[str], fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shared = [*clip, "--bundle", str(fake_bundle), "--out", str(out), "--frame", "5", "--pixel", "40,30"]
    assert main(shared) == 0
    assert "Pixel 40,30 of frame 5 is object 1" in capsys.readouterr().out
    document = json.loads((out / "explained.json").read_text())
    assert document["object"] == 1
    assert {vote["frame"] for vote in document["votes"]} <= set(range(1, 5))
    assert sum(vote["weight"] for vote in document["votes"]) == pytest.approx(1, abs=1e-3)
    assert max(document["votes"], key=lambda vote: vote["weight"])["object"] == 1
    assert cv2.imread(str(out / "explained.jpg")) is not None
    assert main(shared) == 2
    assert main([*shared, "--overwrite", "--json"]) == 0


@pytest.mark.parametrize(
    ("frame", "pixel", "message"),
    [
        ("5", "40;30", "expected X,Y"),
        ("5", "400,30", "outside the frame"),
        ("1", "40,30", "has the first marks"),
        ("60", "40,30", "has 6 frames"),
    ],
)
def test_the_command_refuses_in_one_line(
    clip: list[str],
    fake_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    frame: str,
    pixel: str,
    message: str,
) -> None:
    out = tmp_path / "out"
    assert main([*clip, "--bundle", str(fake_bundle), "--out", str(out), "--frame", frame, "--pixel", pixel]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1]
    assert not out.exists()
