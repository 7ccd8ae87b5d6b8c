"""What can be said of accuracies: intervals, paired differences, and the agreement of rankings.

Every member (a set of layers, an "arm", under one seed) predicts the class of every adapter, so what is right and
wrong is a table with two crossed factors, seeds × adapters, and a mean over it is uncertain by both. Therefore
both are resampled, each with replacement and independently of the other: the pigeonhole bootstrap (Owen 2007), with
percentile intervals (Efron & Tibshirani 1993, ch. 13). Whoever is compared is compared under the same resamples
(their ch. 16), which takes out what the arms share: the luck of a seed, the difficulty of an adapter. Adapters of
one group (a leaf concept, an author) are not independent, so groups are resampled, not adapters.

Over several splits the rows are splits, not seeds (their members averaged), and every row has adapters that it does not
test: `tested` says which. The corrected t of `lorabench.ablation.inference` stands beside it there.
"""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Integer, UInt8

from lorabench.findings import Difference

__all__ = ["interval", "kendall_tau", "mean_correct", "paired_difference", "replicates", "two_sided"]

_NUMBERS = 2_000_000  # float64 values in one intermediate array: 16 MB


def replicates(
    correct: Bool[np.ndarray, "arms seeds adapters"] | Float[np.ndarray, "arms seeds adapters"],
    groups: Integer[np.ndarray, " _adapters"] | None = None,
    draws: int = 2000,
    seed: int = 0,
    tested: Bool[np.ndarray, "_seeds _adapters"] | None = None,
) -> Float64[np.ndarray, "draws arms"]:
    """Mean accuracy of every arm under `draws` resamples, the same for all arms, [draws, arms].

    A draw takes as many seeds and as many groups of adapters as there are, each with replacement: with w and v how
    often each came, accuracy = Σ wₛ vᵍ⁽ⁱ⁾ correctₛᵢ / Σ wₛ vᵍ⁽ⁱ⁾, over seeds s and adapters i of group g(i) (pigeonhole
    bootstrap, Owen 2007, Annals of Applied Statistics 1(2)). Columns are paired: their difference is a replicate of
    the arms' difference. So are calls of the same `seed`, seeds, groups and draws. A factor with one level is not
    resampled: one seed says nothing about seeds. Bools are summed exactly, so equal arms have equal columns.

    What varies with neither factor but from cell to cell is counted up to three times, (2 − 1/S)(2 − 1/G) − 1 times
    with S seeds and G groups, which makes intervals wide; of the variance between seeds (S − 1)/S is counted, which
    makes them narrow for 2 or 3 seeds. No bootstrap of two crossed factors is exact (McCullagh 2000, Bernoulli 6).

    >>> always_right = np.ones((1, 3, 4), bool)
    >>> replicates(always_right, draws=2)
    array([[1.],
           [1.]])

    Args:
        correct: 1 where the prediction is right, [arms, seeds, adapters]; a mean where one seed has several draws.
        groups: code of each adapter's group, [adapters]; None: each is its own.
        draws: number of resamples.
        seed: of the resampling.
        tested: which cells count, [seeds, adapters]; None: all. A resample without any such cell is NaN.

    Returns:
        Fractions, [draws, arms]; all NaN where nothing can be resampled (one seed and one group).

    Raises:
        ValueError: no arms, seeds or adapters, a group missing, or a value that is not finite.
    """
    order, first = _grouped(correct, groups)
    (arms, seeds, adapters), n_groups = correct.shape, len(first)
    cells = np.ones((seeds, adapters), bool) if tested is None else tested
    counts = np.add.reduceat(cells[:, order], first, axis=1, dtype=np.float64)
    if seeds == 1 and n_groups == 1:
        return np.full((draws, arms), np.nan)
    rng = np.random.default_rng(seed)
    seed_weights, group_weights = _counts(rng, draws, seeds), _counts(rng, draws, n_groups)
    accuracy = np.empty((draws, arms))
    for some in _slices(arms, seeds * adapters):
        right_cells = correct[some] if tested is None else np.where(tested, correct[some], 0)
        sums = np.add.reduceat(right_cells[..., order], first, axis=-1, dtype=np.float64)
        flat = sums.reshape(-1, n_groups)
        for rows in _slices(draws, max(flat.shape)):
            weights = group_weights[rows].astype(np.float64)
            by_seed = (weights @ flat.T).reshape(len(weights), -1, seeds)
            by_row = seed_weights[rows, :, None].astype(np.float64)
            right, total = (by_seed @ by_row)[..., 0], ((weights @ counts.T)[:, None] @ by_row)[..., 0]
            with np.errstate(invalid="ignore"):  # 0 / 0 of a resample that nobody tested is the NaN that is promised
                accuracy[rows, some] = right / total
    return accuracy


def mean_correct(
    correct: Bool[np.ndarray, "arms rows n"] | Float[np.ndarray, "arms rows n"],
    tested: Bool[np.ndarray, "_rows _n"] | None,
    axes: int | tuple[int, int],
) -> Float64[np.ndarray, "*left"]:
    """The mean over some axes of the cells that count (`tested`, as in `replicates`)."""
    return np.asarray(correct.mean(axes) if tested is None else correct.mean(axes, where=tested[None]))


def interval(
    values: Float64[np.ndarray, " draws *rest"], level: float = 0.95
) -> tuple[Float64[np.ndarray, " *rest"], Float64[np.ndarray, " *rest"]]:
    """The percentile interval (low, high) of replicates, each [*rest] (Efron & Tibshirani 1993, ch. 13).

    NaN where a replicate is NaN.
    """
    low, high = np.quantile(values, ((1 - level) / 2, (1 + level) / 2), axis=0)
    return np.asarray(low), np.asarray(high)


def paired_difference(
    first: Bool[np.ndarray, "seeds adapters"] | Float[np.ndarray, "seeds adapters"],
    second: Bool[np.ndarray, "_seeds _adapters"] | Float[np.ndarray, "_seeds _adapters"],
    groups: Integer[np.ndarray, " _adapters"] | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    tested: Bool[np.ndarray, "_seeds _adapters"] | None = None,
) -> Difference:
    """Mean accuracy of `first` minus that of `second`, paired by seed and adapter, with interval and p-value.

    p = min(1, 2 · min(#{d* ≤ 0} + 1, #{d* ≥ 0} + 1) / (draws + 1)) over the replicates d* of the difference: no
    p-value is below 2 / (draws + 1). Resampling and its limits are those of `replicates`.

    >>> right, wrong = np.ones((2, 9), bool), np.zeros((2, 9), bool)
    >>> paired_difference(right, wrong, draws=1999)
    Difference(difference=1.0, low=1.0, high=1.0, p=0.001, seeds=2, adapters=9, corrected=None)

    Args:
        first: 1 where the prediction is right, [seeds, adapters]; a mean where one seed has several draws.
        second: the same seeds and adapters of the other arm.
        groups: code of each adapter's group, [adapters]; None: each is its own.
        draws: number of resamples.
        seed: of the resampling.
        level: of the interval.
        tested: which cells count, as in `replicates`.

    Raises:
        ValueError: shapes that differ, no seeds or adapters, a group missing, or a value that is not finite.
    """
    if first.shape != second.shape:
        raise ValueError(f"first is {first.shape}, second is {second.shape}: both are [seeds, adapters] of the same")
    gain = first.astype(np.float64) - second  # before resampling, so that equal arms differ by exactly zero
    values = replicates(gain[None], groups, draws, seed, tested)[:, 0]
    low, high = interval(values, level)
    mean = gain.mean() if tested is None else gain.mean(where=tested)
    return Difference(float(mean), float(low), float(high), two_sided(values), *first.shape)


def two_sided(replicas: Float64[np.ndarray, " draws"]) -> float:
    """P = min(1, 2 · min(#{d* ≤ 0} + 1, #{d* ≥ 0} + 1) / (draws + 1)) of replicates d*; NaN where one is NaN."""
    if np.isnan(replicas).any():
        return math.nan
    rounded = replicas.round(12)  # means of draws are thirds and the like: a difference of nothing is to be zero
    beyond = 1 + min((rounded <= 0).sum(), (rounded >= 0).sum())
    return min(1.0, 2 * float(beyond) / (len(replicas) + 1))


def kendall_tau(scores: Float[np.ndarray, "seeds units"]) -> Float64[np.ndarray, "seeds seeds"]:
    """Kendall's τ-b between every two rows, [seeds, seeds]: how far two seeds agree on the order of the units.

    τ-b = (concordant − discordant) / √(pairs untied in one · pairs untied in the other) (Kendall 1945). NaN where a
    row is constant (as a single unit is) or holds a NaN.

    >>> kendall_tau(np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]]))
    array([[ 1., -1.],
           [-1.,  1.]])
    """
    left, right = np.triu_indices(scores.shape[1], 1)
    signs = np.sign(scores[:, left].astype(np.float64) - scores[:, right])
    agreement = signs @ signs.T
    untied = agreement.diagonal()
    with np.errstate(invalid="ignore"):  # 0 / 0 of a constant row is the NaN that is promised
        return np.asarray(agreement / np.sqrt(np.outer(untied, untied)))


def _grouped(
    correct: Bool[np.ndarray, "arms seeds adapters"] | Float[np.ndarray, "arms seeds adapters"],
    groups: Integer[np.ndarray, " _adapters"] | None,
) -> tuple[Int64[np.ndarray, " adapters"], Int64[np.ndarray, " groups"]]:
    """An order of the adapters that has groups in one piece, and where each begins."""
    if not correct.size:
        raise ValueError(f"correct is {correct.shape}: at least one arm, seed and adapter are needed")
    adapters = correct.shape[-1]
    codes = np.arange(adapters) if groups is None else groups
    if len(codes) != adapters:
        raise ValueError(f"groups has {len(codes)} codes for {adapters} adapters")
    if not np.isfinite(correct.sum()):
        raise ValueError("correct holds a value that is not finite: leave out the members that failed")
    return np.argsort(codes, kind="stable"), np.unique(np.sort(codes), return_index=True)[1]


def _counts(rng: np.random.Generator, draws: int, n: int) -> UInt8[np.ndarray, "draws n"]:
    """How often each of n comes when n are drawn with replacement: multinomial weights, [draws, n].

    A byte holds them: for n > 255 a count above 255 has a probability below 1e-500.
    """
    counts = np.empty((draws, n), np.uint8)
    for row in counts:
        row[:] = np.bincount(rng.integers(n, size=n), minlength=n)
    return counts


def _slices(n: int, numbers_each: int) -> Iterator[slice]:
    """Consecutive slices of range(n), each with `_NUMBERS` values at most, or one item."""
    step = max(1, _NUMBERS // numbers_each)
    return (slice(start, start + step) for start in range(0, n, step))
