"""NumPy twins of the native operations: the definition of correct, and the fallback where no compiler was.

Pure functions, written to be read next to the formulas, not to be fast. Symbols as in :mod:`vosrt.types`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vosrt.errors import MaskError
from vosrt.types import F32Array, I32Array, U8Array, Window

_RESIZE_BITS = 11
_ONE = 1 << _RESIZE_BITS


def resize_bgr(image: U8Array, height: int, width: int) -> U8Array:
    """Resize an image: bilinear, pixel centres at half-integers, edges repeated, no antialiasing.

    All arithmetic is on integers (11-bit weights), so that every implementation gives the same bytes.

    Args:
        image: u8 [H, W, 3].
        height: rows of the result.
        width: columns of the result.

    Returns:
        u8 [height, width, 3].
    """
    top, bottom, wy = _integer_taps(image.shape[0], height)
    left, right, wx = _integer_taps(image.shape[1], width)
    wy, wx = wy[:, None, None], wx[None, :, None]
    pixels = image.astype(np.int64)
    upper = (_ONE - wx) * pixels[top][:, left] + wx * pixels[top][:, right]
    lower = (_ONE - wx) * pixels[bottom][:, left] + wx * pixels[bottom][:, right]
    total = (_ONE - wy) * upper + wy * lower
    half = 1 << (2 * _RESIZE_BITS - 1)
    return ((total + half) >> (2 * _RESIZE_BITS)).astype(np.uint8)


def _integer_taps(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """First tap, second tap and the second tap's weight (0 to 2048), each i64 [target]."""
    first, past, unit = _half_pixel_positions(source, target)
    return first, np.minimum(first + 1, source - 1), (past * _ONE + target) // unit


def _half_pixel_positions(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Target pixel i lies ``past[i] / unit`` behind source pixel ``first[i]``, in exact integers."""
    unit = 2 * target
    position = (2 * np.arange(target, dtype=np.int64) + 1) * source - target
    position = np.clip(position, 0, (source - 1) * unit)
    return position // unit, position % unit, unit


def resize_mask(mask: U8Array, ids: Sequence[int], height: int, width: int, *, align_corners: bool = True) -> F32Array:
    """Bring an annotation to the feature grid as one soft plane per object.

    With aligned corners, each object's one-hot plane is resized bilinearly without antialiasing, as published;
    otherwise a cell has the share of its area that the object covers. An object whose largest value is at most one half
    would be lost, so it is rescued: the cell that holds most of its pixels (each pixel counted for its nearest cell;
    the first of equals) becomes its own entirely. A rescued cell is not given away again.

    Args:
        mask: u8 [H, W], object ids.
        ids: the objects to resize, ascending.
        height: grid rows.
        width: grid columns.
        align_corners: see `EncoderSpec`.

    Returns:
        f32 [height, width, len(ids)].

    Raises:
        MaskError: every cell an object could be rescued to belongs to another rescued object.
    """
    to_grid = _sampled if align_corners else _covered
    soft = np.stack([to_grid(mask == object_id, height, width) for object_id in ids], axis=-1)
    taken = np.zeros((height, width), dtype=bool)
    while (lost := np.flatnonzero(soft.max(axis=(0, 1)) <= 0.5)).size:
        channel = lost[0]
        count = np.where(taken, 0, _pixels_per_cell(mask == ids[channel], height, width, align_corners))
        cell = np.unravel_index(np.argmax(count), count.shape)
        if count[cell] == 0:
            raise MaskError(
                f"object {ids[channel]} is too small for the {height} x {width} feature grid and shares its cell with "
                "another small object; annotate it larger, or use a larger working size"
            )
        soft[cell] = 0
        soft[(*cell, channel)] = 1
        taken[cell] = True
    return soft


def _sampled(plane: NDArray[np.bool_], height: int, width: int) -> F32Array:
    """Bilinear samples of one object's plane, corners aligned: f32 [height, width]."""
    rows, columns = _taps(plane.shape[0], height, True), _taps(plane.shape[1], width, True)
    return _sample(plane.astype(np.float32), rows, columns)


def _covered(plane: NDArray[np.bool_], height: int, width: int) -> F32Array:
    """The share of every cell's area that one object's plane covers: f32 [height, width]."""
    rows, columns = _shares(plane.shape[0], height), _shares(plane.shape[1], width)
    covered: F32Array = (rows @ plane.astype(np.float64) @ columns.T / plane.size).astype(np.float32)
    return covered


def _shares(pixels: int, cells: int) -> NDArray[np.float64]:
    """What cells have of pixels, in units of 1 / cells of a pixel: whole numbers as f64 [cells, pixels]."""
    cell, pixel = np.arange(cells)[:, None], np.arange(pixels)[None, :]
    end = np.minimum((cell + 1) * pixels, (pixel + 1) * cells)
    share: NDArray[np.float64] = np.maximum(0, end - np.maximum(cell * pixels, pixel * cells)).astype(np.float64)
    return share


def _pixels_per_cell(plane: NDArray[np.bool_], height: int, width: int, align_corners: bool) -> NDArray[np.int64]:
    """How many of a plane's pixels are nearest to each cell: i64 [height, width]."""
    y, x = np.nonzero(plane)
    count = np.zeros((height, width), dtype=np.int64)
    rows = _nearest_cell(y, plane.shape[0], height, align_corners)
    np.add.at(count, (rows, _nearest_cell(x, plane.shape[1], width, align_corners)), 1)
    return count


def _nearest_cell(pixel: NDArray[np.int64], pixels: int, cells: int, align_corners: bool) -> NDArray[np.int64]:
    """The cell around a pixel; corners aligned: round_half_up(pixel * (cells - 1) / (pixels - 1)). Exact integers."""
    if not align_corners:
        return (2 * pixel + 1) * cells // (2 * pixels)
    if pixels == 1:
        return np.zeros_like(pixel)
    return (2 * pixel * (cells - 1) + (pixels - 1)) // (2 * (pixels - 1))


class Neighbours(NamedTuple):
    """Top-k of every query cell, most similar first; NaN and -1 where there are fewer candidates than k."""

    similarity: F32Array  # [h*w, k]
    slot: I32Array  # [h*w, k]
    cell: I32Array  # [h*w, k], row-major


def match(
    query: F32Array, keys: Sequence[F32Array], local: Sequence[bool], *, window: Window, radius: float, top_k: int
) -> Neighbours:
    """Joint top-k of every query cell over all slots (Araslanov et al. 2021, appendix C).

    The order is by similarity, then slot, then cell. NaN similarities are never selected.

    Args:
        query: f32 [h, w, K], unit length per cell.
        keys: one f32 [h, w, K] per slot.
        local: per slot, whether it is attended within the window only.
        window: ``"circle"`` keeps ``sqrt(dx² + dy²) < radius``, ``"square"`` keeps ``|dx|, |dy| <= radius``.
        radius: in cells.
        top_k: neighbours kept, k.

    Returns:
        The neighbours of all h*w query cells.
    """
    height, width, _ = query.shape
    found = Neighbours(
        np.full((height * width, top_k), np.nan, dtype=np.float32),
        np.full((height * width, top_k), -1, dtype=np.int32),
        np.full((height * width, top_k), -1, dtype=np.int32),
    )
    for y in range(height):
        inside = _inside_window(y, height, width, window, radius)
        blocks = []
        for key, is_local in zip(keys, local, strict=True):
            similarity = query[y] @ key.reshape(height * width, -1).T
            usable = ~np.isnan(similarity) & (inside | (not is_local))
            blocks.append(np.where(usable, similarity, -np.inf))
        candidates = np.stack(blocks, axis=1).reshape(width, -1)
        queries = np.arange(width)
        for rank in range(min(top_k, candidates.shape[1])):
            best = np.argmax(candidates, axis=1)  # the first of equals: lower slot, then lower cell
            value = candidates[queries, best]
            kept = np.flatnonzero(value > -np.inf)
            found.similarity[y * width + kept, rank] = value[kept]
            found.slot[y * width + kept, rank] = best[kept] // (height * width)
            found.cell[y * width + kept, rank] = best[kept] % (height * width)
            candidates[queries, best] = -np.inf
    return found


def _inside_window(y: int, height: int, width: int, window: Window, radius: float) -> NDArray[np.bool_]:
    """Which cells the queries of grid row y may attend to: bool [width, height*width]."""
    reach = float(np.float32(radius))
    dy = np.arange(height)[None, :, None] - y
    dx = np.arange(width)[None, None, :] - np.arange(width)[:, None, None]
    circle = dx**2 + dy**2 < reach**2
    square = (np.abs(dx) <= reach) & (np.abs(dy) <= reach)
    inside: NDArray[np.bool_] = circle if window == "circle" else square
    return inside.reshape(width, height * width)


def read_out(neighbours: Neighbours, labels: F32Array, temperature: float) -> F32Array:
    """Weighted sum of the neighbours' labels; the weights are a softmax over similarity / temperature.

    The result is not renormalised. A cell without neighbours gets zeros.

    Args:
        neighbours: what :func:`match` found.
        labels: f32 [N, h, w, M], soft labels of every slot.
        temperature: τ.

    Returns:
        f32 [h, w, M].
    """
    slots, height, width, channels = labels.shape
    weight = _weights(neighbours, temperature)
    missing = neighbours.slot < 0
    flat = labels.reshape(slots * height * width, channels)
    attended = flat[np.where(missing, 0, neighbours.slot * (height * width) + neighbours.cell)]
    attended[missing] = 0
    total: F32Array = np.einsum("qk,qkm->qm", weight, attended)
    return total.reshape(height, width, channels)


def read_values(neighbours: Neighbours, values: Sequence[F32Array], temperature: float) -> F32Array:
    """Weighted sums of the neighbours' values (Li et al. 2023, equation 7), weighted as in :func:`read_out`.

    Args:
        neighbours: what n cells attend to.
        values: f32 [N, h*w, V] per object.
        temperature: τ.

    Returns:
        f32 [objects, n, V]; a cell without neighbours gets zeros.
    """
    weight = _weights(neighbours, temperature)
    slot, cell = np.maximum(neighbours.slot, 0), np.maximum(neighbours.cell, 0)
    total = np.zeros((len(values), slot.shape[0], values[0].shape[2]), dtype=np.float32)
    for read, kept in zip(total, values, strict=True):
        for rank in range(slot.shape[1]):
            read += weight[:, rank, None] * kept[slot[:, rank], cell[:, rank]]
    return total


def _weights(neighbours: Neighbours, temperature: float) -> F32Array:
    """Softmax over similarity / temperature, f32 [n, k]; 0 where a neighbour is missing."""
    missing = neighbours.slot < 0
    scaled = np.where(missing, -np.inf, neighbours.similarity / np.float32(temperature)).astype(np.float32)
    largest = np.where(missing.all(axis=1), 0, scaled.max(axis=1)).astype(np.float32)
    weight: F32Array = np.exp(scaled - largest[:, None])
    weight /= np.maximum(weight.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return weight


def upsample_labels(
    soft: F32Array, height: int, width: int, *, align_corners: bool = True
) -> tuple[I32Array, F32Array]:
    """Upsample soft masks bilinearly and take the largest channel, the first of equals.

    Args:
        soft: f32 [h, w, M].
        height: rows of the result.
        width: columns of the result.
        align_corners: see `EncoderSpec`.

    Returns:
        The channel index i32 [height, width] and its value f32 [height, width].
    """
    rows, columns = _taps(soft.shape[0], height, align_corners), _taps(soft.shape[1], width, align_corners)
    confidence = _sample(soft[:, :, 0], rows, columns)
    index = np.zeros((height, width), dtype=np.int32)
    for channel in range(1, soft.shape[2]):
        value = _sample(soft[:, :, channel], rows, columns)
        larger = value > confidence
        index[larger] = channel
        confidence[larger] = value[larger]
    return index, confidence


def resize_soft(soft: F32Array, height: int, width: int) -> F32Array:
    """Resize soft masks: bilinear, pixel centres at half-integers, edges repeated, no antialiasing.

    Args:
        soft: f32 [h, w, M].
        height: rows of the result.
        width: columns of the result.

    Returns:
        f32 [height, width, M].
    """
    rows, columns = _taps(soft.shape[0], height, False), _taps(soft.shape[1], width, False)
    planes = [_sample(soft[:, :, channel], rows, columns) for channel in range(soft.shape[2])]
    return np.ascontiguousarray(np.stack(planes, axis=-1))


def correct(soft: F32Array, logits: F32Array) -> F32Array:
    """What the logits of a residual decoder make of a coarse mask; logits of 0 leave it as it is.

    Args:
        soft: f32 [H, W, 1 + M], the background first; less than 0.01 counts as 0.01, so that it can be overruled.
        logits: f32 [H, W, M], one channel per object.

    Returns:
        f32 [H, W, 1 + M] of sum 1.
    """
    # Channel by channel: NumPy's reductions over a short last axis take several times as long.
    channels = range(logits.shape[-1])
    largest = np.zeros(logits.shape[:-1], dtype=np.float32)
    for channel in channels:
        np.maximum(largest, logits[..., channel], out=largest)
    weight: F32Array = np.maximum(soft, np.float32(0.01))
    weight[..., 0] *= np.exp(-largest)
    weight[..., 1:] *= np.exp(logits - largest[..., None])
    total = weight[..., 0].copy()
    for channel in channels:
        total += weight[..., 1 + channel]
    weight /= total[..., None]
    return weight


def aggregate(logits: F32Array) -> F32Array:
    """Merge objects that know nothing of each other into one soft mask (Oh et al. 2019, equation 5).

    The background's probability is Π(1 - p); all are clamped to [1e-7, 1 - 1e-7] and weighted by their odds, which is a
    softmax over log(p / (1 - p)).

    Args:
        logits: f32 [H, W, M], one channel per object.

    Returns:
        f32 [H, W, 1 + M] of sum 1, the background first.
    """
    p = 1 / (1 + np.exp(-np.clip(logits, -80, 80).astype(np.float32)))
    p = np.concatenate([np.prod(1 - p, axis=-1, keepdims=True), p], axis=-1)
    p = np.clip(p, np.float32(1e-7), np.float32(1) - np.float32(1e-7))
    odds = p / (1 - p)
    merged: F32Array = (odds / odds.sum(axis=-1, keepdims=True)).astype(np.float32)
    return merged


class _Taps(NamedTuple):
    """Two source coordinates and the second's weight, per target coordinate."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    weight: F32Array


def _taps(source: int, target: int, align_corners: bool) -> _Taps:
    """Bilinear taps: corners aligned, in float32 as PyTorch computes them; else pixel centres at half-integers."""
    if not align_corners:
        first, past, unit = _half_pixel_positions(source, target)
        return _Taps(first, np.minimum(first + 1, source - 1), past.astype(np.float32) / np.float32(unit))
    scale = np.float32(source - 1) / np.float32(target - 1) if target > 1 else np.float32(0)
    position = scale * np.arange(target, dtype=np.float32)
    first = np.minimum(position.astype(np.int64), source - 1)
    return _Taps(first, np.minimum(first + 1, source - 1), position - first.astype(np.float32))


def _sample(plane: F32Array, rows: _Taps, columns: _Taps) -> F32Array:
    """Bilinear samples of one f32 plane."""
    if plane.shape == (len(rows.first), len(columns.first)):
        return plane.copy()  # every pixel lies on its own
    one = np.float32(1)
    wy, wx = rows.weight[:, None], columns.weight[None, :]
    upper, lower = plane[rows.first], plane[rows.second]
    upper = (one - wx) * upper[:, columns.first] + wx * upper[:, columns.second]
    lower = (one - wx) * lower[:, columns.first] + wx * lower[:, columns.second]
    sampled: F32Array = (one - wy) * upper + wy * lower
    return sampled
