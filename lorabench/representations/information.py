"""How much a histogram of the entries says."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from lorabench.representations.handcrafted import HandCrafted
from lorabench.representations.matrices import Matrices

__all__ = ["Information"]

_BINS = 50


@dataclass
class Information(HandCrafted):
    """Entropy −Σ p ln p of a 50-bin histogram of the entries, and the same over ln 50: 2 features.

    The bins have equal width between the smallest and the largest entry, each closed below and the last
    closed on both sides, as numpy.histogram's; natural logarithm; a constant matrix has entropy 0.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The 2 names."""
        return ("entropy", "normalised_entropy")

    def compute(self, matrices: Matrices) -> Float64[Tensor, "n 2"]:
        """Both entropies, [n, 2]."""
        share = _histogram(matrices).double() / matrices.flat.shape[1]
        entropy: Tensor = torch.special.entr(share).sum(-1)
        return torch.stack([entropy, entropy / math.log(_BINS)], dim=1)


def _histogram(matrices: Matrices) -> Int64[Tensor, "n bins"]:
    """Counts of the entries in 50 equal bins, [n, 50]: where the edges fall in the sorted entries."""
    low, high = matrices.minimum.unsqueeze(-1), matrices.maximum.unsqueeze(-1)
    inner = torch.arange(1, _BINS, dtype=torch.float64, device=low.device)
    edges = inner * ((high - low) / _BINS) + low
    # A float32 entry is below an edge exactly when it is below the first float32 that is not under that edge.
    near = edges.float()
    near = torch.where(near < edges, torch.nextafter(near, torch.full_like(near, torch.inf)), near)
    below = torch.searchsorted(matrices.sorted, near)
    zero, all_of_them = torch.zeros_like(below[:, :1]), torch.full_like(below[:, :1], matrices.flat.shape[1])
    return torch.cat([below, all_of_them], dim=1) - torch.cat([zero, below], dim=1)
