"""The weights themselves: one layer as a vector."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float32
from torch import Tensor

from lorabench.representations.base import Representation, Unit, chunks, to_device
from lorabench.zoo import Zoo

__all__ = ["Flat"]


@dataclass
class Flat(Representation):
    """The numbers of one layer in row order, [N, rows · cols]; a rank padded with zeros stays padded.

    Not cached: the features are as large as the zoo, which lies on the disk already.
    """

    cached: ClassVar[bool] = False

    @property
    def unit(self) -> Unit:
        """A layer."""
        return "layer"

    @property
    def gauge_invariant(self) -> bool:
        """False: every number of a factor changes with the gauge."""
        return False

    def feature_names(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        """`w[row,col]` in row order."""
        _, rows, cols = zoo.layers[unit].shape
        return tuple(f"w[{row},{col}]" for row in range(rows) for col in range(cols))

    def features(self, zoo: Zoo, unit: str, device: torch.device) -> Float32[Tensor, "n f"]:
        """The layer of every adapter, [N, rows · cols]."""
        del device
        out = torch.empty(zoo.layers[unit].shape)
        for start, stop in chunks(zoo, (unit,)):
            out[start:stop] = to_device(zoo.read(unit, start, stop), torch.device("cpu"))
        return out.flatten(1)
