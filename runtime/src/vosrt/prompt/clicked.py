"""From clicks and a box to a mask of one frame, without a network that was trained for it.

Cells of the encoder's grid are nodes of a graph whose edges are strong where neighbours look alike, to the network and
in colour. Each click selects a region of that graph: a random walk starts at the click, and of its level sets the one
that is cut off best is taken (the sweep of Andersen, Chung and Lang 2006, "Local graph partitioning using PageRank
vectors"). A linear classifier then learns what the mask looks like, and a random walk with priors (Grady 2005,
"Multilabel random walker image segmentation using prior models") on a grid of half the cell size decides between the
classifier, the mask and the clicks. At last a guided filter has the outline follow the edges of the picture.

The constants were chosen on DAVIS sequences, see ``benchmarks/clicks.py``.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from vosrt.encoder import Embedding
from vosrt.prompt.grid import HARD, Grid
from vosrt.prompt.guide import Guide
from vosrt.prompt.options import ClickOptions
from vosrt.prompt.points import BoolArray, Box, Point, check_prompts
from vosrt.types import F32Array, U8Array

_FINE = 2  # cells of the fine grid per cell of the encoder, along each axis
_KEPT = 64  # soft masks that are kept, so that the next click is one step
_LARGEST = 0.6  # share of the frame that the first click may select


# Of boxes, chosen like the options above: the share of a box that an object is taken to fill at first, what colour and
# place count against features, how many of the most similar cells outside are compared, how much the middle counts.
_BOX_ROUNDS, _BOX_FILLED, _BOX_COLOUR, _BOX_PLACE, _BOX_NEAREST, _BOX_MIDDLE = 4, 0.5, 0.5, 0.2, 4, 0.1
_LEAST_FILLED = 0.2  # part of its box that an object covers


class ClickedFrame:
    """A frame that was encoded, ready for clicks: the first costs tens of milliseconds, and so does every further one.

    Args:
        frame: u8 [Hw, Ww, 3] BGR, as the network saw it.
        features: f32 [h, w, K] of unit length, the embedding.
        height: of the mask, in pixels.
        width: likewise.
        stride: pixels of ``frame`` per cell.
        options: the constants.
    """

    def __init__(
        self,
        frame: U8Array,
        features: F32Array,
        height: int,
        width: int,
        *,
        stride: int = 8,
        options: ClickOptions = ClickOptions(),  # noqa: B008 (frozen)
    ) -> None:
        self._options, self._size = options, (height, width)
        h, w = features.shape[:2]
        self._cells = Grid(
            _principal(features, options.dimensions),
            _colours(frame, h, w, stride),
            options.feature_edges,
            options.colour_edges,
            options.floor,
        )
        fine = _enlarge(self._cells.features, _FINE)
        self._fine = Grid(
            fine,
            _colours(frame, h * _FINE, w * _FINE, stride // _FINE),
            options.fine_feature_edges,
            options.fine_colour_edges,
            options.fine_floor,
        )
        # Of the padded frame, the part that is seen.
        self._scale = w * stride / frame.shape[1], h * stride / frame.shape[0]
        self._guide = Guide(frame)
        self._states: OrderedDict[Any, _State] = OrderedDict()

    def segment(
        self,
        points: Sequence[Sequence[float]] = (),
        box: Box | None = None,
        mask: BoolArray | None = None,
    ) -> BoolArray:
        """Return the object that is clicked.

        Args:
            points: (x, y) or (x, y, positive) in pixels, in the order in which they were clicked; each corrects what
                those before it gave.
            box: x, y, width, height in pixels around the object.
            mask: bool [H, W], what the clicks correct; None begins with nothing.

        Returns:
            bool [H, W].

        Raises:
            OptionError: there is neither a positive click nor a box nor a mask.
            MaskError: a click or the box lies outside the frame, or the mask has another size.
        """
        clicks = check_prompts(points, box, mask, *self._size)
        key: Any = (box, None if mask is None else mask.tobytes())
        state = self._states.get(key)
        if state is None:
            state = self._begin(box, mask)
            self._remember(key, state)
        for count, click in enumerate(clicks, start=1):
            key = (key, click)
            known = self._states.get(key)
            state = known or self._click(state, clicks[:count])
            self._remember(key, state)
        return self._finish(state, clicks)

    def _remember(self, key: Any, state: _State) -> None:
        self._states[key] = state
        self._states.move_to_end(key)
        while len(self._states) > _KEPT:
            self._states.popitem(last=False)

    def _begin(self, box: Box | None, mask: BoolArray | None) -> _State:
        """The mask before the first click."""
        soft = np.zeros(self._fine.shape, np.float32) if mask is None else self._shrink(mask)
        if box is None:
            state = _State(soft, np.zeros_like(soft), None)
            return state if mask is None else self._refit(state, ())
        allowed = self._inside(box)
        if mask is None:
            soft = self._stands_out(allowed)
        state = _State(soft * allowed, np.zeros_like(soft), allowed)
        for _ in range(_BOX_ROUNDS):
            state = self._refit(state, ())
        if state.soft.sum() < _LEAST_FILLED * allowed.sum():  # something else was found, or nothing
            state = _State(_ellipse(allowed), state.score, allowed)
        return state

    def _inside(self, box: Box) -> BoolArray:
        """The cells of the fine grid that a box touches, bool [h, w]."""
        (left, top), (right, bottom) = self._place(box[0], box[1]), self._place(box[0] + box[2], box[1] + box[3])
        inside = np.zeros(self._fine.shape, bool)
        inside[int(top) : max(math.ceil(bottom), int(top) + 1), int(left) : max(math.ceil(right), int(left) + 1)] = True
        return inside

    def _stands_out(self, allowed: BoolArray) -> F32Array:
        """A first guess at the object in a box: the cells that look least like any outside, f32 [h, w]."""
        cells = self._cells
        share = _halve(allowed.astype(np.float32)).reshape(-1)
        inside, outside = share > 0, share < 0.5
        if not outside.any():
            return _ellipse(allowed)
        count = cells.features.shape[2]
        looks = np.concatenate(
            [cells.looks[:, :count], _BOX_COLOUR * cells.looks[:, count : count + 3], _BOX_PLACE * cells.places], axis=1
        )
        a, b = looks[inside], looks[outside]
        apart = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
        nearest = min(_BOX_NEAREST, len(b))
        novelty = np.partition(apart, nearest - 1, axis=1)[:, :nearest].mean(axis=1)
        place = cells.places[inside]
        from_middle = (place - place.mean(axis=0)) / (np.ptp(place, axis=0) / 2 + 1e-3)
        rank = novelty.argsort().argsort() / len(novelty) - _BOX_MIDDLE * (from_middle**2).sum(axis=1)
        soft = np.zeros(len(share), np.float32)
        soft[inside] = 1 / (1 + np.exp((np.quantile(rank, 1 - _BOX_FILLED) - rank) / 0.1))
        height, width = self._fine.shape
        return np.asarray(cv2.resize(soft.reshape(cells.shape), (width, height)), np.float32) * allowed

    def _shrink(self, mask: BoolArray) -> F32Array:
        """The mask on the fine grid, f32 [h, w], where cells beyond the frame repeat its border."""
        height, width = self._fine.shape
        inside = (max(1, round(width / self._scale[0])), max(1, round(height / self._scale[1])))
        small = cv2.resize(mask.astype(np.float32), inside, interpolation=cv2.INTER_AREA)
        below, right = height - inside[1], width - inside[0]
        return np.asarray(cv2.copyMakeBorder(small, 0, below, 0, right, cv2.BORDER_REPLICATE), np.float32)

    def _place(self, x: float, y: float) -> tuple[float, float]:
        """Column and row of a pixel of the frame on the fine grid."""
        (height, width), (rows, columns) = self._size, self._fine.shape
        return x / width * columns / self._scale[0], y / height * rows / self._scale[1]

    def _at(self, click: Point) -> tuple[int, int]:
        """Row and column of a click on the fine grid."""
        x, y = self._place(click.x + 0.5, click.y + 0.5)
        return min(int(y), self._fine.shape[0] - 1), min(int(x), self._fine.shape[1] - 1)

    def _click(self, state: _State, clicks: Sequence[Point]) -> _State:
        """Take the newest click into account."""
        click, options, cells = clicks[-1], self._options, self._cells
        before = _halve(state.soft) > 0.5
        spot = _spot(cells.shape, *(each // _FINE for each in self._at(click)))
        domain = (~before if click.positive else before) | spot
        against = np.zeros(cells.shape, bool)
        for other in clicks[:-1]:
            if other.positive != click.positive:
                against |= _spot(cells.shape, *(each // _FINE for each in self._at(other))) & ~spot
        if state.allowed is not None and click.positive:
            domain &= (_halve(state.allowed.astype(np.float32)) > 0) | spot
        fading = options.decay ** (len(clicks) - 1)
        if not before.any():
            limit, balance, stops = _LARGEST * domain.size, options.balance, np.zeros(cells.shape, np.float32)
        else:
            limit = (options.grow if click.positive else options.shrink) * fading * float(before.sum())
            if not click.positive:  # a part by itself, which nobody clicked as the object, may go as a whole
                limit = max(limit, self._loose_part(before, spot, clicks))
            agrees = _halve(state.score) * (-1 if click.positive else 1)
            stops, balance = options.agreement * np.clip(agrees, 0, 1), options.later_balance
        region = cells.region(spot, domain, against, stops * cells.mean_degree, limit, balance, options)
        chosen = np.repeat(np.repeat(region, _FINE, axis=0), _FINE, axis=1)
        soft = np.where(chosen, np.float32(click.positive), state.soft)
        return self._refit(_State(soft, state.score, state.allowed), clicks)

    def _loose_part(self, mask: BoolArray, spot: BoolArray, clicks: Sequence[Point]) -> float:
        """Cells of the connected part of a mask in which the newest click is; 0 if a positive click is in it."""
        _, parts = cv2.connectedComponents((mask | spot).astype(np.uint8), connectivity=8)
        part = parts == int(parts[spot][0])
        held = any(part[tuple(each // _FINE for each in self._at(other))] for other in clicks if other.positive)
        return 0.0 if held else float(part.sum())

    def _refit(self, state: _State, clicks: Sequence[Point]) -> _State:
        """Learn what the mask looks like, and walk from the clicks with that as prior."""
        options, fine = self._options, self._fine
        soft = np.clip(state.soft, 0, 1)
        total = float(soft.sum())
        if total < 4 or total > soft.size - 4:
            return state
        weight, value = np.zeros(fine.shape, np.float32), np.zeros(fine.shape, np.float32)
        for click in clicks:
            near = _spot(fine.shape, *self._at(click))
            weight[near], value[near] = HARD, float(click.positive)
        if state.allowed is not None:
            weight[~state.allowed], value[~state.allowed] = HARD, 0
        score = self._classify(soft, clicks)
        likely = 1 / (1 + np.exp(-options.gain * score))
        wanted = options.keep * soft + (1 - options.keep) * likely
        walked = fine.walk(options.prior + weight, options.prior * wanted + weight * value, soft, 60, 2e-3)
        return _State(np.clip(walked, 0, 1), score, state.allowed)

    def _classify(self, soft: F32Array, clicks: Sequence[Point]) -> F32Array:
        """A linear function of features, colour and position that is 1 in the mask and -1 outside, f32 [h, w]."""
        options, cells = self._options, self._cells
        mask = _halve(soft).reshape(-1)
        middle, spread = _moments(cells.places, mask)
        inputs = _with_place(cells.looks, cells.places, middle, spread, options.place)
        weights = 0.5 * mask / mask.sum() + 0.5 * (1 - mask) / (1 - mask).sum()
        targets = 2 * mask - 1
        if clicks:
            weights *= 1 - options.click_share
            marked = {True: np.zeros(cells.shape, bool), False: np.zeros(cells.shape, bool)}
            for click in clicks:
                marked[click.positive] |= _spot(cells.shape, *(each // _FINE for each in self._at(click)))
            for positive, where in marked.items():
                if where.any():
                    weights[where.reshape(-1)] += 0.5 * options.click_share / where.sum()
                    targets[where.reshape(-1)] = 1 if positive else -1
        weighted = inputs * weights[:, None]
        squares = inputs.T @ weighted
        squares[np.diag_indices_from(squares)] += options.ridge * np.trace(squares) / len(squares)
        slope = np.linalg.solve(squares, weighted.T @ targets).astype(np.float32)
        fine = _with_place(self._fine.looks, self._fine.places, middle, spread, options.place)
        return np.asarray((fine @ slope).reshape(self._fine.shape), np.float32)

    def _finish(self, state: _State, clicks: Sequence[Point]) -> BoolArray:
        """The soft mask as a mask of the frame, its outline on the edges of the picture."""
        height, width = self._size
        soft = self._guide.follow(state.soft, self._scale)
        mask = cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
        mask = _without_crumbs(mask, clicks, self._options)
        for click in clicks:
            mask[min(int(click.y), height - 1), min(int(click.x), width - 1)] = click.positive
        return mask


def click_on(embedding: Embedding, stride: int) -> ClickedFrame:
    """Make an encoded frame ready for clicks.

    Args:
        embedding: of the frame.
        stride: pixels per cell of the working frame.
    """
    features, frame = embedding.on_host()
    return ClickedFrame(frame, features, embedding.frame_height, embedding.frame_width, stride=stride)


class _State(NamedTuple):
    """Between two clicks.

    Attributes:
        soft: the mask on the fine grid, f32 [h, w], 0 to 1.
        score: of the classifier, f32 [h, w], above 0 for the object.
        allowed: bool [h, w], where the object may be; None is everywhere.
    """

    soft: F32Array
    score: F32Array
    allowed: BoolArray | None


def _principal(features: F32Array, dimensions: int) -> F32Array:
    """The first principal components, f32 [h, w, d], scaled to a total variance of 1."""
    height, width, channels = features.shape
    flat = features.reshape(-1, channels).astype(np.float32)
    centred = flat - flat.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    kept = centred @ vectors[:, ::-1][:, :dimensions]
    return np.asarray((kept / np.sqrt(max(float(values.sum()), 1e-12))).reshape(height, width, -1), np.float32)


def _colours(frame: U8Array, rows: int, columns: int, pixels: int) -> F32Array:
    """Mean colour of each cell in CIELAB, f32 [rows, columns, 3], scaled to a total variance of 1."""
    below, right = rows * pixels - frame.shape[0], columns * pixels - frame.shape[1]
    if below > 0 or right > 0:
        frame = np.asarray(
            cv2.copyMakeBorder(frame, 0, max(below, 0), 0, max(right, 0), cv2.BORDER_REPLICATE), np.uint8
        )
    small = cv2.resize(frame, (columns, rows), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_BGR2Lab)
    return np.asarray(lab / np.sqrt(max(float(lab.reshape(-1, 3).var(axis=0).sum()), 1e-3)), np.float32)


def _enlarge(features: F32Array, factor: int) -> F32Array:
    """Interpolate f32 [h, w, d] to [h factor, w factor, d]; OpenCV takes four channels at a time."""
    size = features.shape[1] * factor, features.shape[0] * factor
    parts = [
        cv2.resize(np.ascontiguousarray(features[..., k : k + 4]), size, interpolation=cv2.INTER_LINEAR)
        for k in range(0, features.shape[2], 4)
    ]
    return np.concatenate([part.reshape(size[1], size[0], -1) for part in parts], axis=-1)


def _halve(values: F32Array) -> F32Array:
    """Means of the fine cells in each cell."""
    height, width = values.shape
    return np.asarray(values.reshape(height // _FINE, _FINE, width // _FINE, _FINE).mean(axis=(1, 3)), np.float32)


def _ellipse(allowed: BoolArray) -> F32Array:
    """The ellipse that fills a box of cells, f32 [h, w]; all of a box that is too small for one."""
    rows, columns = (np.flatnonzero(allowed.any(axis=axis)) for axis in (1, 0))
    from_middle = [(np.arange(len(each)) + 0.5) / (len(each) / 2) - 1 for each in (rows, columns)]
    soft = np.zeros(allowed.shape, np.float32)
    within = from_middle[0][:, None] ** 2 + from_middle[1][None, :] ** 2 <= 1
    soft[np.ix_(rows, columns)] = within | (min(len(rows), len(columns)) < 3)
    return soft


def _spot(shape: tuple[int, ...], row: int, column: int) -> BoolArray:
    """A cell and its four neighbours, bool [h, w]."""
    spot = np.zeros(shape, bool)
    spot[max(0, row - 1) : row + 2, column] = True
    spot[row, max(0, column - 1) : column + 2] = True
    return spot


def _moments(positions: F32Array, mask: F32Array) -> tuple[F32Array, F32Array]:
    """Middle and spread of a mask, f32 [2] each."""
    total = max(float(mask.sum()), 1e-6)
    middle = mask @ positions / total
    spread = 2 * np.sqrt(mask @ (positions - middle) ** 2 / total) + 0.02
    return middle, spread


def _with_place(looks: F32Array, positions: F32Array, middle: F32Array, spread: F32Array, weight: float) -> F32Array:
    """Inputs of the classifier, f32 [n, d + 6]: looks, position relative to the mask and its products, and 1."""
    place = np.clip((positions - middle) / spread, -4, 4) * np.float32(weight)
    ones = np.ones((len(looks), 1), np.float32)
    return np.concatenate([looks, place, place**2, place[:, :1] * place[:, 1:], ones], axis=1)


def _without_crumbs(mask: BoolArray, clicks: Sequence[Point], options: ClickOptions) -> BoolArray:
    """Remove small parts and fill small holes in which nobody clicked."""
    area = int(mask.sum())
    for positive in (True, False):
        side = mask if positive else ~mask
        count, parts, boxes, _ = cv2.connectedComponentsWithStats(
            side.astype(np.uint8), connectivity=8 if positive else 4
        )
        sizes = boxes[:, cv2.CC_STAT_AREA].copy()
        sizes[0] = 0
        if count < 2:
            continue
        kept = sizes >= (options.crumbs * sizes.max() if positive else options.holes * area)
        if not positive:  # what touches the border of the frame is no hole
            for edge in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
                kept[np.unique(edge)] = True
        for click in clicks:
            if click.positive == positive:
                kept[parts[int(click.y), int(click.x)]] = True
        kept[0] = False
        mask = kept[parts] if positive else ~kept[parts]
    return mask
