"""How sure a model may be: a temperature, and sets of classes that hold the right one as often as was promised."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

__all__ = ["TEMPERATURES", "Held", "mean_probabilities", "temperature"]

TEMPERATURES = (0.02, 50.0)
"""Between which one is looked for."""


def mean_probabilities(logits: Float[Tensor, "members n c"], warmth: float) -> Float64[Tensor, "n c"]:
    """Softmax of every member's logits over the temperature, in the mean over the members."""
    probabilities: Float64[Tensor, "n c"] = (logits.double() / warmth).softmax(-1).mean(0)
    return probabilities


def temperature(logits: Float[Tensor, "members n c"], labels: Int64[np.ndarray, " n"]) -> float:
    """The temperature whose `mean_probabilities` have the lowest mean -ln p of the right class (Guo et al. 2017).

    Args:
        logits: of adapters that were not trained on.
        labels: their classes.
    """
    from scipy.optimize import minimize_scalar

    right = torch.from_numpy(labels)[:, None]

    def loss(log_warmth: float) -> float:
        own = mean_probabilities(logits, math.exp(log_warmth)).gather(1, right)
        return float(-own.clamp(min=1e-300).log().mean())

    low, high = map(math.log, TEMPERATURES)
    return float(math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))


@dataclass(frozen=True)
class Held:
    """Scores of adapters that trained nothing and chose nothing, of which each group (leaf) counts the same.

    A new adapter of a new group scores above `quantile(error)` with a probability of `error` at most, if its group is
    drawn as theirs were: of G groups, group g weighs 1/(G + 1), shared out evenly over its adapters, and what is left
    lies at infinity (Lee, Barber & Willett 2023, hierarchical conformal prediction; with one adapter a group it is
    split conformal prediction, Vovk et al. 2005).

    Attributes:
        scores: ascending; the higher, the stranger.
        weights: of each; their sum is G/(G + 1).
    """

    scores: Float64[np.ndarray, " n"]
    weights: Float64[np.ndarray, " n"]

    @classmethod
    def of(cls, scores: Float[np.ndarray, " n"], groups: Sequence[Any] | np.ndarray) -> "Held":
        """From the scores of adapters and the group of each.

        >>> Held.of(np.array([0.3, 0.1, 0.2]), ["a", "b", "b"]).weights.tolist()
        [0.16666666666666666, 0.16666666666666666, 0.3333333333333333]
        """
        _, inverse, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
        weights = 1 / ((len(counts) + 1) * counts[inverse])
        order = np.argsort(scores, kind="stable")
        return cls(np.asarray(scores, np.float64)[order], weights[order].astype(np.float64))

    def check(self) -> None:
        """Refuse what `of` would not give, such as a stranger's file may hold.

        Raises:
            ValueError: scores and weights are not as many, or no such numbers.
        """
        if self.scores.ndim != 1 or self.scores.shape != self.weights.shape:
            raise ValueError("its scores and their weights are not as many")
        rising = np.isfinite(self.scores).all() and (np.diff(self.scores) >= 0).all()
        if not (rising and (self.weights > 0).all() and self.weights.sum() < 1):
            raise ValueError("its scores do not rise, or their weights are no shares")

    def quantile(self, error: float) -> float:
        """The score that a new adapter exceeds with a probability of `error` at most; infinite with too few groups.

        >>> held = Held.of(np.arange(1.0, 10.0), range(9))
        >>> held.quantile(0.1), held.quantile(0.5), held.quantile(0.05)
        (9.0, 5.0, inf)
        """
        reached = np.cumsum(self.weights) >= 1 - error - 1e-9
        return float(self.scores[int(np.argmax(reached))]) if reached.any() else math.inf

    def p_values(self, scores: Float[np.ndarray, " m"]) -> Float64[np.ndarray, " m"]:
        """The share of groups that are as strange as each of these scores, itself included."""
        above = np.concatenate([np.cumsum(self.weights[::-1])[::-1], [0.0]])
        unseen = 1 - self.weights.sum()
        reached = above[np.searchsorted(self.scores, scores, side="left")] + unseen
        found: Float64[np.ndarray, " m"] = np.minimum(reached, 1.0)
        return found

    def sets(self, probabilities: Float64[Tensor, "m c"], error: float) -> Bool[np.ndarray, "m c"]:
        """Which classes may be right: all with 1 - p up to the quantile (Sadinle, Lei & Wasserman 2019).

        They hold the right one with a probability of 1 - `error` at least; a set may be empty.
        """
        chosen: Bool[np.ndarray, "m c"] = (1 - probabilities).numpy() <= self.quantile(error)
        return chosen
