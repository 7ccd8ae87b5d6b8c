"""keep the largest entries of each, and sum, on ΔW.

Σ w_i · trim(ΔW_i), not rescaled, as PEFT has it.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from lorabench.adapters.merging.sparsify import Matrices, each, trim, weighted_sum

__all__ = ["target"]


def target(deltas: Matrices, weights: Sequence[float | int], density: float | int) -> Float[Tensor, "d_out d_in"]:
    """The weighted sum of trimmed matrices.

    Args:
        deltas: ΔW of each adapter, [d_out, d_in].
        weights: one for each.
        density: share of the entries that is kept, in (0, 1].
    """
    return weighted_sum(each(deltas, lambda delta, _: trim(delta, density)), weights)
