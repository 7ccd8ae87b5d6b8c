"""The spectra by which DSiRe tells the number of training images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from lorabench import lowrank
from lorabench.errors import LorabenchError
from lorabench.options import OneOf
from lorabench.representations.base import Representation, Unit, chunks
from lorabench.representations.handcrafted import to_float32
from lorabench.representations.pca import check_rows
from lorabench.representations.reading import scaled_factors
from lorabench.zoo import Zoo

__all__ = ["DSiRe"]

_Range = tuple[float, float]


@dataclass
class DSiRe(Representation):
    """Singular values of A, of B and of B·A (Salama et al. 2024, arXiv 2406.19395): 3r features a module, or r.

    A is down and B is up with the scale folded in, which the published code leaves out. Every spectrum has r values,
    descending, zero beyond an adapter's own rank. It is scaled to [0, 1] by its lowest and highest value over the
    training adapters, one pair for the whole spectrum, so that its shape stays; another adapter may lie outside. A
    spectrum that is one number in all of them is only shifted.

    The spectrum of B·A is, up to this scaling, what `delta_spectral` has first, which keeps ten values at most and adds
    shares, gaps and summaries.

    Args:
        spectra: `published` for all three, of which A's and B's change with the gauge, or `invariant` for B·A alone.
    """

    learns: ClassVar[bool] = True

    spectra: Annotated[str, OneOf(["published", "invariant"])] = "published"

    @property
    def unit(self) -> Unit:
        """A module: both factors are needed."""
        return "module"

    @property
    def gauge_invariant(self) -> bool:
        """Whether B·A alone is looked at."""
        return self.spectra == "invariant"

    @property
    def parts(self) -> tuple[str, ...]:
        """What the spectra are of, in their order."""
        return ("delta",) if self.gauge_invariant else ("down", "up", "delta")

    def feature_names(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        """`down_1` to `down_r`, then `up_…` and `delta_…`; the last alone where they are invariant."""
        rank = zoo.layers[self.module(zoo, unit).down].shape[1]
        return tuple(f"{part}_{i + 1}" for part in self.parts for i in range(rank))

    def fit(self, zoo: Zoo, device: torch.device) -> "DSiRe":
        """Learn lowest and highest value of every spectrum from these rows.

        Raises:
            LorabenchError: an option is not allowed, or there are no rows.
        """
        check_rows(zoo)
        self.ranges_: dict[str, list[_Range]] = {}
        for unit in self.units(zoo):
            spectra = self._spectra(zoo, unit, device).unbind(1)
            self.ranges_[unit] = [(float(one.min()), float(one.max())) for one in spectra]
        return self

    def features(self, zoo: Zoo, unit: str, device: torch.device) -> Float32[Tensor, "n f"]:
        """The scaled spectra of one module of every adapter, [N, f], on the CPU.

        Raises:
            LorabenchError: `fit` has not seen this unit.
        """
        ranges: list[_Range] | None = getattr(self, "ranges_", {}).get(unit)
        if ranges is None:
            raise LorabenchError(
                f"dsire was not fitted on unit {unit!r} of {zoo.name}; call fit with training rows that have it first"
            )
        low, high = torch.tensor(ranges, dtype=torch.float64).mT[:, None, :, None]
        spread = torch.where(high > low, high - low, 1.0)
        return to_float32(((self._spectra(zoo, unit, device) - low) / spread).flatten(1))

    def _spectra(self, zoo: Zoo, unit: str, device: torch.device) -> Float64[Tensor, "n parts r"]:
        """All spectra of one module of every adapter, on the CPU."""
        rank = zoo.layers[self.module(zoo, unit).down].shape[1]
        out = torch.zeros(len(zoo), len(self.parts), rank, dtype=torch.float64)
        for start, stop in chunks(zoo, self.layers_of(zoo, unit)):
            down, up = scaled_factors(zoo, unit, device, start, stop)
            for number, part in enumerate(self.parts):
                sigma = _SPECTRUM[part](down, up)
                out[start:stop, number, : sigma.shape[1]] = sigma.cpu()
        return out


_SPECTRUM: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "down": lambda down, up: lowrank.matrix_singular_values(down),  # noqa: ARG005
    "up": lambda down, up: lowrank.matrix_singular_values(up),  # noqa: ARG005
    "delta": lowrank.singular_values,
}
