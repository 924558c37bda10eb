"""Contact sheets of pseudo-masks, one picture per video (after figure S1 of Li et al. 2023)."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from vosrt.types import U8Array
from vosrt_train.data.cache import CachedVideo
from vosrt_train.masks.clustering.foreground import ClusterMap
from vosrt_train.masks.clustering.store import PseudoMasks

_COLUMNS = 6
_HEIGHT = 120  # pixels of a tile
_GAP = 2
_OPACITY = 0.6
_DIMMED = 0.35
_OBJECT_COLOURS = ((255, 70, 60), (60, 190, 255), (255, 210, 50), (120, 230, 90))


def draw_sheet(video: CachedVideo, versions: Sequence[tuple[str, PseudoMasks]]) -> Image.Image:
    """Draw frames of a video, and below them the clusters and pseudo-masks of each version.

    Args:
        versions: title and masks, e.g. initial and final; each must have the video.

    Returns:
        An RGB image.
    """
    frames = video.open()
    rows: list[tuple[str, list[U8Array]]] = []
    shown = _pick(versions[-1][1].entries[video.name].frames)
    rows.append((video.name, [_tile(frames[number]) for number in shown]))
    for title, masks in versions:
        entry, maps = masks.entries[video.name], masks.maps(video.name)
        objects = masks.masks(video.name)
        near = [_nearest(maps, number) for number in shown]
        clusters = [_tint(frames[number], maps[number], _cluster_colours(len(entry.facts))) for number in near]
        rows.append((f"{title}: clusters", clusters))
        verdict = entry.reason or f"{len(entry.objects)} objects, flicker {entry.flicker:.0%}"
        rows.append((f"{title}: {verdict}", [_highlight(frames[number], objects[number]) for number in near]))
    return _compose(rows)


def write_sheets(
    videos: Sequence[CachedVideo], versions: Sequence[tuple[str, PseudoMasks]], directory: Path
) -> list[Path]:
    """Write a sheet for each video that all versions have, and return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for video in videos:
        if all(video.name in masks.entries for _, masks in versions):
            path = directory / f"{video.name.replace('/', '-')}.jpg"
            draw_sheet(video, versions).save(path, quality=88)
            paths.append(path)
    return paths


def _pick(numbers: Sequence[int]) -> list[int]:
    """Choose at most a row of frames, evenly spaced."""
    places = np.linspace(0, len(numbers) - 1, min(_COLUMNS, len(numbers)))
    return [numbers[round(place)] for place in places]


def _nearest(numbers: Iterable[int], target: int) -> int:
    return min(numbers, key=lambda number: abs(number - target))


def _tile(frame: U8Array) -> U8Array:
    width = round(frame.shape[1] * _HEIGHT / frame.shape[0])
    return np.asarray(cv2.resize(frame, (width, _HEIGHT), interpolation=cv2.INTER_AREA), np.uint8)


def _tint(frame: U8Array, clusters: ClusterMap, colours: U8Array) -> U8Array:
    tile = _tile(frame)
    colour = cv2.resize(colours[clusters], tile.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return np.round((1 - _OPACITY) * tile + _OPACITY * colour).astype(np.uint8)


def _highlight(frame: U8Array, objects: ClusterMap) -> U8Array:
    """Draw objects in their colours, and dim the background."""
    tile = _tile(frame)
    numbers = cv2.resize(objects, tile.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    out = _DIMMED * tile
    for number in range(1, int(numbers.max(initial=0)) + 1):
        colour = np.array(_OBJECT_COLOURS[(number - 1) % len(_OBJECT_COLOURS)])
        out[numbers == number] = 0.5 * tile[numbers == number] + 0.5 * colour
    return np.round(out).astype(np.uint8)


def _cluster_colours(count: int) -> U8Array:
    """u8 [count, 3], evenly spaced hues."""
    hues = [colorsys.hsv_to_rgb(number / count, 0.8, 0.95) for number in range(count)]
    return np.round(255 * np.array(hues)).astype(np.uint8)


def _compose(rows: list[tuple[str, list[U8Array]]]) -> Image.Image:
    title = 14
    width = max(sum(tile.shape[1] + _GAP for tile in tiles) for _, tiles in rows)
    sheet = Image.new("RGB", (width, len(rows) * (_HEIGHT + title)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (text, tiles) in enumerate(rows):
        top, left = number * (_HEIGHT + title), 0
        draw.text((2, top + 1), text, fill="black")
        for tile in tiles:
            sheet.paste(Image.fromarray(tile), (left, top + title))
            left += tile.shape[1] + _GAP
    return sheet
