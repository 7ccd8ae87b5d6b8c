"""A batch of matrices that remembers what was derived from it: many features share one sort and spectrum."""

from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from lorabench import lowrank

__all__ = ["DeltaMatrices", "FactorMatrices", "Matrices", "ratio"]


def ratio(above: Float64[Tensor, "*shape"], below: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """`above` / `below`, and 0 where `below` is 0: the ratios of an all-zero or constant matrix."""
    return torch.where(below == 0, 0.0, above / below)


class Matrices(ABC):
    """n matrices [n, rows, cols] with N = rows · cols entries each, and what features derive from them, once.

    Every property is computed at its first use and kept. Means are taken in float64, and powers of what is
    left relative to the largest deviation: neither entries of 1e-20 or 1e+15 nor a mean far above the spread
    cost digits. Statistics are of the population (divided by N).
    """

    @property
    @abstractmethod
    def values(self) -> Float32[Tensor, "n rows cols"]:
        """The entries."""

    @property
    @abstractmethod
    def singular_values(self) -> Float64[Tensor, "n k"]:
        """Singular values, descending: min(rows, cols) of them for a factor, the rank r for a ΔW."""

    @cached_property
    def flat(self) -> Float32[Tensor, "n N"]:
        """The entries of each matrix, row by row."""
        return self.values.flatten(1)

    @cached_property
    def sorted(self) -> Float32[Tensor, "n N"]:
        """The entries in ascending order."""
        if self.flat.device.type == "cpu":
            # numpy sorts with AVX-512, ten times faster than torch on a CPU.
            return torch.from_numpy(np.sort(self.flat.numpy(), axis=-1))
        return self.flat.sort(-1).values

    @cached_property
    def minimum(self) -> Float64[Tensor, " n"]:
        """The smallest entry."""
        return self.flat.amin(-1).double()

    @cached_property
    def maximum(self) -> Float64[Tensor, " n"]:
        """The largest entry."""
        return self.flat.amax(-1).double()

    def quantiles(self, levels: tuple[float, ...]) -> Float64[Tensor, "n levels"]:
        """Quantiles at `levels` in [0, 1], linear between neighbours (numpy's default), [n, len(levels)]."""
        last = self.sorted.shape[1] - 1
        places = [level * last for level in levels]
        lower = self.sorted[:, [int(place) for place in places]].double()
        upper = self.sorted[:, [min(int(place) + 1, last) for place in places]].double()
        weight = torch.tensor([place % 1 for place in places], dtype=torch.float64, device=lower.device)
        return torch.lerp(lower, upper, weight)

    @cached_property
    def wide(self) -> Float64[Tensor, "n rows cols"]:
        """The entries in float64."""
        return self.values.double()

    @cached_property
    def mean(self) -> Float64[Tensor, " n"]:
        """Mean of the entries."""
        # A sum of equal floats is exact in float64, and so is its quotient (not its product with 1/N): a
        # constant matrix has exactly its constant as mean, and no moments of rounding noise.
        return self.wide.sum((-2, -1)) / self.flat.shape[1]

    @cached_property
    def spread(self) -> Float64[Tensor, " n"]:
        """The largest distance of an entry from the mean; of a constant matrix its magnitude, or 1."""
        distance = torch.maximum(self.maximum - self.mean, self.mean - self.minimum)
        size = self.mean.abs()
        return torch.where(distance > 0, distance, torch.where(size > 0, size, 1.0))

    @cached_property
    def relative(self) -> Float32[Tensor, "n N"]:
        """Entries less their mean over `spread`, in [−1, 1]: float32 takes them to any power without harm."""
        centred = self.wide.flatten(1) - self.mean.unsqueeze(-1)
        return centred.mul_(1.0 / self.spread.unsqueeze(-1)).float()

    @cached_property
    def _moments(self) -> Float64[Tensor, "3 n"]:
        """Means of the second, third and fourth power of `relative`."""
        square = self.relative * self.relative
        third, fourth = (square * self.relative).sum(-1), (square * square).sum(-1)
        return torch.stack([square.sum(-1), third, fourth]).double() / self.flat.shape[1]

    @cached_property
    def std(self) -> Float64[Tensor, " n"]:
        """Standard deviation of the entries, of the population."""
        return self.spread * self._moments[0].sqrt()

    @cached_property
    def deviation(self) -> Float64[Tensor, " n"]:
        """Mean absolute deviation of the entries from their mean."""
        return self.spread * self.relative.abs().sum(-1).double() / self.flat.shape[1]

    @cached_property
    def skewness(self) -> Float64[Tensor, " n"]:
        """m₃ / m₂^1.5 with mₖ the mean k-th power of the centred entries; 0 for a constant matrix."""
        return ratio(self._moments[1], self._moments[0].pow(1.5))

    @cached_property
    def raw_kurtosis(self) -> Float64[Tensor, " n"]:
        """Kurtosis m₄ / m₂², 3 for a normal distribution; 0 for a constant matrix."""
        return ratio(self._moments[2], self._moments[0].square())

    @cached_property
    def kurtosis(self) -> Float64[Tensor, " n"]:
        """Excess kurtosis m₄ / m₂² − 3; 0 for a constant matrix."""
        return torch.where(self._moments[0].square() == 0, 0.0, self.raw_kurtosis - 3.0)


class FactorMatrices(Matrices):
    """One layer of n adapters, cut to its true rank."""

    def __init__(self, values: Float32[Tensor, "n rows cols"]) -> None:
        self._values = values

    @property
    def values(self) -> Float32[Tensor, "n rows cols"]:
        """The layer's entries."""
        return self._values

    @cached_property
    def singular_values(self) -> Float64[Tensor, "n k"]:
        """The min(rows, cols) singular values, descending."""
        return lowrank.matrix_singular_values(self.wide)


class DeltaMatrices(Matrices):
    """ΔW = scale · up @ down of one module of n adapters; formed only when a feature asks for entries."""

    def __init__(
        self,
        down: Float32[Tensor, "n r d_in"],
        up: Float32[Tensor, "n d_out r"],
        scale: Float32[Tensor, " n"],
    ) -> None:
        self._down, self._up, self._scale = down, up, scale

    @cached_property
    def values(self) -> Float32[Tensor, "n d_out d_in"]:
        """The entries of ΔW."""
        return (self._up * self._scale[:, None, None]) @ self._down

    @cached_property
    def singular_values(self) -> Float64[Tensor, "n r"]:
        """The r singular values, descending, from the factors."""
        return lowrank.singular_values(self._down, self._up, self._scale)
