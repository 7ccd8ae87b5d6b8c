"""Two adapters module by module: angle, norm, difference and shared subspaces of ΔW, which is never formed."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.comparing.deviation import distance
from lorabench.adapters.fusing import in_one_naming
from lorabench.adapters.merging.aligning import match, space
from lorabench.adapters.merging.overlapping import by_chance, dimension, shared
from lorabench.adapters.writing.refusals import refuse_infinite
from lorabench.errors import LorabenchError
from lorabench.lowrank import frobenius_norm, thin_svd
from lorabench.machine import map_in_lanes

__all__ = ["Comparison", "ModuleComparison", "SubspaceOverlap", "compare"]


@dataclass(frozen=True)
class SubspaceOverlap:
    """How two singular subspaces of dimensions k_a and k_b lie in d dimensions.

    Attributes:
        cosines: of the principal angles, descending; min(k_a, k_b) of them.
        shared: mean of their squares, in [0, 1]: 1 where the smaller subspace lies in the larger.
        by_chance: what `shared` is on average for two random subspaces, max(k_a, k_b) / d.
    """

    cosines: tuple[float, ...]
    shared: float
    by_chance: float


@dataclass(frozen=True)
class ModuleComparison:
    """One module of both adapters.

    Attributes:
        module: its name in the first adapter.
        shape: (d_out, d_in) of ΔW.
        ranks: r of the factors, of both.
        numerical_ranks: the dimensions of the subspaces compared, of both: σ above what float32 can tell
            from zero (`lowrank.numerical_rank`), and above σ₁ · eps of the stored type.
        norms: ‖ΔW_a‖_F and ‖ΔW_b‖_F.
        untrained: "a", "b" or "both" where ΔW is zero: then there are no ratios.
        cosine: ⟨ΔW_a, ΔW_b⟩ / (‖ΔW_a‖ ‖ΔW_b‖).
        norm_ratio: ‖ΔW_b‖ / ‖ΔW_a‖.
        difference: ‖ΔW_a − ΔW_b‖ / ‖ΔW_a‖.
        distance: ‖ΔW_a − ΔW_b‖ / max(‖ΔW_a‖, ‖ΔW_b‖), in [0, 2]: the order of a comparison's modules; 0
            where both are zero.
        left: overlap of the left singular subspaces, in the output space.
        right: overlap of the right ones, in the input space.
    """

    module: str
    shape: tuple[int, int]
    ranks: tuple[int, int]
    numerical_ranks: tuple[int, int]
    norms: tuple[float, float]
    untrained: str | None
    cosine: float | None
    norm_ratio: float | None
    difference: float | None
    distance: float
    left: SubspaceOverlap | None
    right: SubspaceOverlap | None


@dataclass(frozen=True)
class Comparison:
    """Two adapters.

    The whole-adapter numbers are those of all modules' ΔW side by side, where a module that one adapter lacks,
    or has in another shape, is zero there; None where an adapter is untrained.

    Attributes:
        a: the first adapter's file.
        b: the second's.
        modules: the modules of one name and shape, the most different first (`ModuleComparison.distance`).
        compared: how many there are; `modules` may be cut to `top`.
        only_a: modules that only the first has.
        only_b: modules that only the second has.
        shapes_differ: module -> its (d_out, d_in) in both, where ΔW cannot be subtracted. The pairs are equal
            where only the kernel differs, or one is an embedding.
        prefixes: what the names of each have before those of the other, such as ("unet.", ""); ("", "")
            where names match without that.
        matched_by: in words, what was made of names that differ; "" where all that match are equal.
        norms: ‖ΔW‖_F of all modules, of both.
        cosine: over all modules.
        cosine_shared: over `modules` alone.
        norm_ratio: ‖ΔW_b‖ / ‖ΔW_a‖ over all modules.
        difference: ‖ΔW_a − ΔW_b‖ / ‖ΔW_a‖ over all modules.
    """

    a: Path
    b: Path
    modules: tuple[ModuleComparison, ...]
    compared: int
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    shapes_differ: Mapping[str, tuple[tuple[int, int], tuple[int, int]]]
    prefixes: tuple[str, str]
    matched_by: str
    norms: tuple[float, float]
    cosine: float | None
    cosine_shared: float | None
    norm_ratio: float | None
    difference: float | None

    def as_dict(self) -> dict[str, Any]:
        """The same as dicts, tuples, strings and numbers."""
        return asdict(self)


def compare(a: Adapter, b: Adapter, *, top: int | None = None) -> Comparison:
    """How two adapters differ, by module and as a whole.

    Cosines and subspaces are those of the thin SVDs L_a·S_a·R_a and L_b·S_b·R_b, by L_aᵀ·L_b and R_a·R_bᵀ (principal
    angles: Björck & Golub 1973); ‖ΔW_a − ΔW_b‖ is right to 1e-14 of the factors (`deviation.distance`), so the
    difference of equal adapters is no 1e-8. Modules are matched as `aligning.match` does.

    Args:
        a: the first adapter, of which ratios are taken.
        b: the second.
        top: keep the modules that differ most, this many; None keeps all.

    Raises:
        LorabenchError: no module has the same name in both, or `top` is below 1.
    """
    if top is not None and top < 1:
        raise LorabenchError(f"top={top}: a number of modules from 1 on is allowed, or None for all.")
    refuse_infinite(a)
    refuse_infinite(b)
    (a, b), respelled = in_one_naming((a, b))
    both = match(a, b)
    pairs = both.pairs
    if not pairs:
        raise LorabenchError(
            f"{a.path} and {b.path}: no module has the same name in both. The first names its modules like "
            f"{_examples(a)}; the second like {_examples(b)}. Compare adapters of the same base model."
        )
    same = {x: y for x, y in pairs.items() if space(a.modules[x]) == space(b.modules[y])}
    found = map_in_lanes(lambda task: _compare_modules(task[0], a.modules[task[0]], b.modules[task[1]]), same.items())
    modules = sorted((one for one, _ in found), key=lambda one: -one.distance)
    matched, named = set(same.values()), set(pairs.values())
    alone_a = _norm(module for name, module in a.modules.items() if name not in same)
    alone_b = _norm(module for name, module in b.modules.items() if name not in matched)
    shared_a, shared_b = (math.hypot(*(one.norms[side] for one in modules)) for side in (0, 1))
    norm_a, norm_b = math.hypot(shared_a, alone_a), math.hypot(shared_b, alone_b)
    inner = math.fsum((one.cosine or 0.0) * one.norms[0] * one.norms[1] for one in modules)
    gap = math.hypot(alone_a, alone_b, *(gap for _, gap in found))
    return Comparison(
        a=a.path,
        b=b.path,
        modules=tuple(modules[:top]),
        compared=len(modules),
        only_a=tuple(name for name in a.modules if name not in pairs),
        only_b=tuple(name for name in b.modules if name not in named),
        shapes_differ={x: (a.modules[x].shape, b.modules[y].shape) for x, y in pairs.items() if x not in same},
        prefixes=both.prefixes,
        matched_by="; ".join(filter(None, (*(f"one naming ({note})" for note in respelled), both.how))),
        norms=(norm_a, norm_b),
        cosine=_cosine(inner, norm_a, norm_b),
        cosine_shared=_cosine(inner, shared_a, shared_b),
        norm_ratio=norm_b / norm_a if norm_a and norm_b else None,
        difference=gap / norm_a if norm_a and norm_b else None,
    )


def _compare_modules(name: str, a: LoraModule, b: LoraModule) -> tuple[ModuleComparison, float]:
    """A module's comparison, and ‖ΔW_a − ΔW_b‖_F."""
    svd_a, svd_b = (thin_svd(one.down, one.up, float(one.scale)) for one in (a, b))
    norm_a, norm_b = float(svd_a[1].norm()), float(svd_b[1].norm())
    rank_a, rank_b = dimension(svd_a[1], a), dimension(svd_b[1], b)
    lefts, rights = svd_a[0].mT @ svd_b[0], svd_a[2] @ svd_b[2].mT
    gap, _ = distance((b.down, b.up, b.scale), [(a.down, a.up, a.scale)])
    trained = norm_a > 0 and norm_b > 0
    inner = float((lefts * rights * svd_a[1].unsqueeze(1) * svd_b[1]).sum())
    compared = ModuleComparison(
        module=name,
        shape=a.shape,
        ranks=(a.rank, b.rank),
        numerical_ranks=(rank_a, rank_b),
        norms=(norm_a, norm_b),
        untrained=None if trained else "both" if norm_a == norm_b else "a" if norm_a == 0 else "b",
        cosine=_cosine(inner, norm_a, norm_b),
        norm_ratio=norm_b / norm_a if trained else None,
        difference=gap / norm_a if trained else None,
        distance=gap / (max(norm_a, norm_b) or 1.0),
        left=_overlap(lefts[:rank_a, :rank_b], a.shape[0]) if trained else None,
        right=_overlap(rights[:rank_a, :rank_b], a.shape[1]) if trained else None,
    )
    return compared, gap


def _overlap(products: Float64[Tensor, "k_a k_b"], width: int) -> SubspaceOverlap:
    cosines = torch.linalg.svdvals(products).clamp(0.0, 1.0)
    return SubspaceOverlap(tuple(cosines.tolist()), min(shared(products), 1.0), by_chance(products, width))


def _cosine(inner: float, norm_a: float, norm_b: float) -> float | None:
    return max(-1.0, min(1.0, inner / norm_a / norm_b)) if norm_a and norm_b else None


def _norm(modules: Iterable[LoraModule]) -> float:
    return math.hypot(*(float(frobenius_norm(one.down, one.up, float(one.scale))) for one in modules))


def _examples(adapter: Adapter) -> str:
    names = list(adapter.modules)
    shown = ", ".join(dict.fromkeys([names[0], names[len(names) // 2], names[-1]]))
    return f"{shown} ({len(names)} modules, {' and '.join(adapter.schemes) or 'unknown'} names)"
