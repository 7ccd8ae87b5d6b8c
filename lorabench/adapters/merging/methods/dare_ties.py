"""drop at random and rescale (DARE), elect a sign as ties does, on ΔW.

Yu et al. 2023, "Language Models are Super Mario", in place of `ties`' trimming; the rest is as there.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from lorabench.adapters.merging.recipe import Majority
from lorabench.adapters.merging.sparsify import Matrices, drop, each, elected

__all__ = ["target"]


def target(
    deltas: Matrices,
    weights: Sequence[float | int],
    density: float | int,
    seeds: Sequence[int],
    majority: Majority = "total",
) -> Float[Tensor, "d_out d_in"]:
    """The disjoint mean of matrices with entries dropped.

    Args:
        deltas: ΔW of each adapter, [d_out, d_in].
        weights: one for each.
        density: share of the entries that is kept, in (0, 1].
        seeds: of the masks, one for each.
        majority: see `sparsify.elected`.
    """
    return elected(each(deltas, lambda delta, i: drop(delta, density, seeds[i])), weights, majority)
