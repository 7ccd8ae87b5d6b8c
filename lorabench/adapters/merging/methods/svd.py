"""the best of its rank, by factors alone.

The truncated SVD of Σ w_i · ΔW_i (Eckart & Young 1936), which is never formed.
"""

import torch

from lorabench.adapters.merging.terms import Pairs, Terms
from lorabench.lowrank import thin_svd

__all__ = ["factors"]

_ROUNDING = 1e-13


def factors(terms: Terms, rank: int | None = None) -> Pairs:
    """The factors nearest to the sum.

    Args:
        terms: of the adapters.
        rank: of the result; None: the largest of the parents'.
    """
    down, up = terms.stacked()
    # What cancelled to rounding is no direction: a − a is zero, not noise.
    floor = _ROUNDING * (up.norm(dim=-2) * down.norm(dim=-1)).sum(-1, keepdim=True)
    left, sigma, right = thin_svd(down, up)
    sigma = torch.where(sigma > floor, sigma, 0.0)
    k = min(max(terms.ranks) if rank is None else rank, sigma.shape[-1])
    root = sigma[:, :k].sqrt()
    down = right[:, :k] * torch.where(root > 0, root, 1.0)[..., None]
    return Pairs(down, left[..., :k] * root[:, None], sigma[:, k:].norm(dim=-1))
