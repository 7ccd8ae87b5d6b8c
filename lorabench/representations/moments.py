"""How a representation of the entries counts standard deviation and kurtosis."""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float64
from torch import Tensor

from lorabench.options import OneOf
from lorabench.representations.handcrafted import HandCrafted
from lorabench.representations.matrices import Matrices

__all__ = ["Moments"]


@dataclass
class Moments(HandCrafted):
    """Base of representations with a standard deviation s, a skewness m₃/s³ and a kurtosis m₄/s⁴ of N entries.

    mₖ is the mean k-th power of the centred entries. All three are 0 for a constant matrix.

    Args:
        on: as for every hand-crafted representation.
        kurtosis: `excess`: less the 3 of a normal distribution; `raw`: as it is.
        std: `population`: s² = m₂; `sample`: s² = m₂ · N / (N − 1), in skewness and kurtosis too.
    """

    kurtosis: Annotated[str, OneOf(["excess", "raw"])] = "excess"
    std: Annotated[str, OneOf(["population", "sample"])] = "population"

    def std_of(self, matrices: Matrices) -> Float64[Tensor, " n"]:
        """The standard deviation s of every matrix."""
        return matrices.std if self.std == "population" else matrices.std * _bessel(matrices) ** 0.5

    def shape_of(self, matrices: Matrices) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
        """Skewness and kurtosis of every matrix."""
        if self.std == "population":
            return matrices.skewness, matrices.kurtosis if self.kurtosis == "excess" else matrices.raw_kurtosis
        wider = _bessel(matrices)
        skewness, kurtosis = matrices.skewness / wider**1.5, matrices.raw_kurtosis / wider**2
        excess = torch.where(kurtosis == 0, 0.0, kurtosis - 3.0)
        return skewness, kurtosis if self.kurtosis == "raw" else excess


def _bessel(matrices: Matrices) -> float:
    """N / (N − 1); 1 for a single entry, whose deviation is 0."""
    count = matrices.flat.shape[1]
    return count / max(count - 1, 1)
