"""What the weighted updates of two adapters have in common: directions, signs and norms, module by module."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from lorabench.adapters.adapter import Adapter
from lorabench.adapters.merging.aligning import labels, module_names
from lorabench.adapters.pairs import ModulePair, module_pairs

__all__ = ["ModuleOverlap", "Overlap", "clashes", "overlaps"]

_CROWDED, _OPPOSED, _DISAGREE, _DROWNED = 0.5, -0.1, 0.6, 10.0


@dataclass(frozen=True)
class ModuleOverlap:
    """Two updates of one module, as weighted: w₁ΔW₁ and w₂ΔW₂; NaN where one of them is zero.

    Attributes:
        module: canonical name.
        left: mean squared cosine of the principal angles between the column spaces.
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


def clashes(seen: ModuleOverlap | Overlap) -> tuple[str, ...]:
    """What of two updates is in each other's way: "directions", "signs" or "norms".

    Args:
        seen: of one module, or of two whole adapters.

    Example:
        >>> same = ModuleOverlap("q", left=1.0, right=1.0, chance=0.1, cosine=-1.0, sign_conflict=1.0, norm_ratio=20.0)
        >>> clashes(same)
        ('directions', 'signs', 'norms')
    """
    shared = (seen.left + seen.right) / 2
    found = {
        "directions": shared - seen.chance > _CROWDED * (1 - seen.chance) > 0,
        "signs": seen.cosine < _OPPOSED or seen.sign_conflict > _DISAGREE,
        "norms": seen.norm_ratio > _DROWNED or seen.norm_ratio < 1 / _DROWNED,
    }
    return tuple(name for name, clashing in found.items() if clashing)


def overlaps(adapters: Sequence[Adapter], weights: Sequence[float | int], seed: int = 0) -> Iterator[Overlap]:
    """Every two adapters over the modules that both have; see `pairs.module_pairs`.

    Args:
        adapters: whose modules of one name have one shape.
        weights: w_i of each.
        seed: of the rows that signs are compared on.
    """
    names = labels(adapters)
    rows = {name: [adapter.modules.get(name) for adapter in adapters] for name in module_names(adapters)}
    pairs = module_pairs(rows, seed)
    for i, j in combinations(range(len(adapters)), 2):
        both = {name: of_module[i, j] for name, of_module in pairs.items() if (i, j) in of_module}
        shapes = {name: adapters[i].modules[name].shape for name in both}
        yield _overlap((names[i], names[j]), both, shapes, (weights[i], weights[j]))


def _overlap(
    names: tuple[str, str],
    pairs: Mapping[str, ModulePair],
    shapes: Mapping[str, tuple[int, int]],
    weights: tuple[float | int, float | int],
) -> Overlap:
    rows = tuple(_weighted(name, pair, shapes[name], weights) for name, pair in pairs.items())
    first, second = (
        abs(weight) * math.hypot(*(pair.norms[side] for pair in pairs.values())) for side, weight in enumerate(weights)
    )
    inner = weights[0] * weights[1] * math.fsum(pair.inner for pair in pairs.values())
    return Overlap(
        first=names[0],
        second=names[1],
        modules=rows,
        left=_mean([row.left for row in rows]),
        right=_mean([row.right for row in rows]),
        chance=_mean([row.chance for row in rows]),
        cosine=_over(inner, first * second),
        sign_conflict=_mean([row.sign_conflict for row in rows]),
        norm_ratio=_over(first, second) if first else math.nan,
    )


def _weighted(
    name: str, pair: ModulePair, shape: tuple[int, int], weights: tuple[float | int, float | int]
) -> ModuleOverlap:
    """What weights make of a pair: they scale norms, a negative one turns signs, and 0 leaves nothing."""
    norms = [abs(weight) * norm for weight, norm in zip(weights, pair.norms, strict=True)]
    side = weights[0] * weights[1]
    there = all(norms)
    widest = max(k if norm else 0 for k, norm in zip(pair.dimensions, norms, strict=True))
    return ModuleOverlap(
        module=name,
        left=pair.left.shared if there and pair.left else math.nan,
        right=pair.right.shared if there and pair.right else math.nan,
        chance=(widest / shape[0] + widest / shape[1]) / 2,
        cosine=_over(side * pair.inner, norms[0] * norms[1]),
        sign_conflict=math.nan if not there else pair.sign_conflict if side > 0 else 1 - pair.sign_conflict,
        norm_ratio=_over(*norms) if there else math.nan,
    )


def _over(part: float | int, whole: float | int) -> float:
    return part / whole if whole else math.nan


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return _over(math.fsum(known), len(known))
