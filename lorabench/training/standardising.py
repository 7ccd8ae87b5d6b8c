"""Features less their mean over the training rows, in their standard deviations there."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

__all__ = ["mean_and_scale", "standardised"]


def mean_and_scale(known: Float[Tensor, "m f"]) -> tuple[Float64[Tensor, " f"], Float64[Tensor, " f"]]:
    """μ and σ (population) of every feature over the rows that are known; a constant feature has the scale 1."""
    wide = known.double()
    mean, std = wide.mean(0), wide.std(0, correction=0)
    # Below float32's resolution of the mean, what varies is rounding.
    return mean, torch.where(std <= 1e-7 * mean.abs(), 1.0, std)


def standardised(values: Float[Tensor, "n f"], known: Float[Tensor, "m f"]) -> Float64[Tensor, "n f"]:
    """(x - μ) / σ, with μ and σ of the rows that are known (`mean_and_scale`)."""
    mean, scale = mean_and_scale(known)
    return (values.double() - mean) / scale
