"""trim, elect a sign, merge what agrees with it (TIES), on ΔW.

Yadav et al. 2023, "TIES-Merging". An entry of the result is Σ |w_i|·τ_i over the adapters that agree with the elected
sign, divided by their number: the disjoint mean, as PEFT has it (`peft.utils.merge_utils.ties`). τ_i is the trimmed
ΔW_i, negated where w_i < 0; who weighs 0, or was trimmed there, has no vote.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from lorabench.adapters.merging.recipe import Majority
from lorabench.adapters.merging.sparsify import Matrices, each, elected, trim

__all__ = ["target"]


def target(
    deltas: Matrices, weights: Sequence[float | int], density: float | int, majority: Majority = "total"
) -> Float[Tensor, "d_out d_in"]:
    """The disjoint mean of trimmed matrices.

    Args:
        deltas: ΔW of each adapter, [d_out, d_in].
        weights: one for each.
        density: share of the entries that trimming keeps, in (0, 1].
        majority: see `sparsify.elected`.
    """
    return elected(each(deltas, lambda delta, _: trim(delta, density)), weights, majority)
