"""Render the clip of `vos-run demo`, two balloons over hills, and the outlines of both on its first frame.

    python -m benchmarks.scenes.demo_clip

It writes runtime/src/vosrt/cli/demo.mp4 and demo.json, and draws everything in the picture, so that the clip has the
licence of the code.
"""

from __future__ import annotations

import json
import math

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import ROOT

FOLDER = ROOT / "runtime" / "src" / "vosrt" / "cli"
WIDTH, HEIGHT, FRAMES, FPS = 512, 288, 60, 24
FINE = 3  # pixels drawn per pixel and axis, averaged at the end
Picture = NDArray[np.uint8]
Outline = NDArray[np.float64]  # [n, 2], x and y in pixels of the clip

# Stripes from the left to the right, BGR.
RED = [(38, 38, 200), (60, 160, 245), (38, 38, 200), (225, 235, 240), (38, 38, 200), (60, 160, 245), (38, 38, 200)]
BLUE = [(170, 90, 30), (235, 235, 225), (170, 90, 30), (70, 200, 235), (170, 90, 30), (235, 235, 225), (170, 90, 30)]


def noise(rng: np.random.Generator, height: int, width: int, cell: int) -> NDArray[np.float32]:
    """Smooth noise in 0 .. 1 with details of many sizes."""
    total = np.zeros((height, width), np.float32)
    weight = 1.0
    while cell >= 4:
        grid = rng.random((height // cell + 3, width // cell + 3), np.float32)
        total += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        cell, weight = cell // 2, weight / 2
    low, high = np.percentile(total, [1, 99])
    return np.clip((total - low) / (high - low), 0, 1)


def landscape() -> Picture:
    """Sky with clouds, and three ranges of hills, wider than a frame."""
    height, width = HEIGHT * FINE, (WIDTH + 120) * FINE
    rng = np.random.default_rng(7)
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    sky = (1 - down) * np.array([214, 150, 84], np.float32) + down * np.array([236, 220, 196], np.float32)
    cloud = np.clip(noise(rng, height, width, 256 * FINE // 2) * 2.2 - 1.1, 0, 1)[..., None] * (1 - down)
    picture = sky * (1 - 0.85 * cloud) + 250 * 0.85 * cloud
    for level, colour, wave in (
        (0.62, (150, 140, 112), 0.06),
        (0.74, (92, 128, 84), 0.07),
        (0.86, (58, 104, 70), 0.05),
    ):
        x = np.arange(width) / width
        ridge = level + wave * sum(
            math.pow(0.55, k) * np.sin(2 * np.pi * (1.7**k * 1.3 * x + rng.random())) for k in range(4)
        )
        texture = 0.75 + 0.5 * noise(rng, height, width, 24 * FINE)
        below = np.arange(height)[:, None] > ridge[None] * height
        picture[below] = (np.array(colour, np.float32) * texture[..., None])[below]
    return np.clip(picture, 0, 255).astype(np.uint8)


def balloon_outline(x: float, y: float, radius: float, lean: float) -> Outline:
    """Envelope, ropes and basket in one outline."""
    angles = np.radians(np.linspace(-228, 48, 60))
    envelope = np.stack([np.cos(angles), np.sin(angles) * 1.08], axis=1) * radius
    neck, deep = 0.2 * radius, 1.62 * radius
    basket = np.array([(neck, 1.34 * radius), (neck, deep), (-neck, deep), (-neck, 1.34 * radius)])
    points = np.concatenate([envelope, basket])
    turn = np.array([[math.cos(lean), -math.sin(lean)], [math.sin(lean), math.cos(lean)]])
    return points @ turn.T + (x, y)


def draw_balloon(
    picture: Picture, colours: list[tuple[int, int, int]], x: float, y: float, radius: float, lean: float
) -> None:
    """Stripes that curve with the envelope, light from the upper left, a basket on ropes."""
    outline = np.round(balloon_outline(x, y, radius, lean) * FINE * 16).astype(np.int32)
    inside = np.zeros(picture.shape[:2], np.uint8)
    cv2.fillPoly(inside, [outline], 255, cv2.LINE_8, 4)
    rows, columns = np.nonzero(inside)
    dx, dy = columns / FINE - x, rows / FINE - y
    u, v = (dx * math.cos(lean) + dy * math.sin(lean)) / radius, (dy * math.cos(lean) - dx * math.sin(lean)) / radius
    half = np.sqrt(np.clip(1 - np.clip(v / 1.08, -1, 0.97) ** 2, 0.06, 1))
    across = np.arcsin(np.clip(u / half, -1, 1)) / np.pi + 0.5
    stripe = np.clip((across * len(colours)).astype(int), 0, len(colours) - 1)
    shade = np.clip(1.06 - 0.42 * (0.75 * u + 0.5 * v + 0.45) ** 2 - 0.1 * v, 0.5, 1.1)
    colour = np.array(colours, np.float32)[stripe]
    band = np.abs(v - 0.05) < 0.13
    colour[band] = np.array(colours[3], np.float32)
    colour[v > 1.02] = np.array(colours[0], np.float32) * 0.7  # skirt and ropes
    colour[v > 1.34] = np.array(colours[0], np.float32) * 0.45  # basket
    picture[rows, columns] = np.clip(colour * shade[:, None], 0, 255).astype(np.uint8)


def places(frame: int) -> list[tuple[list[tuple[int, int, int]], float, float, float, float]]:
    """Both balloons, the farther one first: colours, centre, radius and lean."""
    t = frame / (FRAMES - 1)
    sway = math.sin(2 * math.pi * t)
    return [
        (BLUE, 372 - 150 * t, 96 + 26 * t + 4 * sway, 36 + 6 * t, 0.06 * sway),
        (RED, 128 + 190 * t, 148 - 42 * t - 5 * sway, 58 + 8 * t, -0.07 * sway),
    ]


def render() -> list[Picture]:
    """The frames, u8 [HEIGHT, WIDTH, 3] BGR."""
    wide, frames = landscape(), []
    for frame in range(FRAMES):
        left = 60 * FINE * frame / (FRAMES - 1)
        shift = np.array([[1, 0, -left], [0, 1, 0]], np.float64)
        fine = np.asarray(cv2.warpAffine(wide, shift, (WIDTH * FINE, HEIGHT * FINE)), np.uint8)
        for colours, x, y, radius, lean in places(frame):
            draw_balloon(fine, colours, x, y, radius, lean)
        frames.append(np.asarray(cv2.resize(fine, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), np.uint8))
    return frames


def main() -> None:
    """Write the clip and the outlines."""
    with av.open(str(FOLDER / "demo.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "25", "preset": "veryslow"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in render():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        container.mux(stream.encode())
    objects = [
        {
            "id": number,
            "name": name,
            "polygons": [[[round(float(a), 1), round(float(b), 1)] for a, b in balloon_outline(*place)]],
        }
        for number, (name, (_, *place)) in enumerate(
            zip(("blue balloon", "red balloon"), places(0), strict=True), start=1
        )
    ]
    text = json.dumps({"size": [WIDTH, HEIGHT], "objects": objects})
    (FOLDER / "demo.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
