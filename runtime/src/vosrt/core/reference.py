"""The definition of correct: the native core's operations and memory in NumPy, with which tests compare every core.

It is written to be read next to the formulas, not to be fast. Symbols as in `vosrt.types`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vosrt.errors import MaskError, OptionError
from vosrt.types import F32Array, I32Array, PropagationOptions, TopK, U8Array

BACKGROUND = 0
GUIDED_EPS = 1e-4  # of colours from 0 to 1
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


def nv12_to_bgr(luma: U8Array, chroma: U8Array, *, bt709: bool, full_range: bool = False) -> U8Array:
    """Convert NV12 pixels, where two by two share their chroma.

    ITU-R BT.601-7 and BT.709-6, section 3: Y' = Kr R' + Kg G' + Kb B', Cb = (B' - Y') / (2 - 2 Kb) and
    Cr = (R' - Y') / (2 - 2 Kr).

    Args:
        luma: u8 [H, W].
        chroma: u8 [H / 2, W / 2, 2], Cb and Cr, halves rounded up.
        bt709: whether the colours are BT.709's and not BT.601's.
        full_range: whether luma goes from 0 to 255 and not from 16 to 235, chroma likewise.

    Returns:
        u8 [H, W, 3], BGR.
    """
    red, blue = (0.2126, 0.0722) if bt709 else (0.299, 0.114)
    height, width = luma.shape
    cb, cr = np.moveaxis(chroma.repeat(2, 0).repeat(2, 1)[:height, :width].astype(np.float64) - 128, -1, 0)
    light = luma.astype(np.float64)
    if not full_range:
        light, cb, cr = (light - 16) * 255 / 219, cb * 255 / 224, cr * 255 / 224
    b, r = light + (2 - 2 * blue) * cb, light + (2 - 2 * red) * cr
    bgr = np.stack([b, (light - blue * b - red * r) / (1 - red - blue), r], axis=-1)
    return np.clip(np.floor(bgr + 0.5), 0, 255).astype(np.uint8)


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


def mean_embedding(embedding: F32Array) -> F32Array:
    """The mean over all cells, f32 [K], computed in float64; 0 in channels where it is not finite.

    Args:
        embedding: f32 [h, w, K].
    """
    cells = embedding.reshape(-1, embedding.shape[-1])
    with np.errstate(over="ignore", invalid="ignore"):
        mean: F32Array = (cells.sum(axis=0, dtype=np.float64) / len(cells)).astype(np.float32)
    mean[~np.isfinite(mean)] = 0
    return mean


def centre(embedding: F32Array, mean: F32Array, share: float) -> F32Array:
    """Remove a share of the mean and normalise again: normalise(e - share * mean).

    The norm is summed up in float64, so that every core rounds to the same embedding in any order of summation.
    A cell that is nothing but the removed part becomes zeros.

    Args:
        embedding: f32 [h, w, K].
        mean: f32 [K].
        share: 0 to 1.

    Returns:
        f32 [h, w, K].
    """
    with np.errstate(invalid="ignore"):
        rest = embedding - np.float32(share) * mean
        norm = np.sqrt(np.square(rest, dtype=np.float64).sum(axis=-1, keepdims=True)).astype(np.float32)
        centred = rest / np.where(norm == 0, np.float32(1), norm)
    return centred.astype(np.float32, copy=False)


def sharpen(soft: F32Array, sharpness: float, object_bias: float | F32Array) -> F32Array:
    """What is remembered of propagated soft masks: p_m^sharpness * e^(object_bias [m > 0]), divided by the sum over m.

    Args:
        soft: f32 [h, w, M], background first.
        sharpness: exponent.
        object_bias: logarithm of the factor of every object, or f32 [M - 1], that of each.

    Returns:
        f32 [h, w, M] of sum 1; zeros where a cell has no mass.
    """
    largest = soft.max(axis=-1, keepdims=True)
    empty = largest <= 0
    weight = (soft / np.where(empty, np.float32(1), largest)) ** np.float32(sharpness)
    weight[..., 1:] *= np.exp(np.asarray(object_bias, dtype=np.float32))
    sharpened = weight / np.where(empty, np.float32(1), weight.sum(axis=-1, keepdims=True))
    return sharpened.astype(np.float32, copy=False)


def calibrate(truth: F32Array, key: F32Array, soft: F32Array, now: F32Array) -> F32Array:
    """What is to be added to the bias of objects, by what their annotation shows of a later frame's soft masks.

    Every cell of an object as it was annotated, and every cell within three of one, looks for the most similar cell of
    the later frame. Where masks are undecided there, by p (1 - p), the annotation says which side is right: the
    logarithm of the odds that an undecided cell is the object's is added, one such cell being always counted
    half and half. If masks have eroded, undecided cells are mostly the object's, and its factor grows. Nothing is taken
    away where they are mostly background's: a part that is lost is no longer undecided, so that this would not show
    that masks have spread. Nothing is added for an object of which less than a quarter is found: it has left.

    Args:
        truth: f32 [h, w, M], the soft masks of M objects where they were annotated.
        key: f32 [h, w, K], the embedding of that frame.
        soft: f32 [h, w, M], their soft masks in the later frame.
        now: f32 [h, w, K], its embedding.

    Returns:
        f32 [M], from 0 to 0.6.
    """
    height, width, _ = truth.shape
    looks = np.zeros((height, width), dtype=bool)
    for y, x in zip(*np.nonzero((truth > np.float32(0.02)).any(axis=-1)), strict=True):
        looks[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4] = True
    similarity = key[looks] @ now.reshape(height * width, -1).T
    similarity[np.isnan(similarity)] = -np.inf
    found = similarity.max(axis=1) > -np.inf
    there = soft.reshape(height * width, -1)[similarity.argmax(axis=1)[found]].astype(np.float64)
    undecided = there * (1 - there)
    total = undecided.sum(axis=0) + 1
    inside = (undecided * truth[looks][found]).sum(axis=0) + 0.5
    added = np.log(inside / (total - inside)).clip(0, 0.6).astype(np.float32)
    left = there.sum(axis=0) < 0.25 * truth[looks][found].sum(axis=0, dtype=np.float64)
    return np.where(left, np.float32(0), added)


class Steps(NamedTuple):
    """How cells moved over the last frames, by age: what lies where they were, in cells, and how sure that is."""

    share: F32Array  # [4, h, w], of the weight of a cell's neighbours; 0 to 1
    dy: F32Array  # [4, h, w]
    dx: F32Array  # [4, h, w]


def find_steps(neighbours: Neighbours, age: I32Array, grid: tuple[int, int], radius: float) -> Steps:
    """The mean place of each cell's neighbours in each of the last four frames, relative to the cell.

    The weights are a softmax over similarity / 0.02. Neighbours outside the window count for the shares alone.

    Args:
        neighbours: what `match` found.
        age: i32 [h*w, k], how many frames before their query neighbours are.
        grid: rows and columns.
        radius: of the window, as in `match`.
    """
    height, width = grid
    query = np.arange(height * width)[:, None]
    dy, dx = neighbours.cell // width - query // width, neighbours.cell % width - query % width
    found = neighbours.slot >= 0
    weight = _weights(neighbours, 0.02)
    inside = found & (dy**2 + dx**2 < float(np.float32(radius)) ** 2)
    steps = []
    for frames in range(1, 5):
        of_age = np.where(inside & (age == frames), weight, 0)
        share = of_age.sum(axis=1)
        total = np.where(share > 0, share, 1)
        steps.append((share, (of_age * dy).sum(axis=1) / total, (of_age * dx).sum(axis=1) / total))
    planes = np.array(steps, dtype=np.float32).reshape(4, 3, height, width)
    return Steps(*planes.transpose(1, 0, 2, 3))


def move_together(soft: F32Array, steps: Steps, strength: float) -> F32Array:
    """Common fate: objects take the cells that move as they do, and lose those that move as the background does.

    For every age, the steps of an object's cells and of the background's are averaged over windows of 29 x 29 cells,
    weighted by soft masks and shares. A cell's step is compared with both: how much nearer it is to the object's, in
    units of 0.4 cells, each distance counted as 3 at most, is evidence. It counts less where a window has less than
    four cells of a mask. Evidence of all ages is averaged by shares, no evidence being one of 0.05; an object's mask is
    multiplied by e^(strength * evidence), and the masks of a cell are divided by their sum.

    Args:
        soft: f32 [h * parts, w * parts, M], background first.
        steps: how the cells moved, f32 [4, h, w]; a cell's masks are the means of those of its parts.
        strength: what evidence is multiplied by.

    Returns:
        f32 [h * parts, w * parts, M] of sum 1; zeros where a part has no mass.
    """
    parts = len(soft) // steps.share.shape[1]
    cells = cell_means(soft, parts)
    evidence = np.zeros(cells.shape, dtype=np.float64)
    for share, dy, dx in zip(*(plane.astype(np.float64) for plane in steps), strict=True):
        shared = share[..., None] * cells
        weight, rows, columns = (_box(shared * each[..., None], 14) for each in (np.ones_like(dy), dy, dx))
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = np.hypot(dy[..., None] - rows / weight, dx[..., None] - columns / weight) / 0.4
        distance = np.where(distance < 3, distance, 3)
        support = np.minimum(weight / 4, 1)
        evidence += share[..., None] * (support[..., :1] * support * (distance[..., :1] - distance))
    evidence /= (steps.share.sum(axis=0, dtype=np.float64) + 0.05)[..., None]
    evidence = evidence.repeat(parts, axis=0).repeat(parts, axis=1)
    largest = soft.max(axis=-1, keepdims=True).astype(np.float64)
    relative = soft / np.where(largest > 0, largest, 1)
    moved = relative * np.exp(strength * evidence)
    total = moved.sum(axis=-1, keepdims=True)
    return (moved / np.where(total > 0, total, 1)).astype(np.float32)


def cell_means(soft: F32Array, parts: int) -> F32Array:
    """The mean over the parts of every cell: f32 [h * parts, w * parts, M] becomes f32 [h, w, M]."""
    if parts == 1:
        return soft
    height, width = soft.shape[0] // parts, soft.shape[1] // parts
    means: F32Array = soft.reshape(height, parts, width, parts, -1).mean(axis=(1, 3))
    return means


class Neighbours(NamedTuple):
    """Top-k of every query cell, most similar first; NaN and -1 where there are fewer candidates than k."""

    similarity: F32Array  # [h*w, k]
    slot: I32Array  # [h*w, k]
    cell: I32Array  # [h*w, k], row-major


def match(query: F32Array, keys: Sequence[F32Array], local: Sequence[bool], *, radius: float, top_k: int) -> Neighbours:
    """Joint top-k of every query cell over all slots (Araslanov et al. 2021, appendix C).

    The order is by similarity, then slot, then cell. NaN similarities are never selected.

    Args:
        query: f32 [h, w, K], unit length per cell.
        keys: one f32 [h, w, K] per slot.
        local: per slot, whether it is attended within the window only.
        radius: of the window, which keeps ``sqrt(dx² + dy²) < radius``, in cells.
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
        inside = _inside_window(y, height, width, radius)
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


def _inside_window(y: int, height: int, width: int, radius: float) -> NDArray[np.bool_]:
    """Which cells the queries of grid row y may attend to: bool [width, height*width]."""
    reach = float(np.float32(radius))
    dy = np.arange(height)[None, :, None] - y
    dx = np.arange(width)[None, None, :] - np.arange(width)[:, None, None]
    inside: NDArray[np.bool_] = dx**2 + dy**2 < reach**2
    return inside.reshape(width, height * width)


def read_out(neighbours: Neighbours, labels: F32Array, temperature: float, parts: int = 1) -> F32Array:
    """Weighted sum of the neighbours' labels; the weights are a softmax over similarity / temperature.

    The result is not renormalised. A cell without neighbours gets zeros. Where cells have parts, each part reads the
    same part of the neighbours.

    Args:
        neighbours: what `match` found.
        labels: f32 [N, h * parts, w * parts, M], soft labels of every slot.
        temperature: τ.
        parts: of a cell, to a side.

    Returns:
        f32 [h * parts, w * parts, M].
    """
    slots, rows, columns, channels = labels.shape
    height, width = rows // parts, columns // parts
    weight = _weights(neighbours, temperature)
    missing = neighbours.slot < 0
    flat = labels.reshape(slots, height, parts, width, parts, channels).swapaxes(2, 3)
    flat = flat.reshape(slots * height * width, parts * parts * channels)
    attended = flat[np.where(missing, 0, neighbours.slot * (height * width) + neighbours.cell)]
    attended[missing] = 0
    total: F32Array = np.einsum("qk,qkm->qm", weight, attended)
    return total.reshape(height, width, parts, parts, channels).swapaxes(1, 2).reshape(rows, columns, channels)


def read_values(neighbours: Neighbours, values: Sequence[F32Array], temperature: float) -> F32Array:
    """Weighted sums of the neighbours' values (Li et al. 2023, equation 7), weighted as in `read_out`.

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


def guide_masks(soft: F32Array, guide: U8Array, radius: int, *, align_corners: bool = True) -> F32Array:
    """Have soft masks follow the edges of a picture: the guided filter with a colour guide (He et al. 2013, sec. 3.3).

    Within each window, a mask is a linear function of the colour, q = a · I + b, with a = (Σ + εU)⁻¹ (mean(I p) - μ p̄)
    and b = p̄ - a · μ (eq. 14 and 15); the functions of all windows that hold a pixel are averaged (eq. 16). Windows end
    at the border.

    Args:
        soft: f32 [h, w, M].
        guide: u8 [H, W, 3].
        radius: windows have 2 radius + 1 pixels to a side.
        align_corners: how the grid lies on the guide, see `EncoderSpec`.

    Returns:
        f32 [H, W, M], 0 to 1.
    """
    rows, columns = (
        _taps(cells, pixels, align_corners) for cells, pixels in zip(soft.shape, guide.shape[:2], strict=False)
    )
    colour: NDArray[np.float64] = guide.astype(np.float64) / 255
    count = _box(np.ones(guide.shape[:2]), radius)[..., None]
    mean = _box(colour, radius) / count
    squares: NDArray[np.float64] = colour[..., :, None] * colour[..., None, :]
    products = _box(squares, radius) / count[..., None]
    covariance = products - mean[..., :, None] * mean[..., None, :] + GUIDED_EPS * np.eye(3)
    guided = []
    for channel in range(soft.shape[2]):
        mask = _sample(soft[:, :, channel], rows, columns).astype(np.float64)[..., None]
        mask_mean = _box(mask, radius) / count
        together = _box(colour * mask, radius) / count - mean * mask_mean
        slope = np.linalg.solve(covariance, together[..., None])[..., 0].astype(np.float64, copy=False)
        offset = mask_mean - (slope * mean).sum(axis=-1, keepdims=True)
        value = ((_box(slope, radius) * colour).sum(axis=-1) + _box(offset, radius)[..., 0]) / count[..., 0]
        guided.append(np.where(value > 0, np.minimum(value, 1), 0))  # what is not a number is 0
    return np.stack(guided, axis=-1).astype(np.float32)


def _box(values: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """Sums over windows that end at the border, along the first two axes of f64 [H, W, …]."""
    for axis in (0, 1):
        size = values.shape[axis]
        total = np.cumsum(np.concatenate([np.zeros_like(values.take([0], axis)), values], axis), axis)
        last, first = np.minimum(np.arange(size) + radius + 1, size), np.maximum(np.arange(size) - radius, 0)
        values = total.take(last, axis) - total.take(first, axis)
    return values


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


@dataclass
class _Slot:
    """A remembered frame: its key f32 [h, w, K], and a soft mask f32 [h * parts, w * parts] per id (0: background)."""

    frame: int
    key: F32Array
    soft: dict[int, F32Array]

    def labels(self, ids: list[int]) -> F32Array:
        """Soft masks of some ids, f32 [h * parts, w * parts, len(ids)]."""
        absent = np.zeros_like(self.soft[BACKGROUND])
        return np.stack([self.soft.get(object_id, absent) for object_id in ids], axis=-1)

    def release(self, object_id: int) -> None:
        """Turn an object into background."""
        if object_id in self.soft:
            self.soft[BACKGROUND] = self.soft[BACKGROUND] + self.soft.pop(object_id)


@dataclass
class _Reference(_Slot):
    """An annotated frame and the objects that are read from it."""

    ids: set[int] = field(default_factory=set)


class NumpyMemory:
    """The memory in plain NumPy: slow, and the definition of what the native core must do.

    Args:
        height: grid rows, h.
        width: grid columns, w.
        channels: embedding channels, K.
        options: how labels are propagated.
        align_corners: see `EncoderSpec`.

    Raises:
        OptionError: a size is not positive, or the options do not go with the alignment.
    """

    def __init__(
        self,
        height: int,
        width: int,
        channels: int,
        options: PropagationOptions | None = None,
        *,
        align_corners: bool = True,
    ) -> None:
        if min(height, width, channels) < 1:
            raise OptionError(f"memory of {height} x {width} x {channels}; expected positive sizes")
        self._shape = (height, width, channels)
        self._options = options or PropagationOptions()
        self._align_corners = align_corners
        if self._options.parts > 1 and align_corners:
            raise OptionError(f"parts is {self._options.parts}; expected 1 where corners are aligned")
        self._masks = (height * self._options.parts, width * self._options.parts)
        self._recent: deque[_Slot] = deque(maxlen=self._options.context + 1)
        self._references: list[_Reference] = []
        self._frames = 0
        self._mean = np.zeros(channels, dtype=np.float32)
        self._guide: U8Array | None = None
        self._biases: dict[int, float] = {}  # of objects that were calibrated
        self._top_k = self._empty_top_k()

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Tracked objects, ascending."""
        return tuple(sorted(set().union(*(anchor.ids for anchor in self._references))))

    @property
    def info(self) -> dict[str, Any]:
        """Counters; see `vosrt.core.memory.Memory`."""
        slots = [*self._recent, *self._references]
        return {
            "isa": "numpy",
            "threads": 1,
            "objects": len(self.object_ids),
            "references": sum(bool(anchor.ids) for anchor in self._references),
            "frames": self._frames,
            "bytes": sum(slot.key.nbytes + sum(plane.nbytes for plane in slot.soft.values()) for slot in slots),
            "shape": self._shape,
            "align_corners": self._align_corners,
            "parts": self._options.parts,
        }

    def push(self, embedding: F32Array) -> None:
        """Take the next frame; see `vosrt.core.memory.Memory`."""
        _check_array("embedding", embedding, self._shape, np.float32)
        if self._frames == 0:
            self._mean = mean_embedding(embedding)
        centring = self._options.centring
        key = centre(embedding, self._mean, centring) if centring else embedding.copy()
        slot = _Slot(self._frames, key, {})
        if self._references:
            self._settle_newest()
            self._propagate_to(slot)
        else:
            slot.soft[BACKGROUND] = np.ones(self._masks, dtype=np.float32)
            self._top_k = self._empty_top_k()
        self._recent.append(slot)
        self._guide = None
        self._frames += 1

    def _settle_newest(self) -> None:
        """Sharpen what is remembered of the newest frame, unless it is a reference."""
        newest = self._recent[-1]
        for anchor in self._references:
            self._calibrate(anchor, newest)
        if self._options.alters_masks and self._references[-1].frame != newest.frame:
            ids = [BACKGROUND, *self.object_ids]
            biases = [self._biases.get(object_id, self._options.object_bias) for object_id in ids[1:]]
            soft = sharpen(newest.labels(ids), self._options.sharpness, np.array(biases, dtype=np.float32))
            newest.soft = {object_id: soft[:, :, channel] for channel, object_id in enumerate(ids)}

    def _calibrate(self, anchor: _Reference, newest: _Slot) -> None:
        """Set the biases of an annotated frame's objects, where it is time."""
        ids, age, every = sorted(anchor.ids), newest.frame - anchor.frame, self._options.calibration
        if age == 0:
            for object_id in ids:
                self._biases.pop(object_id, None)
        elif ids and every and age % every == 0:
            parts = self._options.parts
            truth, soft = cell_means(anchor.labels(ids), parts), cell_means(newest.labels(ids), parts)
            added = calibrate(truth, anchor.key, soft, newest.key)
            self._biases.update(zip(ids, (np.float32(self._options.object_bias) + added).tolist(), strict=True))

    def _propagate_to(self, slot: _Slot) -> None:
        """Read the frame's soft masks from every reference's context and remember the attention."""
        blocks = []
        for position, anchor in enumerate(self._references):
            ids = ([BACKGROUND] if position == 0 else []) + sorted(anchor.ids)
            context, local = self._context_of(anchor, slot.frame)
            neighbours = match(
                slot.key,
                [other.key for other in context],
                local,
                radius=self._options.radius,
                top_k=self._options.top_k,
            )
            labels = np.stack([other.labels(ids) for other in context])
            soft = read_out(neighbours, labels, self._options.temperature, self._options.parts)
            slot.soft.update({object_id: soft[:, :, channel] for channel, object_id in enumerate(ids)})
            frames = np.array([*(other.frame for other in context), -1], dtype=np.int32)
            if position == 0 and self._options.motion:
                ages = slot.frame - frames[neighbours.slot]
                steps = find_steps(neighbours, ages, self._shape[:2], self._options.radius)
            blocks.append((neighbours.similarity, frames[neighbours.slot], neighbours.cell))
        if self._options.yield_background:
            later = [slot.soft[object_id] for anchor in self._references[1:] for object_id in sorted(anchor.ids)]
            slot.soft[BACKGROUND] = slot.soft[BACKGROUND] * np.maximum(0, 1 - np.sum(later, axis=0, dtype=np.float32))
        ids = [BACKGROUND, *self.object_ids]
        if self._options.motion and len(ids) > 1:
            soft = move_together(slot.labels(ids), steps, self._options.motion)
            slot.soft = {object_id: soft[:, :, channel] for channel, object_id in enumerate(ids)}
        self._top_k = TopK(*(np.stack(arrays) for arrays in zip(*blocks, strict=True)))

    def _context_of(self, anchor: _Reference, frame: int) -> tuple[list[_Slot], list[bool]]:
        """The slots that frame attends to for one reference, and which of them are windowed."""
        known = {slot.frame: slot for slot in self._recent}
        slots: list[_Slot] = [anchor]
        for earlier in range(frame - self._options.context, frame):
            if earlier >= anchor.frame:
                slots.append(known[earlier])
            elif self._options.pad_context:
                slots.append(anchor)
        return slots, [False] + [True] * (len(slots) - 1)

    def annotate(self, mask: U8Array) -> None:
        """Mark objects in the newest frame; see `vosrt.core.memory.Memory`."""
        newest = self._newest("annotate")
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise OptionError(f"mask is {mask.dtype.name} {list(mask.shape)}; expected uint8 [H, W]")
        ids = [int(object_id) for object_id in np.unique(mask) if object_id != BACKGROUND]
        if not ids:
            raise MaskError("the mask marks no object; expected at least one pixel that is not 0")
        marked = resize_mask(mask, ids, *self._masks, align_corners=self._align_corners)

        # Rounding may carry the sum just past 1; soft masks are never negative.
        kept = np.maximum(0, 1 - marked.sum(axis=-1, dtype=np.float32))
        for object_id in ids:
            newest.release(object_id)
        newest.soft = {object_id: plane * kept for object_id, plane in newest.soft.items()}
        newest.soft |= {object_id: marked[:, :, channel].copy() for channel, object_id in enumerate(ids)}
        self._refer_to(newest, ids)

    def _refer_to(self, newest: _Slot, ids: list[int]) -> None:
        """Make the newest frame the reference of these objects."""
        for other in self._references:
            other.ids.difference_update(ids)
        if self._references and self._references[-1].frame == newest.frame:
            ids = [*ids, *self._references.pop().ids]
        self._references.append(_Reference(newest.frame, newest.key, dict(newest.soft), set(ids)))
        self._drop_idle_references()

    def remove(self, object_id: int) -> None:
        """Forget one object; see `vosrt.core.memory.Memory`."""
        if object_id not in self.object_ids:
            raise OptionError(f"object {object_id} is not tracked; tracked are {list(self.object_ids)}")
        for slot in [*self._recent, *self._references]:
            slot.release(object_id)
        for anchor in self._references:
            anchor.ids.discard(object_id)
        self._drop_idle_references()

    def _drop_idle_references(self) -> None:
        self._references = self._references[:1] + [anchor for anchor in self._references[1:] if anchor.ids]

    def guide(self, frame: U8Array) -> None:
        """Take the newest frame's picture; see `vosrt.core.memory.Memory`."""
        self._newest("take a picture")
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise OptionError(f"frame is {frame.dtype.name} {list(frame.shape)}; expected uint8 [H, W, 3]")
        if self._options.guided:
            self._guide = resize_bgr(frame, max(frame.shape[0] // 2, 1), max(frame.shape[1] // 2, 1))

    def labels(self, height: int, width: int) -> tuple[U8Array, F32Array]:
        """Labels and confidence of the newest frame; see `vosrt.core.memory.Memory`."""
        soft, align_corners = self.soft_masks(), self._align_corners
        if self._guide is not None and self.object_ids:
            soft = guide_masks(soft, self._guide, self._options.guided, align_corners=align_corners)
            align_corners = False
        index, confidence = upsample_labels(soft, height, width, align_corners=align_corners)
        ids = np.array([BACKGROUND, *self.object_ids], dtype=np.uint8)
        return ids[index], confidence

    def soft_masks(self) -> F32Array:
        """Soft masks of the newest frame; see `vosrt.core.memory.Memory`."""
        return self._newest("read soft masks").labels([BACKGROUND, *self.object_ids])

    def set_soft_masks(self, masks: F32Array) -> None:
        """Replace the newest frame's soft masks; see `vosrt.core.memory.Memory`."""
        newest = self._newest("set soft masks")
        ids = [BACKGROUND, *self.object_ids]
        _check_array("soft masks", masks, (*self._masks, len(ids)), np.float32)
        if (wrong := masks[~(np.isfinite(masks) & (masks >= 0))]).size:
            raise OptionError(f"a soft mask holds {wrong[0]}; expected finite values of at least 0")
        newest.soft = {object_id: masks[:, :, channel].copy() for channel, object_id in enumerate(ids)}

    def top_k(self) -> TopK:
        """What the newest frame attended to; see `vosrt.core.memory.Memory`."""
        return self._top_k

    def _newest(self, action: str) -> _Slot:
        if not self._recent:
            raise OptionError(f"cannot {action}: no frame was pushed; push a frame first")
        return self._recent[-1]

    def _empty_top_k(self) -> TopK:
        shape = (0, self._shape[0] * self._shape[1], self._options.top_k)
        return TopK(np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.int32), np.empty(shape, dtype=np.int32))


def _check_array(name: str, array: NDArray[Any], shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    if array.shape != shape or array.dtype != dtype:
        expected = f"{np.dtype(dtype).name} {list(shape)}"
        raise OptionError(f"{name} is {array.dtype.name} {list(array.shape)}; expected {expected}")
