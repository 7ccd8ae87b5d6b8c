"""What a constant reaches: how often the most frequent training class is right, and how far the best number is off."""

import numpy as np
import torch
from jaxtyping import Float64, Int64

from lorabench.classifiers import number_scores
from lorabench.zoo.splits import Split

__all__ = ["chance", "constant_scores", "majority"]


def majority(labels: Int64[np.ndarray, " n"], split: Split) -> int:
    """The class that most training adapters are of; the first of several.

    Args:
        labels: class of every adapter, from 0 where it is in the split.
        split: whose training rows count.
    """
    return int(np.bincount(labels[split.train]).argmax())


def chance(labels: Int64[np.ndarray, " n"], split: Split) -> float:
    """Share of the test adapters that are of `majority`: the accuracy, from 0 to 1, of naming it always."""
    return float(np.mean(labels[split.test] == majority(labels, split)))


def constant_scores(numbers: Float64[np.ndarray, " n"], split: Split) -> tuple[float, float]:
    """Mean absolute error and R² on the test adapters of the constant that is best for each on the training adapters.

    These are the median and the mean; R² is NaN where all test numbers are the same.

    Args:
        numbers: of every adapter.
        split: whose training rows say the constant.
    """
    train, test = numbers[split.train], torch.from_numpy(numbers[split.test])
    median, mean = (number_scores(torch.full_like(test, float(one)), test) for one in (np.median(train), train.mean()))
    return float(median["mae"]), float(mean["r2"])
