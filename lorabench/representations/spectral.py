"""The singular values and their shape."""

from dataclasses import dataclass

from jaxtyping import Float64
from torch import Tensor

from lorabench import lowrank
from lorabench.representations.handcrafted import LARGEST_RATIO, HandCrafted
from lorabench.representations.matrices import Matrices, ratio

__all__ = ["Spectral"]

_TOP = 10


@dataclass
class Spectral(HandCrafted):
    """Top-10 singular values, their shares, relative gaps and three summaries: 32 features.

    With σ₁ ≥ … ≥ σₖ the k existing values (a factor has min(rows, cols), a ΔW its rank r):

    - σᵢ, i ≤ 10;
    - σᵢ / Σσ, i ≤ 10, the sum over all k values;
    - gaps (σᵢ − σᵢ₊₁) / σᵢ, i ≤ 9, between values that both exist;
    - effective rank exp(−Σ p ln p), p = σ/Σσ (Roy & Vetterli 2007); condition number σ₁/σₖ, at most 1/eps of
      float32 = 2²³, which is also what σₖ = 0 gives; nuclear norm Σσ.

    Places without a value are 0; so are all ratios of an all-zero matrix.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The 32 names, numbered from 1."""
        top = range(1, _TOP + 1)
        return (
            *(f"sigma_{i}" for i in top),
            *(f"share_{i}" for i in top),
            *(f"gap_{i}" for i in top[:-1]),
            "effective_rank",
            "condition_number",
            "nuclear_norm",
        )

    @property
    def reads_entries(self) -> bool:
        """No: a ΔW is never formed."""
        return False

    def compute(self, matrices: Matrices) -> Float64[Tensor, "n 32"]:
        """The 32 features, [n, 32]."""
        sigma = matrices.singular_values
        nuclear = sigma.sum(-1, keepdim=True)
        features = sigma.new_zeros(len(sigma), len(self.names))
        top = sigma[:, :_TOP]
        values = top.shape[1]
        features[:, :values] = top
        features[:, _TOP : _TOP + values] = ratio(top, nuclear.expand_as(top))
        features[:, 2 * _TOP : 2 * _TOP + values - 1] = ratio(top[:, :-1] - top[:, 1:], top[:, :-1])
        features[:, -3] = lowrank.effective_rank(sigma).nan_to_num(0.0)
        condition = lowrank.condition_number(sigma).clamp(max=LARGEST_RATIO)
        features[:, -2] = condition.nan_to_num(0.0)
        features[:, -1] = nuclear[:, 0]
        return features
