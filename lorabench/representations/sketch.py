"""A random sketch of ΔW that is the same for every zoo: nothing is learned, and nothing depends on other adapters."""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from lorabench import lowrank
from lorabench.options import AtLeast
from lorabench.representations.base import Representation, Unit, chunks
from lorabench.representations.components import seeded_normal, unit_seed
from lorabench.representations.handcrafted import to_float32
from lorabench.representations.matrices import ratio
from lorabench.representations.reading import scaled_factors
from lorabench.zoo import Zoo

__all__ = ["GaussianSketch", "sketching_matrix"]


@dataclass
class GaussianSketch(Representation):
    """R_outᵀ·ΔW·R_in with Gaussian R_out [d_out, s] and R_in [d_in, t], row by row: s · t features a module.

    Linear in ΔW and never formed from it: (R_outᵀ·up)·(down·R_in). The entries of R_out have variance 1/s and those of
    R_in 1/t, so that squared norms and inner products of sketches are those of the ΔW in the mean over seeds (Johnson
    & Lindenstrauss 1984).

    R follows from `seed`, the module's name and its sizes alone (`sketching_matrix`): another zoo, a single file, or a
    zoo with other modules beside it has the same features for the same ΔW.

    Args:
        rows: s, at most d_out.
        cols: t, at most d_in.
        seed: of R_out and R_in.
        normalised: whether ΔW/‖ΔW‖_F stands in for ΔW, so that size says nothing; zero stays zero.
    """

    rows: Annotated[int, AtLeast(1)] = 24
    cols: Annotated[int, AtLeast(1)] = 24
    seed: int = 0
    normalised: bool = False

    @property
    def unit(self) -> Unit:
        """A module: both factors are needed."""
        return "module"

    @property
    def gauge_invariant(self) -> bool:
        """Yes: nothing else than ΔW is looked at."""
        return True

    def feature_names(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        """`s1_1`, `s1_2` and so on, by row and column of the sketch."""
        rows, cols = self._shape(zoo, unit)
        return tuple(f"s{i + 1}_{j + 1}" for i in range(rows) for j in range(cols))

    def features(self, zoo: Zoo, unit: str, device: torch.device) -> Float32[Tensor, "n f"]:
        """The sketches of one module of every adapter, [N, s · t], on the CPU."""
        rows, cols = self._shape(zoo, unit)
        _, d_in, d_out = zoo.shape_of(unit)
        left = sketching_matrix(self.seed, unit, "out", d_out, rows).to(device)
        right = sketching_matrix(self.seed, unit, "in", d_in, cols).to(device)
        out = torch.empty(len(zoo), rows * cols)
        for start, stop in chunks(zoo, self.layers_of(zoo, unit)):
            down, up = scaled_factors(zoo, unit, device, start, stop)
            values = ((left.mT @ up) @ (down @ right)).flatten(1)
            if self.normalised:
                values = ratio(values, lowrank.frobenius_norm(down, up)[:, None].expand_as(values))
            out[start:stop] = to_float32(values)
        return out

    def _shape(self, zoo: Zoo, unit: str) -> tuple[int, int]:
        """(s, t)."""
        _, d_in, d_out = zoo.shape_of(unit)
        return min(self.rows, d_out), min(self.cols, d_in)


def sketching_matrix(seed: int, module: str, side: str, width: int, columns: int) -> Float64[Tensor, "width columns"]:
    """R of one side of a module, normal numbers of variance 1/columns, drawn by the CRC-32 of "seed/module/side".

    Args:
        seed: of the representation.
        module: the module's name in the zoo.
        side: "out" or "in".
        width: d_out or d_in.
        columns: s or t.
    """
    drawn = seeded_normal(width, columns, unit_seed(seed, f"{module}/{side}"), torch.device("cpu"))
    return drawn.div_(columns**0.5)
