"""Fewer training adapters: nested subsets that keep the classes' shares and the groups whole."""

import numpy as np
from jaxtyping import Int64

__all__ = ["nested_order", "nested_subset"]


def nested_order(
    labels: Int64[np.ndarray, " n"], groups: Int64[np.ndarray, " n"] | None, seed: int
) -> list[Int64[np.ndarray, " _m"]]:
    """The groups in an order of which every beginning is stratified: the adapters of each, as places from 0.

    The groups of a class are shuffled, and the i-th of k stands at i / k; so the first groups are one of every class,
    and then each class comes as often as it is large. A group is of the class that most of its adapters are of.

    >>> [one.tolist() for one in nested_order(np.array([0, 0, 1, 1]), np.array([5, 5, 6, 7]), seed=0)]
    [[2], [0, 1], [3]]

    Args:
        labels: class of every adapter, from 0.
        groups: code of what stays together; None: each adapter is its own group.
        seed: of the shuffling.
    """
    units = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    order = np.argsort(units, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(units[order])) + 1)
    rng = np.random.default_rng(seed)
    classes = np.array([np.bincount(labels[own]).argmax() for own in members])
    place = np.empty(len(members))
    for known in np.unique(classes):
        own = rng.permutation(np.flatnonzero(classes == known))
        place[own] = np.arange(len(own)) / len(own)
    return [members[unit] for unit in np.lexsort((rng.random(len(members)), place))]


def nested_subset(
    rows: Int64[np.ndarray, " n"],
    labels: Int64[np.ndarray, " zoo"],
    groups: Int64[np.ndarray, " zoo"] | None,
    size: int,
    seed: int,
) -> Int64[np.ndarray, " m"]:
    """About `size` of the adapters `rows`, ascending; a smaller size gives a part of what a larger one gives.

    Groups stay whole, so the count is the first that reaches the size.

    Args:
        rows: adapters of a zoo.
        labels: class of every adapter of the zoo.
        groups: of every adapter of the zoo, or None.
        size: how many; all, where there are no more.
        seed: of the draw.
    """
    order = nested_order(labels[rows], None if groups is None else groups[rows], seed)
    reached = np.cumsum([len(own) for own in order])
    count = int(np.searchsorted(reached, min(size, len(rows)))) + 1
    return np.sort(rows[np.concatenate(order[:count])])
