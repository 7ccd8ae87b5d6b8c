"""drop at random and rescale (DARE), and sum, on ΔW.

Σ w_i · drop(ΔW_i) (Yu et al. 2023, "Language Models are Super Mario"): Σ w_i · ΔW_i in expectation over the masks.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from lorabench.adapters.merging.sparsify import Matrices, drop, each, weighted_sum

__all__ = ["target"]


def target(
    deltas: Matrices, weights: Sequence[float | int], density: float | int, seeds: Sequence[int]
) -> Float[Tensor, "d_out d_in"]:
    """The weighted sum of matrices with entries dropped.

    Args:
        deltas: ΔW of each adapter, [d_out, d_in].
        weights: one for each.
        density: share of the entries that is kept, in (0, 1].
        seeds: of the masks, one for each.
    """
    return weighted_sum(each(deltas, lambda delta, i: drop(delta, density, seeds[i])), weights)
