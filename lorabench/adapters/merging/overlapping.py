"""What the weighted updates of two adapters have in common: directions, signs and norms, module by module."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float64
from torch import Tensor

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.merging.aligning import labels, module_names
from lorabench.lowrank import inner_product, numerical_rank, thin_svd

__all__ = ["ModuleOverlap", "Overlap", "by_chance", "dimension", "overlaps", "shared"]

_ROWS = 64


@dataclass(frozen=True)
class ModuleOverlap:
    """Two updates of one module, as weighted: w₁ΔW₁ and w₂ΔW₂; NaN where one of them is zero.

    Attributes:
        module: canonical name.
        left: mean squared cosine of the principal angles between the column spaces, ‖Q₁ᵀQ₂‖²/min(r₁, r₂).
        right: the same of the row spaces.
        chance: what `left` and `right` are on average for random subspaces, max(r₁, r₂)/d, the mean of both sides.
        cosine: ⟨w₁ΔW₁, w₂ΔW₂⟩ over the product of the norms.
        sign_conflict: share of the entries where the signs differ, among those where both are not 0; unrelated
            updates have one half.
        norm_ratio: ‖w₁ΔW₁‖/‖w₂ΔW₂‖.
    """

    module: str
    left: float
    right: float
    chance: float
    cosine: float
    sign_conflict: float
    norm_ratio: float


@dataclass(frozen=True)
class Overlap:
    """Two adapters over the modules that both have: means of `ModuleOverlap`, cosine and norm ratio of the whole."""

    first: str
    second: str
    modules: tuple[ModuleOverlap, ...]
    left: float
    right: float
    chance: float
    cosine: float
    sign_conflict: float
    norm_ratio: float


def overlaps(adapters: Sequence[Adapter], weights: Sequence[float | int], seed: int = 0) -> Iterator[Overlap]:
    """Every two adapters over the modules that both have.

    Subspaces, cosine and norms come from the factors; signs from at most 64 rows of each ΔW, the same for all.

    Args:
        adapters: whose modules of one name have one shape.
        weights: w_i of each.
        seed: of the rows.
    """
    names = labels(adapters)
    pairs = {pair: _Sums() for pair in combinations(range(len(adapters)), 2)}
    for module, owners in module_names(adapters).items():
        seen = {i: _Look(adapters[i].modules[module], weights[i], seed) for i in owners if len(owners) > 1}
        for pair in combinations(owners, 2):
            pairs[pair].add(module, seen[pair[0]], seen[pair[1]])
    for (i, j), sums in pairs.items():
        yield sums.overlap(names[i], names[j])


def shared(products: Float64[Tensor, "r q"]) -> float:
    """Mean squared cosine of the principal angles between two subspaces, ‖Q₁ᵀQ₂‖²/min(r, q); NaN where one is {0}.

    Args:
        products: Q₁ᵀQ₂ of orthonormal bases.
    """
    return _over(float(products.square().sum()), min(products.shape))


def by_chance(products: Float64[Tensor, "r q"], width: int) -> float:
    """What `shared` is on average for random subspaces of these dimensions in `width` ones: max(r, q)/width."""
    return max(products.shape) / width


def dimension(sigma: Float64[Tensor, " k"], module: LoraModule) -> int:
    """How many singular values stand out: of what float32 can tell from zero, and over σ₁ · eps of the stored type."""
    # max(d) · eps of half a type is above 1, and no subspace would be left. The factors are stored, not ΔW:
    # their rounding moves σ by about eps · σ₁, whatever the width.
    as_read = int(numerical_rank(sigma, module.shape, torch.float32))
    return min(as_read, int(numerical_rank(sigma, (1, 1), module.dtype)))


class _Look:
    """One w·ΔW: its singular subspaces, norm, and the signs of some of its rows."""

    def __init__(self, module: LoraModule, weight: float, seed: int) -> None:
        self.term = (module.down, module.up, weight * module.scale)
        left, sigma, right = thin_svd(module.down, module.up, weight * module.scale)
        rank = dimension(sigma, module) if bool(sigma.any()) else 0
        self.left, self.right, self.norm = left[:, :rank], right[:rank], float(sigma.norm())
        rows = module.shape[0]
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(rows, generator=generator)[:_ROWS] if rows > _ROWS else torch.arange(rows)
        self.signs = (weight * module.scale * (module.up[drawn] @ module.down)).sign()


class _Sums:
    """What two adapters have in common, module by module."""

    def __init__(self) -> None:
        self.rows: list[ModuleOverlap] = []
        self.inner = self.first = self.second = 0.0

    def add(self, module: str, a: _Look, b: _Look) -> None:
        inner = float(inner_product(a.term, b.term))
        self.inner, self.first, self.second = self.inner + inner, self.first + a.norm**2, self.second + b.norm**2
        both = a.signs * b.signs
        voting = int((both != 0).sum())
        left, right = a.left.mT @ b.left, a.right @ b.right.mT
        self.rows.append(
            ModuleOverlap(
                module=module,
                left=shared(left),
                right=shared(right),
                chance=(by_chance(left, a.left.shape[0]) + by_chance(right, a.right.shape[1])) / 2,
                cosine=_over(inner, a.norm * b.norm),
                sign_conflict=_over(int((both < 0).sum()), voting),
                norm_ratio=_over(a.norm, b.norm),
            )
        )

    def overlap(self, first: str, second: str) -> Overlap:
        rows = self.rows
        return Overlap(
            first=first,
            second=second,
            modules=tuple(rows),
            left=_mean([row.left for row in rows]),
            right=_mean([row.right for row in rows]),
            chance=_mean([row.chance for row in rows]),
            cosine=_over(self.inner, math.sqrt(self.first) * math.sqrt(self.second)),
            sign_conflict=_mean([row.sign_conflict for row in rows]),
            norm_ratio=_over(math.sqrt(self.first), math.sqrt(self.second)),
        )


def _over(part: float | int, whole: float | int) -> float:
    return part / whole if whole else math.nan


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return _over(math.fsum(known), len(known))
