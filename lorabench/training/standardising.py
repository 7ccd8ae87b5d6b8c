"""Features less their mean over the training rows, in their standard deviations there."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

__all__ = ["Scaling", "mean_and_scale", "standardised"]


def mean_and_scale(known: Float[Tensor, "m f"]) -> tuple[Float64[Tensor, " f"], Float64[Tensor, " f"]]:
    """μ and σ (population) of every feature over the rows that are known; a constant feature has the scale 1."""
    wide = known.double()
    mean, std = wide.mean(0), wide.std(0, correction=0)
    # Below float32's resolution of the mean, what varies is rounding.
    return mean, torch.where(std <= 1e-7 * mean.abs(), 1.0, std)


@dataclass(frozen=True)
class Scaling:
    """(x - μ) / σ, to be kept.

    Attributes:
        mean: μ, [f].
        scale: σ, 1 where a feature is constant, [f].
    """

    mean: Float64[Tensor, " f"]
    scale: Float64[Tensor, " f"]

    @classmethod
    def of(cls, known: Float[Tensor, "m f"]) -> "Scaling":
        """Of the rows that are known (`mean_and_scale`)."""
        return cls(*mean_and_scale(known))

    def applied(self, values: Float[Tensor, "n f"]) -> Float64[Tensor, "n f"]:
        """Values of any rows, standardised."""
        return (values.double() - self.mean) / self.scale


def standardised(values: Float[Tensor, "n f"], known: Float[Tensor, "m f"]) -> Float64[Tensor, "n f"]:
    """(x - μ) / σ, with μ and σ of the rows that are known."""
    return Scaling.of(known).applied(values)
