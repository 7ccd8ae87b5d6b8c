"""The most frequent class of the training adapters, and how often naming it always is right."""

import numpy as np
from jaxtyping import Int64

from lorabench.zoo.splits import Split

__all__ = ["chance", "majority"]


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
