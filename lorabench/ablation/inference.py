"""What can be said over several splits, of several comparisons, and of nothing: tests with the error that they promise.

A split into training and test adapters is a draw too. The splits of one zoo share most of their training adapters, so
their results are alike and their plain variance is too small; `CorrectedT` makes up for it. A member (a seed) trains
on a split and is nested in it: members are averaged first, and the split is what is counted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

__all__ = ["CorrectedT", "corrected_t", "holm", "permutation_p"]


@dataclass(frozen=True)
class CorrectedT:
    """A mean difference over splits, with Student's t at an error that allows for shared training adapters.

    Attributes:
        mean: mean difference.
        error: its standard error; NaN for one split.
        freedom: degrees of freedom, one less than splits.
    """

    mean: float
    error: float
    freedom: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The interval mean ± t · error; NaN for one split."""
        if math.isnan(self.error):
            return math.nan, math.nan
        from scipy.stats import t

        reach = float(t.ppf((1 + level) / 2, self.freedom)) * self.error
        return self.mean - reach, self.mean + reach

    @property
    def p(self) -> float:
        """Two-sided p of no difference; NaN for one split."""
        return float(np.minimum(1.0, 2 * self._above(abs(self.mean))))

    def equivalence(self, margin: float) -> float:
        """The p of a difference of `margin` or more in either direction by two one-sided tests
        (Schuirmann 1987).

        Below α it says that the arms differ by less than the margin; that is so exactly where the 1 − 2α interval
        lies within ±margin. A large p says nothing.

        >>> round(CorrectedT(0.01, 0.01, 4).equivalence(0.05), 4)
        0.0081

        Raises:
            ValueError: a margin that is not above 0.
        """
        if not margin > 0:
            raise ValueError(f"margin={margin}: a share above 0 is needed, such as 0.03 for three points")
        return self._above(margin - abs(self.mean))

    def _above(self, distance: float) -> float:
        """Probability that t is above `distance` in units of the error."""
        if math.isnan(self.error):
            return math.nan
        if self.error == 0:
            return 0.5 if distance == 0 else float(distance < 0)
        from scipy.stats import t

        return float(t.sf(distance / self.error, self.freedom))


def corrected_t(differences: Float[np.ndarray, "splits members"], test_to_train: float) -> CorrectedT:
    """The corrected resampled t of paired differences (Nadeau & Bengio 2003, Machine Learning 52, eq. 9).

    error² = (1/K + n_test / n_train) · S², with K splits and S² the sample variance of their means over members. The
    second term stands for the correlation of splits whose training adapters overlap: no number of splits of one zoo
    makes the error smaller than that. It is an approximation, measured by `tests/bench/coverage.py`.

    >>> found = corrected_t(np.array([[0.02], [0.04], [0.03]]), 0.25)
    >>> [round(value, 4) for value in (found.mean, found.error, *found.interval())]
    [0.03, 0.0076, -0.0029, 0.0629]

    Args:
        differences: of test accuracies, paired by member, [splits, members]; NaN where a member failed.
        test_to_train: n_test / n_train, in adapters.

    Raises:
        ValueError: no split, a split without a member that ended well, or a ratio that is not above 0.
    """
    if not differences.size or np.isnan(differences).all(1).any():
        raise ValueError(f"differences are {differences.shape}: every split needs a member that ended well")
    if not test_to_train > 0:
        raise ValueError(f"test_to_train={test_to_train}: a ratio above 0 is needed")
    by_split = np.nanmean(differences, 1)
    splits = len(by_split)
    spread = float(by_split.std(ddof=1)) if splits > 1 else math.nan
    if np.ptp(by_split) == 0 and splits > 1:
        spread = 0.0  # not what rounding leaves of equal numbers
    return CorrectedT(float(by_split.mean()), math.sqrt(1 / splits + test_to_train) * spread, splits - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for being several: the family-wise error stays below α whatever their dependence (Holm 1979).

    In ascending order the i-th of n is multiplied by n − i + 1, and none is below the one before it. NaN stays NaN and
    is not counted.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return [float(value) for value in adjusted]


def permutation_p(observed: float, draws: Sequence[float]) -> float:
    """The p of a fall as large as this one among falls by chance: (1 + #{draw ≥ observed}) / (1 + draws).

    The observed one is counted among the draws, so no p is 0 and 20 draws reach 0.048 (Phipson & Smyth 2010). Draws
    within 1e-12 of the observed one are as large. NaN where there are none.

    >>> permutation_p(0.3, [0.1, 0.2, 0.3])
    0.5
    """
    if not len(draws):
        return math.nan
    return (1 + sum(draw >= observed - 1e-12 for draw in draws)) / (1 + len(draws))
