"""The README's picture: a rendered scene, segmented by `vos-run`, as a strip of its overlay.

    python -m benchmarks.scenes.picture                            # writes results/overlay.jpg
    python -m benchmarks.scenes.picture --davis FOLDER --frames 4  # the scene as a data set in the DAVIS layout instead

A striped ball rolls behind a spotted box while the camera pans over noise. Nothing in it is anybody else's.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import av
import cv2
import numpy as np

from benchmarks.machine import RESULTS, parser_of
from vosrt.cli.run import main as vos_run
from vosrt.types import U8Array

HEIGHT, WIDTH, FRAMES, SHOWN = 480, 854, 60, (0, 20, 40, 59)


def texture(seed: int, size: int, low: tuple[int, int, int], high: tuple[int, int, int]) -> U8Array:
    """Smooth noise between two colours, u8 [size, size, 3]."""
    random = np.random.default_rng(seed)
    noise = sum(
        cv2.resize(random.random((cells, cells)), (size, size), interpolation=cv2.INTER_CUBIC) / 2**octave
        for octave, cells in enumerate((6, 14, 40, 120))
    )
    share = ((noise - noise.min()) / np.ptp(noise))[..., None]
    return (np.array(low) * (1 - share) + np.array(high) * share).astype(np.uint8)


def render(t: int) -> tuple[U8Array, U8Array]:
    """Frame u8 [H, W, 3] BGR and its objects u8 [H, W] at time t."""
    ground = texture(1, 1400, (60, 70, 40), (150, 190, 170))
    frame = ground[200 + t : 200 + t + HEIGHT, 80 + 4 * t : 80 + 4 * t + WIDTH].copy()
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)

    cx, cy, radius = 180 + 7.0 * t, 250 + 40 * np.sin(t / 9), 78
    ball = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
    turn = t / 8
    along = ((x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)) / radius
    stripes = np.where((np.floor(along * 4) % 2 == 0)[..., None], (40, 60, 210), (235, 235, 240))
    shade = np.clip(1.1 - 0.5 * np.hypot(x - cx + 25, y - cy + 30) / radius, 0.35, 1.1)[..., None]
    frame[ball] = np.clip(stripes * shade, 0, 255).astype(np.uint8)[ball]
    labels[ball] = 1

    left, top = 470 - 2 * t, 190 + t // 2
    box = (x > left) & (x < left + 150) & (y > top) & (y < top + 210)
    spots = texture(5, 220, (110, 60, 20), (220, 160, 60))
    for i in range(12):
        cv2.circle(spots, (20 + 45 * (i % 3) + 5, 25 + 50 * (i // 3)), 13, (30, 210, 240), -1)
    rows, columns = np.nonzero(box)
    frame[rows, columns] = spots[(rows - top - 1) % 220, (columns - left - 1) % 220]
    labels[box] = 2
    return cv2.GaussianBlur(frame, (0, 0), 0.8), labels


def write_davis(root: Path, frames: int) -> None:
    """Write the first frames and the masks of both objects as the sequence `scene` of a DAVIS folder."""
    images, annotations = (root / kind / "480p" / "scene" for kind in ("JPEGImages", "Annotations"))
    for folder in (images, annotations):
        folder.mkdir(parents=True, exist_ok=True)
    for t in range(frames):
        image, labels = render(t)
        cv2.imwrite(str(images / f"{t:05d}.jpg"), image)
        cv2.imwrite(str(annotations / f"{t:05d}.png"), labels)


def main() -> None:
    """Parse options; render, segment, write the strip, or write the data set."""
    parser = parser_of(__doc__, toy=False)
    parser.add_argument("--davis", type=Path, metavar="FOLDER", help="write a data set instead")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of the data set")
    options = parser.parse_args()
    if options.davis:
        write_davis(options.davis, options.frames)
        return
    with tempfile.TemporaryDirectory() as folder:
        frames, out = Path(folder) / "frames", Path(folder) / "out"
        frames.mkdir()
        for t in range(FRAMES):
            image, labels = render(t)
            cv2.imwrite(str(frames / f"{t:05d}.png"), image)
            if t == 0:
                cv2.imwrite(str(Path(folder) / "first.png"), labels)
        code = vos_run([str(frames), "--mask", str(Path(folder) / "first.png"), "-o", str(out), "--quiet"])
        if code:
            raise SystemExit(code)
        with av.open(str(out / "overlay.mp4")) as video:
            overlay = [frame.to_ndarray(format="bgr24") for frame in video.decode(video=0)]
    tiles = [
        cv2.resize(overlay[t][:HEIGHT, :WIDTH], (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA) for t in SHOWN
    ]
    strip = np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])])
    RESULTS.mkdir(exist_ok=True)
    cv2.imwrite(str(RESULTS / "overlay.jpg"), strip, [cv2.IMWRITE_JPEG_QUALITY, 88])
    print(RESULTS / "overlay.jpg")


if __name__ == "__main__":
    main()
