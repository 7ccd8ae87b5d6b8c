"""Which adapters are trained on, chosen by, and tested on."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from lorabench.errors import LorabenchError
from lorabench.text import counted
from lorabench.zoo.labels import Labels
from lorabench.zoo.targets import find_target

__all__ = ["Split", "fold_splits", "split_zoo"]

_PARTS = ("train", "val", "test")
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Split:
    """Three sets of adapters without an adapter or a group in common.

    Attributes:
        train: rows to train on, ascending.
        val: rows to choose by.
        test: rows to read once, at the end.
    """

    train: Int64[np.ndarray, " n_train"]
    val: Int64[np.ndarray, " n_val"]
    test: Int64[np.ndarray, " n_test"]


def split_zoo(
    labels: Labels,
    target: str = "category",
    train: float = 0.7,
    val: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    min_per_class: int | None = None,
    allow_group_overlap: bool = False,
    grouped: bool = True,
    stratified: bool = True,
) -> Split:
    """A seeded split, stratified by label and disjoint in groups.

    The source's own split wins; what it lacks (validation, say) is cut from its training rows. With
    `target="leaf"`, groups that are the leaves themselves cannot be kept apart and are ignored. Where groups bind,
    shares hold to within one group a class; without groups to within one adapter.

    With neither `grouped` nor `stratified`, rows are drawn as `datasets.Dataset.train_test_split` draws them, twice:
    what is not to train on first, then the test rows of these.

    Args:
        labels: of the adapters.
        target: what the classes are: category, leaf, or a column of the recipe.
        train: share of the training rows.
        val: share of the validation rows.
        test: share of the test rows.
        seed: of the draw.
        min_per_class: leave out classes with fewer adapters (or groups, where those bind); None keeps all.
        allow_group_overlap: take a source's own split although a group of it is in two parts.
        grouped: False lets adapters of one group be on several sides.
        stratified: False draws adapters whatever their class, which needs `grouped=False`.

    Raises:
        LorabenchError: no such target, shares that are no shares, a single class, a class too small for a part of
            each kind, a source's own split that tears a group, or groups without strata.
    """
    shares = _shares(train, val, test)
    if grouped and not stratified:
        raise LorabenchError(
            "split.stratified=false draws adapter by adapter and keeps no group together: set split.grouped=false too"
        )
    found = find_target(labels, target)
    codes, names = found.codes, found.names
    units = _units(labels, target) if grouped else np.arange(len(codes))
    rows = _rows_of_large_classes(codes, units, min_per_class)
    if len(np.unique(codes[rows])) < 2:
        _refuse_single_class(codes, names, rows, target, min_per_class)
    part = np.full(len(codes), -1, np.int64)
    own = labels.split
    if own is None or len(np.unique(own[rows])) == 1:
        if stratified:
            _check_size(codes[rows], units[rows], names, target)
        part[rows] = _draw(codes[rows], units[rows], shares, seed) if stratified else _shuffled(len(rows), shares, seed)
    else:
        part[rows] = own[rows]
        if not allow_group_overlap:
            _refuse_torn_groups(part, units, labels)
        _complete(part, codes, units, shares, seed, stratified)
    _check_classes(part, codes, names, target)
    return Split(*(np.flatnonzero(part == number) for number in range(len(_PARTS))))


def _shares(train: float, val: float, test: float) -> Float64[np.ndarray, " parts"]:
    shares = np.array([train, val, test], np.float64)
    if not (shares > 0).all() or abs(shares.sum() - 1) > _TOLERANCE:
        raise LorabenchError(
            f"split: train={train}, val={val}, test={test} must each be above 0 and sum to 1, for instance "
            "0.7, 0.1, 0.2"
        )
    return shares


def _units(labels: Labels, target: str) -> Int64[np.ndarray, " n"]:
    """What is moved as one: the group of each adapter, or the adapter where no group binds."""
    if labels.group is None:
        return np.arange(len(labels.adapters))
    group = np.unique(labels.group, return_inverse=True)[1].astype(np.int64)
    if target == "leaf":
        pairs = np.unique(np.stack([labels.leaf, group]), axis=1).shape[1]
        if pairs == len(np.unique(labels.leaf)) == len(np.unique(group)):
            return np.arange(len(group))
    return group


def _units_of_classes(codes: Int64[np.ndarray, " n"], units: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " c"]:
    """The number of units in which each class appears, by its code."""
    return np.bincount(np.unique(np.stack([codes, units]), axis=1)[0])


def _rows_of_large_classes(
    codes: Int64[np.ndarray, " n"], units: Int64[np.ndarray, " n"], least: int | None
) -> Int64[np.ndarray, " kept"]:
    if least is None:
        return np.arange(len(codes))
    return np.flatnonzero(_units_of_classes(codes, units)[codes] >= least)


def _refuse_single_class(
    codes: Int64[np.ndarray, " n"],
    names: tuple[str, ...],
    rows: Int64[np.ndarray, " kept"],
    target: str,
    least: int | None,
) -> None:
    left = [names[code] for code in np.unique(codes[rows])]
    if least is not None and len(np.unique(codes)) > len(left):
        why, remedy = f" of {len(np.unique(codes))} with split.min_per_class={least}", "a smaller split.min_per_class"
    else:
        why, remedy = "", "a data set with more classes"
    raise LorabenchError(
        f"target={target}: {counted(len(left), 'class', 'classes')} left{why}, {left}; a classifier needs at "
        f"least 2. Take {remedy}, or another target."
    )


def _check_size(
    codes: Int64[np.ndarray, " n"], units: Int64[np.ndarray, " n"], names: tuple[str, ...], target: str
) -> None:
    """Every class needs a unit in each part."""
    needed = len(_PARTS)
    counts = _units_of_classes(codes, units)
    small = np.flatnonzero((counts < needed) & (np.bincount(codes) > 0))
    if len(small) == 0:
        return
    first = int(small[np.argmin(counts[small])])
    adapters = int((codes == first).sum())
    kind = "adapters" if len(np.unique(units)) == len(units) else f"groups ({adapters} adapters)"
    more = f" ({len(small)} classes are too small)" if len(small) > 1 else ""
    raise LorabenchError(
        f"target={target}: class {names[first]!r} has {counts[first]} {kind}, and {needed} are needed, one for "
        f"each of {', '.join(_PARTS)}{more}. Add adapters, remove the class, or set split.min_per_class={needed} "
        "to leave out such classes."
    )


def _draw(
    codes: Int64[np.ndarray, " n"],
    units: Int64[np.ndarray, " n"],
    shares: Float64[np.ndarray, " parts"],
    seed: int,
) -> Int64[np.ndarray, " n"]:
    """The part of each adapter: units in random order, large ones first, go where their classes lack most.

    A class that has as few units left as parts that lack it goes to one of those: so every part sees every class
    as far as groups allow, the training part before the others.
    """
    classes, codes = np.unique(codes, return_inverse=True)
    members = np.unique(units, return_inverse=True)[1]
    pairs, counts = np.unique(np.stack([members, codes]), axis=1, return_counts=True)
    bounds = np.searchsorted(pairs[0], np.arange(members.max() + 2))
    wanted = shares[:, None] * np.bincount(codes)
    absent = np.ones((len(shares), len(classes)), bool)
    left = np.bincount(pairs[1])
    chosen = np.empty(members.max() + 1, np.int64)
    order = np.random.default_rng(seed).permutation(members.max() + 1)
    for unit in order[np.argsort(-np.bincount(members)[order], kind="stable")]:
        inside = slice(bounds[unit], bounds[unit + 1])
        held, size = pairs[1, inside], counts[inside]
        urgent = left[held] <= absent[:, held].sum(axis=0)
        needy = (absent[:, held] & urgent).any(axis=1)
        part = int(np.argmax(needy if needy.any() else wanted[:, held] @ size))
        chosen[unit] = part
        wanted[part, held] -= size
        absent[part, held] = False
        left[held] -= 1
    return chosen[members]


def _shuffled(count: int, shares: Float64[np.ndarray, " parts"], seed: int) -> Int64[np.ndarray, " n"]:
    """The part of each of `count` rows, by one `train_test_split` of `datasets` a part, the training rows first.

    It takes the first ⌈share · n⌉ places of `np.random.default_rng(seed).permutation(n)` for what is to be split again.
    """
    part, rows = np.zeros(count, np.int64), np.arange(count)
    for number in range(1, len(shares)):
        share = round(float(shares[number:].sum() / shares[number - 1 :].sum()), 9)  # 0.3, not 0.30000000000000004
        rows = rows[np.random.default_rng(seed).permutation(len(rows))[: math.ceil(share * len(rows))]]
        part[rows] = number
    return part


def _complete(
    part: Int64[np.ndarray, " n"],
    codes: Int64[np.ndarray, " n"],
    units: Int64[np.ndarray, " n"],
    shares: Float64[np.ndarray, " parts"],
    seed: int,
    stratified: bool,
) -> None:
    """Cut what the source's own split lacks from its training rows, in place."""
    rows = np.flatnonzero(part == 0)
    if len(rows) == 0:
        raise LorabenchError("the data set's own split has no training rows; add them, or remove its split")
    given = [0, *(number for number in range(1, len(shares)) if not (part == number).any())]
    if len(given) > 1:
        own = shares[given] / shares[given].sum()
        drawn = _draw(codes[rows], units[rows], own, seed) if stratified else _shuffled(len(rows), own, seed)
        part[rows] = np.array(given)[drawn]


def _refuse_torn_groups(part: Int64[np.ndarray, " n"], units: Int64[np.ndarray, " n"], labels: Labels) -> None:
    """A group on both sides makes the test rows easier than new ones are."""
    known = np.flatnonzero(part >= 0)
    pairs = np.unique(np.stack([units[known], part[known]]), axis=1)
    torn, sides = np.unique(pairs[0], return_counts=True)
    torn = torn[sides > 1]
    if len(torn) == 0:
        return
    rows = known[units[known] == torn[0]]
    one, other = rows[0], rows[part[rows] != part[rows[0]]][0]
    raise LorabenchError(
        f"the data set's own split tears {counted(len(torn), 'group')}: {labels.adapters[one]!r} "
        f"({_PARTS[part[one]]}) and {labels.adapters[other]!r} ({_PARTS[part[other]]}) are of one. Mend the split, "
        "leave it out, or set split.allow_group_overlap=true to take it as it is."
    )


def _check_classes(
    part: Int64[np.ndarray, " n"], codes: Int64[np.ndarray, " n"], names: tuple[str, ...], target: str
) -> None:
    empty = [_PARTS[number] for number in range(len(_PARTS)) if not (part == number).any()]
    if empty:
        raise LorabenchError(
            f"target={target}: no adapters are left for {empty[0]}; the groups are too few and too large. Use more "
            "adapters or smaller groups."
        )
    absent = np.setdiff1d(codes[part >= 0], codes[part == 0])
    if len(absent):
        raise LorabenchError(
            f"target={target}: class {names[absent[0]]!r} has no adapter to train on (of {len(absent)} such "
            "classes), since groups, the data set's own split or a draw without strata keep it on one side. Choose "
            "another target, or remove these adapters."
        )


def fold_splits(
    codes: Int64[np.ndarray, " n"], groups: Int64[np.ndarray, " n"] | None, split: Split, count: int, seed: int
) -> list[Split]:
    """Cross-validation within the training and validation rows of a split: each of them is tested once.

    Folds are stratified by class and disjoint in groups, as splits are; groups that are the classes themselves cannot
    be kept apart and are ignored. What a fold leaves is parted into training and validation rows as the split was.

    Args:
        codes: class of every adapter of the zoo.
        groups: code of the group of each; None: each is its own.
        split: whose test rows stay out of it.
        count: number of folds, 2 or more.
        seed: of the draw.

    Raises:
        LorabenchError: fewer adapters (or groups) of a class than folds.
    """
    rows = np.sort(np.concatenate([split.train, split.val]))
    of_rows, units = codes[rows], np.arange(len(rows)) if groups is None else groups[rows]
    if len(np.unique(np.stack([of_rows, units]), axis=1)[0]) == len(np.unique(of_rows)) == len(np.unique(units)):
        units = np.arange(len(rows))
    fewest = int(_units_of_classes(of_rows, units)[np.unique(of_rows)].min())
    if count < 2 or fewest < count:
        raise LorabenchError(
            f"folds={count}: 2 to {max(2, fewest)} are possible; the smallest class has {fewest} adapters (or groups) "
            "outside the test split. folds=1 ranks on the validation adapters alone"
        )
    fold = _draw(of_rows, units, np.full(count, 1 / count), seed)
    share = len(split.val) / len(rows)
    found = []
    for number in range(count):
        left = np.flatnonzero(fold != number)
        part = _draw(of_rows[left], units[left], np.array([1 - share, share]), seed)
        found.append(Split(rows[left[part == 0]], rows[left[part == 1]], rows[fold == number]))
    return found
