"""Several hand-crafted representations side by side."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from lorabench.errors import LorabenchError
from lorabench.representations.handcrafted import HandCrafted
from lorabench.representations.matrices import Matrices

__all__ = ["Ensemble"]


@dataclass
class Ensemble(HandCrafted):
    """The features of all `parts`, in their order.

    67 with spectral, norms, distribution, frequency and information. The parts share one sort, one spectrum
    and one set of moments of every matrix.

    Args:
        on: factors or delta, for all parts.
        parts: name -> representation; features are called `part.feature`.
    """

    parts: dict[str, HandCrafted] = field(default_factory=dict)

    def check(self) -> None:
        """As every representation, and each part too; none may be on something else."""
        super().check()
        if not self.parts:
            raise LorabenchError("representation.parts is empty: an ensemble needs at least one, such as spectral")
        for name, part in self.parts.items():
            if part.on != self.on:
                raise LorabenchError(
                    f"representation.parts.{name}.on is {part.on!r} and representation.on {self.on!r}: "
                    "set representation.on alone, it holds for all parts"
                )
            part.check()

    @property
    def names(self) -> tuple[str, ...]:
        """The parts' names, each behind its part's."""
        return tuple(f"{key}.{name}" for key, part in self.parts.items() for name in part.names)

    @property
    def reads_entries(self) -> bool:
        """Whether any part does."""
        return any(part.reads_entries for part in self.parts.values())

    def compute(self, matrices: Matrices) -> Float64[Tensor, "n f"]:
        """The features of all parts, [n, f]."""
        return torch.cat([part.compute(matrices) for part in self.parts.values()], dim=1)

    def config(self) -> dict[str, Any]:
        """Class and arguments, each part's too."""
        return {**super().config(), "parts": {name: part.config() for name, part in self.parts.items()}}
