"""The numbers of every module's ΔW that pictures are made of, all from `lorabench.lowrank`."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64

from lorabench import lowrank
from lorabench.adapters.adapter import Adapter
from lorabench.adapters.drawing.places import in_depth

__all__ = ["Spectra", "spectra"]


@dataclass(frozen=True)
class Spectra:
    """Spectra of an adapter's modules in depth order.

    Attributes:
        modules: names.
        sigma: [n, r_max], singular values of ΔW, descending; NaN beyond a module's own rank.
        rank: [n], nominal.
        effective_rank: [n]; NaN where untrained.
        stable_rank: [n]; NaN where untrained.
        energy_rank: [n], fewest values with 90 % of the energy; 0 where untrained.
    """

    modules: tuple[str, ...]
    sigma: Float64[np.ndarray, "n r"]
    rank: Int64[np.ndarray, " n"]
    effective_rank: Float64[np.ndarray, " n"]
    stable_rank: Float64[np.ndarray, " n"]
    energy_rank: Int64[np.ndarray, " n"]

    @property
    def untrained(self) -> Bool[np.ndarray, " n"]:
        """[n], whether ΔW is 0."""
        return ~(self.sigma[:, 0] > 0)

    @property
    def relative(self) -> Float64[np.ndarray, "n r"]:
        """[n, r_max], σ/σ₁; NaN where untrained and where a value is lost in rounding."""
        found = np.full(self.sigma.shape, np.nan)
        np.divide(self.sigma, self.sigma[:, :1], out=found, where=self.sigma > 0)
        return found

    @property
    def energy(self) -> Float64[np.ndarray, "n r"]:
        """[n, r_max], share of ‖ΔW‖_F² in the first 1, 2, ... values; NaN where untrained and beyond the rank."""
        squares = np.cumsum(np.nan_to_num(self.relative) ** 2, axis=1)
        found = np.full(squares.shape, np.nan)
        there = ~np.isnan(self.sigma) & ~self.untrained[:, None]
        np.divide(squares, squares[:, -1:], out=found, where=there)
        return found


def spectra(adapter: Adapter) -> Spectra:
    """All modules' spectra, without any dense ΔW."""
    modules = in_depth(list(adapter.modules))
    values = [_sigma(adapter, name) for name in modules]
    sigma = np.full((len(modules), max(map(len, values))), np.nan)
    for row, one in zip(sigma, values, strict=True):
        row[: len(one)] = one.numpy()
    return Spectra(
        modules=modules,
        sigma=sigma,
        rank=np.array([adapter.modules[name].rank for name in modules], dtype=np.int64),
        effective_rank=np.array([lowrank.effective_rank(one).item() for one in values]),
        stable_rank=np.array([lowrank.stable_rank(one).item() for one in values]),
        energy_rank=np.array([int(lowrank.energy_rank(one).item()) for one in values], dtype=np.int64),
    )


def _sigma(adapter: Adapter, name: str) -> Float64[torch.Tensor, " r"]:
    module = adapter.modules[name]
    return lowrank.singular_values(module.down, module.up, module.scale)
