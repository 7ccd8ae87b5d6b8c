"""The spectra by which DSiRe tells the number of training images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float32
from torch import Tensor

from lorabench import lowrank
from lorabench.options import OneOf
from lorabench.representations.base import Representation, Unit, chunks
from lorabench.representations.handcrafted import to_float32
from lorabench.representations.reading import scaled_factors
from lorabench.zoo import Zoo

__all__ = ["DSiRe"]


@dataclass
class DSiRe(Representation):
    """Singular values of A, of B and of B·A (Salama et al. 2024, arXiv 2406.19395): 3r features a module, or r.

    A is down and B is up with the scale folded in, which the published code leaves out. Every spectrum has r values,
    descending, zero beyond an adapter's own rank. The published scaling by the lowest and highest training value of
    each spectrum is that of `classifier=vote`; other classifiers read features that are standardised one by one.

    The spectrum of B·A is what `delta_spectral` has first, which keeps ten values at most and adds shares, gaps and
    summaries.

    Args:
        spectra: `published` for all three, of which A's and B's change with the gauge, or `invariant` for B·A alone.
    """

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
        rank = zoo.shape_of(unit).rank
        return tuple(f"{part}_{i + 1}" for part in self.parts for i in range(rank))

    def features(self, zoo: Zoo, unit: str, device: torch.device) -> Float32[Tensor, "n f"]:
        """The spectra of one module of every adapter, [N, f], on the CPU."""
        rank = zoo.shape_of(unit).rank
        out = torch.zeros(len(zoo), len(self.parts), rank, dtype=torch.float64)
        for start, stop in chunks(zoo, self.layers_of(zoo, unit)):
            down, up = scaled_factors(zoo, unit, device, start, stop)
            for number, part in enumerate(self.parts):
                sigma = _SPECTRUM[part](down, up)
                out[start:stop, number, : sigma.shape[1]] = sigma.cpu()
        return to_float32(out.flatten(1))


_SPECTRUM: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "down": lambda down, up: lowrank.matrix_singular_values(down),  # noqa: ARG005
    "up": lambda down, up: lowrank.matrix_singular_values(up),  # noqa: ARG005
    "delta": lowrank.singular_values,
}
