"""How often 95 % intervals hold a difference of nothing: python -m tests.bench.coverage [TRIALS [SEED]].

A data set of 200 adapters in three classes is drawn anew for every trial, with two representations of four features
that say as much as one another: the same class means under other noise (a null). A member is a nearest class mean,
trained on a bootstrap sample (its seed) of the 140 training adapters and tested on 40. What an interval should hold is
0, the mean difference over data sets, splits and seeds.
"""

import sys

import numpy as np
from jaxtyping import Bool, Float, Int64

from lorabench.ablation.inference import corrected_t
from lorabench.ablation.statistics import paired_difference

__all__ = ["coverage", "main"]

_ADAPTERS, _CLASSES, _FEATURES = 200, 3, 4
_TRAIN, _VAL = 140, 20
_DESIGNS = ((1, 3), (1, 10), (5, 1), (5, 2), (5, 3), (5, 10))
_NULLS = {"alike": 0.6, "both at chance": 0.0}


def coverage(splits: int, members: int, signal: float, trials: int, seed: int) -> dict[str, float]:
    """Share of trials whose interval holds 0: "bootstrap" and "corrected_t", which needs two splits.

    Args:
        splits: of every data set.
        members: of every split.
        signal: distance of the class means in every feature, in standard deviations of the noise.
        trials: data sets.
        seed: of all draws.
    """
    rng = np.random.default_rng([seed, splits, members])
    held = np.zeros(2)
    for _ in range(trials):
        labels = rng.permutation(np.arange(_ADAPTERS) % _CLASSES)
        means = rng.standard_normal((1, _CLASSES, _FEATURES)) * signal
        features = means[:, labels] + rng.standard_normal((2, _ADAPTERS, _FEATURES))
        correct, tested = _members(features, labels, splits, members, rng)
        gain = correct[0] - correct[1]
        by_split = gain.reshape(splits, members, _ADAPTERS)
        rows = gain if splits == 1 else by_split.mean(1)
        cells = tested.reshape(splits, members, _ADAPTERS)[:, 0] if splits > 1 else tested
        found = paired_difference(rows, np.zeros_like(rows), draws=200, tested=cells)
        held[0] += found.low <= 0 <= found.high
        if splits > 1:
            n_test = _ADAPTERS - _TRAIN - _VAL
            low, high = corrected_t(by_split.sum(2) / n_test, n_test / _TRAIN).interval()
            held[1] += low <= 0 <= high
    return {"bootstrap": held[0] / trials, "corrected_t": held[1] / trials if splits > 1 else np.nan}


def _members(
    features: Float[np.ndarray, "arms n f"],
    labels: Int64[np.ndarray, " n"],
    splits: int,
    members: int,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "arms rows n"], Bool[np.ndarray, "rows n"]]:
    """1 where a member of an arm names a test adapter right, and which adapters it tests."""
    tested = np.zeros((splits * members, _ADAPTERS), bool)
    weights = np.zeros((splits * members, _ADAPTERS))
    for row in range(splits * members):
        if row % members == 0:
            order = rng.permutation(_ADAPTERS)
        tested[row, order[_TRAIN + _VAL :]] = True
        np.add.at(weights[row], rng.choice(order[:_TRAIN], _TRAIN), 1)
    onehot = weights[:, None] * (labels == np.arange(_CLASSES)[:, None])  # rows, classes, adapters
    means = (onehot @ features[:, None]) / np.maximum(1, onehot.sum(2))[..., None]
    distance = (means**2).sum(-1)[..., None] - 2 * means @ features[:, None].swapaxes(2, 3)
    return ((distance.argmin(2) == labels) & tested).astype(np.float64), tested


def main(trials: int = 400, seed: int = 0) -> None:
    """Print a Markdown table."""
    print(f"{trials} trials a row, seed {seed}; the standard error of a share of 95 % is {95 / trials**0.5 / 4.36:.1f}")
    print("\n| null | splits | members a split | bootstrap | corrected t |\n|---|---|---|---|---|")
    for null, signal in _NULLS.items():
        for splits, members in _DESIGNS:
            found = coverage(splits, members, signal, trials, seed)
            texts = ["–" if np.isnan(value) else f"{100 * value:.1f}" for value in found.values()]
            print(f"| {null} | {splits} | {members} | {' | '.join(texts)} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
