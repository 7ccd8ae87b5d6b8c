"""The health of an update: how it uses its rank."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from lorabench import lowrank
from lorabench.representations.base import On
from lorabench.representations.handcrafted import LARGEST_RATIO, HandCrafted
from lorabench.representations.matrices import Matrices

__all__ = ["Health"]


@dataclass
class Health(HandCrafted):
    """What `lorabench-adapter audit` says of a module, as 7 features, from its singular values σ₁ ≥ … ≥ σᵣ alone.

    Effective rank exp(−Σ p ln p), p = σ/Σσ (Roy & Vetterli 2007); its share of r; stable rank Σσ²/σ₁²; the fewest
    dimensions with 90 % of Σσ²; condition number σ₁/σᵣ, at most 2²³; σ₁; Frobenius norm √Σσ². All are 0 of an update
    that is zero.

    Args:
        on: `delta`: ΔW of each module, which no gauge changes; `factors`: each factor by itself, whose numbers are
            diagnostics of training (κ(A), κ(B) and their like).
    """

    on: On = "delta"

    @property
    def names(self) -> tuple[str, ...]:
        """The 7 names."""
        ranks = ("effective_rank", "rank_utilization", "stable_rank", "energy_rank")
        return (*ranks, "condition_number", "sigma_max", "frobenius")

    @property
    def reads_entries(self) -> bool:
        """No: a ΔW is never formed."""
        return False

    def compute(self, matrices: Matrices) -> Float64[Tensor, "n 7"]:
        """The 7 features, [n, 7]."""
        sigma = matrices.singular_values
        columns = [
            lowrank.effective_rank(sigma),
            lowrank.rank_utilisation(sigma),
            lowrank.stable_rank(sigma),
            lowrank.energy_rank(sigma).double(),
            lowrank.condition_number(sigma).clamp(max=LARGEST_RATIO),
            sigma[:, 0],
            sigma.norm(dim=-1),
        ]
        return torch.stack(columns, dim=1).nan_to_num(0.0)
