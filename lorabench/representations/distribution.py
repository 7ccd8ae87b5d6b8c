"""The distribution of the entries."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from lorabench.representations.handcrafted import LARGEST_RATIO
from lorabench.representations.matrices import Matrices, ratio
from lorabench.representations.moments import Moments

__all__ = ["Distribution"]

_LEVELS = (0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95)


@dataclass
class Distribution(Moments):
    """Seven quantiles, spread and shape of the entries: 12 features.

    Quantiles 5, 10, 25, 50, 75, 90, 95 % (linear between neighbours); IQR = q75 − q25; mean absolute
    deviation from the mean; coefficient of variation std/|mean|, at most 1/eps of float32 = 2²³, and 0 where
    the mean is exactly 0; skewness m₃/m₂^1.5 and excess kurtosis m₄/m₂² − 3, 0 for a constant matrix. All of
    the population; `kurtosis` and `std` say otherwise (`Moments`).
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The 12 names."""
        quantiles = (f"q{round(100 * level):02d}" for level in _LEVELS)
        return (*quantiles, "iqr", "mean_absolute_deviation", "variation", "skewness", "kurtosis")

    def compute(self, matrices: Matrices) -> Float64[Tensor, "n 12"]:
        """The 12 features, [n, 12]."""
        quantiles = matrices.quantiles(_LEVELS)
        range_of_half = quantiles[:, 4] - quantiles[:, 2]
        variation = ratio(self.std_of(matrices), matrices.mean.abs()).clamp(max=LARGEST_RATIO)
        columns = [range_of_half, matrices.deviation, variation, *self.shape_of(matrices)]
        return torch.cat([quantiles, torch.stack(columns, dim=1)], dim=1)
