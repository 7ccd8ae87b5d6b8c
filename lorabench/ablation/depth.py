"""The depth question as a number: does what a layer says alone rise or fall with its place in the network?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from lorabench.ablation.crossed import Crossed
from lorabench.ablation.statistics import interval, mean_correct, replicates
from lorabench.adapters.places import groups
from lorabench.findings import Number

__all__ = ["DepthCorrelation", "depth_correlations", "spearman"]

_FEWEST = 3


@dataclass(frozen=True)
class DepthCorrelation:
    """Spearman's ρ of accuracy with depth, and its interval, over `count` layers; `layers` says which."""

    layers: str
    count: int
    rho: Number
    low: Number
    high: Number


def depth_correlations(layers: Sequence[str], right: Crossed, draws: int = 2000) -> list[DepthCorrelation]:
    """Spearman's ρ between a layer's accuracy and the number of its block, of all layers, by factor and by projection.

    The interval is that of `replicates`, the accuracies of whose draws are correlated as the accuracies themselves
    are. A resample adds noise to every accuracy, so it leans to 0. Sets whose layers are in fewer than three blocks
    are left out, and so are layers outside the blocks.

    Args:
        layers: names of layers or modules, in the order of `right`.
        right: what each alone predicts right.
        draws: number of resamples.

    Returns:
        One of every set; ρ is NaN where all accuracies are the same.
    """
    blocks = [found for name, found in groups(layers, "block").items() if name != "other"]
    number = {layer: place for place, members in enumerate(blocks) for layer in members}
    accuracy = mean_correct(right.correct, right.cells, (1, 2))
    values = replicates(right.correct, right.groups, draws, tested=right.cells)
    sets = {"all": tuple(layers), **groups(layers, "factor"), **groups(layers, "projection")}
    found = []
    for name, members in sets.items():
        index = [place for place, layer in enumerate(layers) if layer in set(members) and layer in number]
        depth = np.array([number[layers[i]] for i in index], np.int64)
        if len(set(depth.tolist())) < _FEWEST or name == "other":
            continue
        rho = float(spearman(accuracy[None, index], depth)[0])
        low, high = interval(spearman(values[:, index], depth))
        found.append(DepthCorrelation(name, len(index), rho, float(low), float(high)))
    return found


def spearman(
    values: Float[np.ndarray, "draws n"], against: Int64[np.ndarray, " n"] | Float[np.ndarray, " n"]
) -> Float[np.ndarray, " draws"]:
    """Spearman's rank correlation of every row with `against`, ties at their mean rank; NaN of a constant.

    >>> spearman(np.array([[0.1, 0.2, 0.4], [0.4, 0.2, 0.1]]), np.array([1, 2, 3]))
    array([ 1., -1.])
    """
    from scipy.stats import rankdata

    rows, other = rankdata(values, axis=1), rankdata(against)
    rows, other = rows - rows.mean(1, keepdims=True), other - other.mean()
    length = np.sqrt((rows**2).sum(1)) * math.sqrt((other**2).sum())
    with np.errstate(invalid="ignore"):  # 0 / 0 of a constant is the NaN that is promised
        return np.asarray(rows @ other / length)
