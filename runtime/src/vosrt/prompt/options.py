"""The constants by which clicks become masks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ClickOptions:
    """The constants of the method.

    Attributes:
        feature_edges: how much a difference of features weakens an edge of the cells' graph, in mean differences.
        colour_edges: likewise of colours.
        floor: weight of the weakest edge.
        leak: share of the walkers that stop at each cell.
        border: weight with which the border of the frame is background.
        agreement: how much stronger walkers stop where the classifier agrees with the mask.
        balance: exponent of the area by which a cut is divided, for the first click.
        later_balance: the same for later clicks.
        grow: a later positive click adds at most this multiple of the mask.
        shrink: a negative click removes at most this share of the mask.
        decay: factor of the two for each further click.
        dimensions: of the features that are kept.
        ridge: of the classifier, relative to the mean variance.
        gain: of its logistic function.
        click_share: weight of the clicked cells among all that it learns from.
        place: weight of the position among the features.
        keep: share of the mask in the prior, against the classifier.
        prior: weight of the prior against that of an edge of the fine graph.
        fine_feature_edges: as ``feature_edges``, of the fine graph.
        fine_colour_edges: likewise.
        fine_floor: likewise.
        crumbs: parts smaller than this share of the largest one, in which no click is, are removed.
        holes: holes smaller than this share of the mask, in which no click is, are filled.
    """

    feature_edges: float = 3.0
    colour_edges: float = 0.7
    floor: float = 1e-3
    leak: float = 3e-5
    border: float = 0.5
    agreement: float = 3e-3
    balance: float = 0.5
    later_balance: float = 0.5
    grow: float = 1.5
    shrink: float = 0.5
    decay: float = 0.7
    dimensions: int = 48
    ridge: float = 3.3e-3
    gain: float = 6.0
    click_share: float = 0.29
    place: float = 1.5
    keep: float = 0.17
    prior: float = 0.047
    fine_feature_edges: float = 1.2
    fine_colour_edges: float = 0.5
    fine_floor: float = 5e-3
    crumbs: float = 0.05
    holes: float = 0.042
