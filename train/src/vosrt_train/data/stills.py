"""Clips made from photographs: a camera that moves over a still, and in half of the clips an object that passes.

Stills alone teach correspondence nearly as well as videos do (HVC, 2024), and most people have more of them. Every
clip depends on the seed and on its number alone.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from vosrt._files import write_file
from vosrt.console import progress_bar
from vosrt.errors import InputError, OptionError, OutputError
from vosrt.types import F32Array, U8Array
from vosrt.video.images import list_images, read_image

F64 = NDArray[np.float64]

FPS = 24
_RADIUS_HARMONICS = 4  # of the outline of an object


@dataclass(frozen=True)
class StillsRequest:
    """What to make.

    Attributes:
        output: folder for the clips; created.
        clips: number of clips; 0 makes one of each still.
        height: of a clip in pixels, even; its width is 16 / 9 of that.
        objects: share of the clips that an object passes.
    """

    stills: Path
    output: Path
    clips: int = 0
    frames: int = 60
    height: int = 480
    objects: float = 0.5
    seed: int = 0


def make_clips(request: StillsRequest, *, quiet: bool = False) -> list[Path]:
    """Write the clips as H.264; a clip that exists already is left alone, so that an interrupted call can be repeated.

    Returns:
        The files, in order.

    Raises:
        OptionError: a size or count is out of range.
        InputError: the folder has no image that can be read.
        OutputError: the folder cannot be created.
        WorkError: a file cannot be written.
    """
    if request.height < 32 or request.height % 2 or request.frames < 2 or request.clips < 0:
        raise OptionError(
            f"height {request.height}, {request.frames} frames, {request.clips} clips; expected an even height of 32 "
            "or more, 2 frames or more, and 0 clips (one of each still) or more"
        )
    if not 0 <= request.objects <= 1:
        raise OptionError(f"objects is {request.objects}; expected a share from 0 to 1")
    stills = list_images(request.stills)
    if not stills:
        raise InputError(f"{request.stills}: no image; expected a folder of JPEG or PNG files")
    try:
        request.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{request.output}: cannot be created ({error.strerror}); name another folder") from error
    count, written = request.clips or len(stills), []
    with progress_bar(visible=not quiet) as bar:
        task = bar.add_task("clips", total=count, figures="")
        for number in range(count):
            still = stills[number % len(stills)]
            path = request.output / f"{number:05d}_{still.stem}.mp4"
            if not path.exists():
                random = np.random.default_rng([request.seed, number])
                other = stills[int(random.integers(len(stills)))] if random.random() < request.objects else None
                _write(path, render(_read(still), None if other is None else _read(other), request, random))
            written.append(path)
            bar.advance(task)
    return written


def render(still: U8Array, other: U8Array | None, request: StillsRequest, random: np.random.Generator) -> list[U8Array]:
    """Render a clip.

    Args:
        still: u8 [H, W, 3], the scene.
        other: u8 [H, W, 3], whose texture the passing object has; None has no object.
        request: number and size of the frames.

    Returns:
        u8 [height, width, 3] a frame, in the order of the channels of ``still``.
    """
    size = 2 * round(request.height * 8 / 9), request.height
    camera = _Motion(random, zoom=0.2, turn=0.15, shift=0.12, tilt=0.12)
    light, focus = _Wave(random, 0.15), _Wave(random, 1.0)
    passing = None if other is None else _Passing(other, size, random)
    frames = []
    for time in np.linspace(0, 1, request.frames).tolist():
        frame: U8Array = np.asarray(
            cv2.warpPerspective(
                still,
                camera.at(time, still.shape[1::-1], size),
                size,
                flags=cv2.INTER_CUBIC,
                borderMode=cv2.BORDER_REFLECT,
            ),
            np.uint8,
        )
        if passing is not None:
            frame = passing.over(frame, time)
        blur = abs(focus.at(time))
        if blur > 0.3:
            frame = np.asarray(cv2.GaussianBlur(frame, (0, 0), blur * request.height / 480), np.uint8)
        noise = random.normal(0, 2, frame.shape).astype(np.float32)
        frames.append(np.asarray(np.clip(frame * np.float32(1 + light.at(time)) + noise, 0, 255), np.uint8))
    return frames


class _Wave:
    """A smooth random function of time in [0, 1], within ± `reach`: a slow and a faster oscillation."""

    def __init__(self, random: np.random.Generator, reach: float) -> None:
        self._reach = reach * random.uniform(0.3, 1)
        self._rates, self._phases = random.uniform([0.2, 0.8], [0.8, 2.0]), random.uniform(0, 2 * np.pi, 2)

    def at(self, time: float) -> float:
        slow, fast = np.sin(2 * np.pi * self._rates * time + self._phases)
        return float(self._reach * (0.75 * slow + 0.25 * fast))


class _Motion:
    """A smooth random homography, from places in an image to places in a frame."""

    def __init__(self, random: np.random.Generator, *, zoom: float, turn: float, shift: float, tilt: float) -> None:
        reaches = (zoom, turn, shift, shift, tilt, tilt)
        self._zoom, self._turn, self._right, self._down, self._yaw, self._pitch = (_Wave(random, r) for r in reaches)

    def at(self, time: float, image: tuple[int, int], frame: tuple[int, int], *, cover: float = 1.3) -> F64:
        """Return the homography at a time.

        Args:
            time: in [0, 1].
            image: width and height of the image in pixels.
            frame: width and height of the frame in pixels.
            cover: times the size at which the image just covers the frame, at rest.

        Returns:
            f64 [3, 3].
        """
        width, height = frame
        scale = cover * max(width / image[0], height / image[1]) * math.exp(self._zoom.at(time))
        cos, sin = scale * math.cos(self._turn.at(time)), scale * math.sin(self._turn.at(time))
        centred = np.array([[1, 0, -image[0] / 2], [0, 1, -image[1] / 2], [0, 0, 1]])
        right, down = self._right.at(time) * width, self._down.at(time) * height
        similarity = np.array([[cos, -sin, right], [sin, cos, down], [0, 0, 1]])
        tilted = np.array([[1, 0, 0], [0, 1, 0], [self._yaw.at(time) / width, self._pitch.at(time) / height, 1]])
        back = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
        homography: F64 = back @ tilted @ similarity @ centred
        return homography


class _Passing:
    """An object that enters at one side of the frame and leaves at another, with a texture and a motion of its own."""

    def __init__(self, texture: U8Array, frame: tuple[int, int], random: np.random.Generator) -> None:
        self._texture, self._frame = texture, frame
        self._outline = _outline(texture.shape[:2], random)
        self._motion = _Motion(random, zoom=0.15, turn=0.4, shift=0.08, tilt=0.1)
        self._size = random.uniform(0.25, 0.55)
        angle = random.uniform(0, 2 * np.pi)
        self._way = np.array([math.cos(angle), math.sin(angle)]) * np.array(frame) * (0.5 + self._size)
        self._aside = np.array([-math.sin(angle), math.cos(angle)]) * np.array(frame) * random.uniform(-0.2, 0.2)

    def over(self, frame: U8Array, time: float) -> U8Array:
        """Draw the object over a frame."""
        shape = self._texture.shape[1::-1]
        right, down = self._way * (2 * time - 1) + self._aside
        moved = np.array([[1, 0, right], [0, 1, down], [0, 0, 1]])
        homography = moved @ self._motion.at(time, shape, self._frame, cover=self._size)
        texture = cv2.warpPerspective(self._texture, homography, self._frame, borderMode=cv2.BORDER_REPLICATE)
        alpha = cv2.warpPerspective(self._outline, homography, self._frame)[..., None]
        return np.asarray(alpha * texture + (1 - alpha) * frame, np.uint8)


def _outline(shape: tuple[int, int], random: np.random.Generator) -> F32Array:
    """Draw a random star-shaped region: f32 [H, W], 1 inside, 0 outside and at the border, soft between."""
    height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y, x = 2 * y / (height - 1) - 1, 2 * x / (width - 1) - 1
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    limit = np.full_like(angle, 0.65)
    for harmonic in range(1, _RADIUS_HARMONICS + 1):
        limit += random.uniform(0, 0.25 / harmonic) * np.sin(harmonic * angle + random.uniform(0, 2 * np.pi))
    edge = 2 / min(height, width)  # about a pixel, in the units of the radius
    inside: F32Array = np.clip((np.clip(limit, 0.2, 0.95) - radius) / edge + 0.5, 0, 1).astype(np.float32)
    return inside


def _read(path: Path) -> U8Array:
    image = read_image(path)
    if image is None or image.dtype != np.uint8:
        raise InputError(f"{path}: cannot be read as an image of 8 bits; remove it or convert it to JPEG or PNG")
    return np.ascontiguousarray(image)


def _write(path: Path, frames: list[U8Array]) -> None:
    """Encode frames u8 [H, W, 3] BGR."""
    encoded = io.BytesIO()
    with av.open(encoded, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "20", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        container.mux(stream.encode(None))
    write_file(path, encoded.getvalue())
