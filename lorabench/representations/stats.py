"""Seven summary statistics of the entries."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from lorabench.representations.matrices import Matrices
from lorabench.representations.moments import Moments

__all__ = ["Stats"]


@dataclass
class Stats(Moments):
    """Mean, standard deviation, median, minimum, maximum, skewness and kurtosis of the entries: 7 features.

    Of the population: std = √m₂, skewness = m₃/m₂^1.5, kurtosis = m₄/m₂² − 3 (excess), with mₖ the mean k-th
    power of the centred entries; `kurtosis` and `std` say otherwise (`Moments`). Skewness and kurtosis of a constant
    matrix are 0.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The 7 names."""
        return ("mean", "std", "median", "min", "max", "skewness", "kurtosis")

    def compute(self, matrices: Matrices) -> Float64[Tensor, "n 7"]:
        """The 7 statistics, [n, 7]."""
        median = matrices.quantiles((0.5,))[:, 0]
        columns = [matrices.mean, self.std_of(matrices), median, matrices.minimum, matrices.maximum]
        return torch.stack([*columns, *self.shape_of(matrices)], dim=1)
