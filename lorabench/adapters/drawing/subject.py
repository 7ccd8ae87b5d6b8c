"""One adapter as pictures measure it: its modules along the depth, and their spectra, computed once for all kinds."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float64, Int64

from lorabench.adapters.places import by_depth

if TYPE_CHECKING:
    from lorabench.adapters.adapter import Adapter

__all__ = ["Spectra", "Subject"]

# Names that nearly every file of a tool has: the folder's tells more.
_COMMON = frozenset({"adapter_model", "adapters", "pytorch_lora_weights", "lora", "model"})


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
    def norm(self) -> Float64[np.ndarray, " n"]:
        """[n], ‖ΔW‖_F."""
        norm: Float64[np.ndarray, " n"] = np.sqrt(np.nansum(self.sigma**2, axis=1))
        return norm

    @property
    def untrained(self) -> Bool[np.ndarray, " n"]:
        """[n], whether ΔW is 0."""
        return ~(self.sigma[:, 0] > 0)

    @property
    def relative(self) -> Float64[np.ndarray, "n r"]:
        """[n, r_max], σ/σ₁; NaN where untrained and where a value is lost in rounding."""
        ratio = np.full(self.sigma.shape, np.nan)
        np.divide(self.sigma, self.sigma[:, :1], out=ratio, where=self.sigma > 0)
        return ratio

    @property
    def energy(self) -> Float64[np.ndarray, "n r"]:
        """[n, r_max], share of ‖ΔW‖_F² in the first 1, 2, ... values; NaN where untrained and beyond the rank."""
        squares = np.cumsum(np.nan_to_num(self.relative) ** 2, axis=1)
        share = np.full(squares.shape, np.nan)
        there = ~np.isnan(self.sigma) & ~self.untrained[:, None]
        np.divide(squares, squares[:, -1:], out=share, where=there)
        return share


@dataclass(frozen=True)
class Subject:
    """An adapter that is drawn.

    Attributes:
        adapter: what `load` gives.
        pattern: of the names of modules, for the kinds that draw some; None for the strongest few.
    """

    adapter: "Adapter"
    pattern: str | None = None

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Names, from the network's input to its output."""
        return by_depth(list(self.adapter.modules))

    @cached_property
    def spectra(self) -> Spectra:
        """All modules' spectra, modules of one shape and rank at a time, without any dense ΔW."""
        return _spectra(self.adapter, self.modules)

    @property
    def title(self) -> str:
        """The file's name; the folder's before it where files of a tool are all named alike."""
        path = self.adapter.path
        return f"{path.parent.name}/{path.stem}" if path.stem in _COMMON and path.parent.name else path.stem

    def factors(self, name: str) -> tuple[Float64[np.ndarray, "r d_in"], Float64[np.ndarray, "d_out r"], float]:
        """Down, up and scale of a module."""
        module = self.adapter.modules[name]
        return module.down.double().numpy(), module.up.double().numpy(), float(module.scale)


def _spectra(adapter: "Adapter", names: tuple[str, ...]) -> Spectra:
    import torch

    from lorabench import lowrank
    from lorabench.adapters.adapter import alike

    place = {name: number for number, name in enumerate(names)}
    rank = np.array([adapter.modules[name].rank for name in names], dtype=np.int64)
    sigma = np.full((len(names), int(rank.max())), np.nan)
    effective, stable = np.full(len(names), np.nan), np.full(len(names), np.nan)
    energy = np.zeros(len(names), dtype=np.int64)
    for group in alike({name: adapter.modules[name] for name in names}):
        rows, modules = [place[name] for name in group], [adapter.modules[name] for name in group]
        values = lowrank.singular_values(
            torch.stack([module.down.double() for module in modules]),
            torch.stack([module.up.double() for module in modules]),
            torch.tensor([float(module.scale) for module in modules], dtype=torch.float64),
        )
        sigma[rows, : modules[0].rank] = values.numpy()
        effective[rows] = lowrank.effective_rank(values).numpy()
        stable[rows] = lowrank.stable_rank(values).numpy()
        energy[rows] = lowrank.energy_rank(values).numpy()
    return Spectra(names, sigma, rank, effective, stable, energy)
