"""Where the leading subspaces of ΔW lie: diagonals of the projections onto them."""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from lorabench import lowrank
from lorabench.options import AtLeast
from lorabench.representations.base import Representation, Unit
from lorabench.representations.handcrafted import in_batches, to_float32
from lorabench.zoo import Zoo

__all__ = ["Projectors", "projector_diagonals"]


@dataclass
class Projectors(Representation):
    """diag(U_k·U_kᵀ) and diag(V_k·V_kᵀ) of ΔW = U·diag(σ)·Vᵀ, side by side: d_out + d_in features a module.

    Each is a share from 0 to 1: how much of one output (or input) coordinate lies in the subspace that ΔW writes to
    (or reads from). No sign, no order and no rotation within the subspace matters, and no singular value. Each side
    sums to k. A module that is absent or zero has k = 0, and zeros.

    Args:
        k: dimensions of both subspaces, at most the numerical rank of the adapter's ΔW (`lowrank.numerical_rank` of
            float32 weights); null for all of these. A cut between two singular values that are nearly the same is
            arbitrary: the smallest change of the weights turns such a subspace. Null cuts nowhere between two.
    """

    k: Annotated[int | None, AtLeast(1)] = None

    @property
    def unit(self) -> Unit:
        """A module: both factors are needed."""
        return "module"

    @property
    def gauge_invariant(self) -> bool:
        """Yes: nothing else than ΔW is looked at."""
        return True

    def feature_names(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        """`out_1` to `out_{d_out}`, then `in_1` to `in_{d_in}`."""
        _, d_in, d_out = zoo.shape_of(unit)
        return (*(f"out_{i + 1}" for i in range(d_out)), *(f"in_{i + 1}" for i in range(d_in)))

    def features(self, zoo: Zoo, unit: str, device: torch.device) -> Float32[Tensor, "n f"]:
        """The diagonals of one module of every adapter, [N, d_out + d_in], on the CPU."""
        layers = self.layers_of(zoo, unit)
        size = 4 * zoo.shape_of(unit).size
        out = torch.empty(len(zoo), len(self.feature_names(zoo, unit)))
        for rows, (down, up) in in_batches(zoo, layers, size, device):
            scale = torch.from_numpy(zoo.scale[rows, zoo.module_index(unit)]).to(device)
            out[torch.from_numpy(rows)] = to_float32(projector_diagonals(down, up, scale, self.k))
        return out


def projector_diagonals(
    down: Float[Tensor, "n r d_in"], up: Float[Tensor, "n d_out r"], scale: Float[Tensor, " n"], k: int | None = None
) -> Float64[Tensor, "n f"]:
    """Squared row norms of U_k and of V_k, [n, d_out + d_in], by a thin SVD: ΔW is never formed.

    Args:
        down: A of PEFT.
        up: B of PEFT.
        scale: factor of up @ down.
        k: as in `Projectors`.

    Example:
        >>> down, up = torch.eye(1, 3)[None], torch.tensor([[[3.0], [4.0]]])
        >>> [round(value, 2) for value in projector_diagonals(down, up, torch.ones(1))[0].tolist()]
        [0.36, 0.64, 1.0, 0.0, 0.0]
    """
    left, sigma, right = lowrank.thin_svd(down, up, scale)
    kept = lowrank.numerical_rank(sigma, (up.shape[-2], down.shape[-1]))
    kept = kept if k is None else kept.clamp(max=k)
    mask = (torch.arange(sigma.shape[-1], device=sigma.device) < kept[:, None]).double()
    outs, ins = left.square() @ mask[:, :, None], mask[:, None] @ right.square()
    return torch.cat([outs[:, :, 0], ins[:, 0]], 1)
