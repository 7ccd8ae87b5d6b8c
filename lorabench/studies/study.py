"""What a study is: the trainings that it wants, and what their outcomes say."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from lorabench.studies.models import Base
from lorabench.studies.training import Outcome, Setting

__all__ = ["Mean", "Report", "Study", "correlation", "mean_of", "paired"]

_DRAWS = 2000


@dataclass(frozen=True)
class Mean:
    """A mean and its 95 % t-interval: none of a single value, nor where all are the same, as counts of few may be."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        """For tables."""
        if self.low is None or self.high is None:
            return f"{self.mean:.3g}"
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Report:
    """What a study found.

    Attributes:
        columns: of its table.
        rows: cells, in words.
        says: sentences, each made from the numbers.
        numbers: for machines.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    says: Sequence[str]
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Study(ABC):
    """One question.

    Args:
        seeds: trainings of every setting.
        steps: of each.
        train, test: texts.
        learning_rate: of AdamW, constant.
    """

    seeds: int = 3
    steps: int = 300
    train: int = 512
    test: int = 400
    learning_rate: float = 1e-3

    @abstractmethod
    def settings(self, base: Base) -> list[Setting]:
        """The trainings that are wanted."""

    @abstractmethod
    def report(self, outcomes: Mapping[Setting, Outcome], base: Base) -> Report:
        """What their outcomes say; all are there."""

    @abstractmethod
    def figure(self, outcomes: Mapping[Setting, Outcome]) -> Figure:
        """The picture of it."""

    def common(self, **own: Any) -> dict[str, Any]:
        """What all settings of a study share."""
        every = max(1, self.steps // 10)
        shared = {"steps": self.steps, "train": self.train, "test": self.test, "every": every}
        return {**shared, "learning_rate": self.learning_rate, **own}


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and t-interval over seeds.

    >>> str(mean_of([1.0, 2.0, 3.0]))
    '2 [-0.484, 4.48]'
    """
    mean = float(np.mean(values))
    if len(set(values)) < 2:
        return Mean(mean, None, None, len(values))
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Mean(mean, mean - half, mean + half, len(values))


def paired(first: Sequence[float], second: Sequence[float]) -> Mean:
    """The mean difference first − second, paired by seed, with its t-interval."""
    return mean_of([a - b for a, b in zip(first, second, strict=True)])


def correlation(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Mean:
    """Spearman's correlation with a bootstrap interval over the pairs."""
    a, b = np.asarray(first, float), np.asarray(second, float)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(_DRAWS):
        rows = rng.integers(0, len(a), len(a))
        if np.ptp(a[rows]) > 0 and np.ptp(b[rows]) > 0:
            draws.append(scipy.stats.spearmanr(a[rows], b[rows]).statistic)
    if np.ptp(a) == 0 or np.ptp(b) == 0 or not draws:
        return Mean(float("nan"), None, None, len(a))
    low, high = np.quantile(draws, [0.025, 0.975])
    return Mean(float(scipy.stats.spearmanr(a, b).statistic), float(low), float(high), len(a))
