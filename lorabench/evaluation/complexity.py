"""Whether adapters of complex concepts use more ranks: effective rank of ΔW against the entropy of what was learned."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32

from lorabench import lowrank
from lorabench.representations.base import to_device
from lorabench.zoo import Zoo

__all__ = ["RankComplexity", "mean_effective_rank", "picture_entropy", "rank_complexity"]

_LEVELS = 16


@dataclass(frozen=True)
class RankComplexity:
    """How the effective rank of ΔW goes with the complexity of the concept.

    Attributes:
        rho: Spearman's rank correlation over the adapters.
        low, high: its 95 % interval, a percentile bootstrap over adapters.
        mean_rank: mean effective rank over adapters and modules.
    """

    rho: float
    low: float
    high: float
    mean_rank: float


def rank_complexity(zoo: Zoo, draws: int = 1000, seed: int = 0) -> RankComplexity | None:
    """The correlation of `mean_effective_rank` with `picture_entropy`; None where the zoo does not know its pictures.

    Args:
        zoo: adapters with modules and a ceiling.
        draws: resamples of the adapters.
        seed: of the resampling.
    """
    from scipy.stats import bootstrap, spearmanr

    if zoo.ceiling is None or zoo.shown != "pictures" or not zoo.modules:
        return None
    ranks, entropy = mean_effective_rank(zoo), picture_entropy(zoo.ceiling.read(0, len(zoo)))
    known = ~np.isnan(ranks)
    ranks, entropy = ranks[known], entropy[known]
    if min(len(np.unique(ranks)), len(np.unique(entropy))) < 2:
        return None

    def correlation(one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> float:
        return float(spearmanr(one, other).statistic)

    found = bootstrap(
        (ranks, entropy), correlation, paired=True, vectorized=False, method="percentile", n_resamples=draws, rng=seed
    ).confidence_interval
    return RankComplexity(correlation(ranks, entropy), float(found.low), float(found.high), float(ranks.mean()))


def mean_effective_rank(zoo: Zoo) -> Float[np.ndarray, " n"]:
    """Exp of the entropy of σ/Σσ of ΔW (Roy & Vetterli 2007), mean over modules, [N]; NaN where no module has a ΔW."""
    found = []
    for module in zoo.modules:
        down, up = (to_device(zoo.read(name), torch.device("cpu")) for name in (module.down, module.up))
        found.append(lowrank.effective_rank(lowrank.singular_values(down, up)).numpy())
    ranks = np.stack(found)
    known = ~np.isnan(ranks)
    total = np.where(known, ranks, 0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)


def picture_entropy(pictures: Float32[np.ndarray, "n height width"]) -> Float[np.ndarray, " n"]:
    """Shannon's entropy in bits of a picture's grey values in 16 levels from -1 to 1, [N].

    >>> picture_entropy(np.array([[[-1, -1], [1, 1]]], np.float32))
    array([1.])
    """
    level = np.clip((pictures + 1) / 2 * _LEVELS, 0, _LEVELS - 1).astype(np.int64).reshape(len(pictures), -1)
    share = np.stack([(level == one).mean(1) for one in range(_LEVELS)])
    logarithm = np.log2(share, out=np.zeros_like(share), where=share > 0)
    bits: Float[np.ndarray, " n"] = -(share * logarithm).sum(0) + 0.0
    return bits
