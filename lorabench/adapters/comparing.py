"""Two adapters module by module: angle, norm, difference and shared subspaces of ΔW, which is never formed."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.errors import LorabenchError
from lorabench.lowrank import frobenius_norm, numerical_rank, thin_svd

__all__ = ["Comparison", "ModuleComparison", "SubspaceOverlap", "compare"]

_SvdA = tuple[Float64[Tensor, "d_out k_a"], Float64[Tensor, " k_a"], Float64[Tensor, "k_a d_in"]]
_SvdB = tuple[Float64[Tensor, "d_out k_b"], Float64[Tensor, " k_b"], Float64[Tensor, "k_b d_in"]]


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
            where names match as they are.
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

    With the thin SVDs L_a·S_a·R_a and L_b·S_b·R_b, the products L_aᵀ·L_b and R_a·R_bᵀ and the parts of L_b
    and R_b that lie outside the other's span, ‖ΔW_a − ΔW_b‖² is a sum of squares: nothing cancels, and the
    difference of equal adapters is 1e-15 (1e-9 where factors are nearly dependent), not 1e-8. Principal angles
    are those of Björck & Golub (1973).

    Modules are matched by their canonical names; where no name is in both, by the one prefix ("unet.") that
    makes most of them match.

    Args:
        a: the first adapter, of which ratios are taken.
        b: the second.
        top: keep the modules that differ most, this many; None keeps all.

    Raises:
        LorabenchError: no module has the same name in both, or `top` is below 1.
    """
    if top is not None and top < 1:
        raise LorabenchError(f"top={top}: a number of modules from 1 on is allowed, or None for all.")
    pairs, prefixes = _match(a, b)
    same = {x: y for x, y in pairs.items() if _space(a.modules[x]) == _space(b.modules[y])}
    found = _in_lanes([(x, a.modules[x], b.modules[y]) for x, y in same.items()])
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
        prefixes=prefixes,
        norms=(norm_a, norm_b),
        cosine=_cosine(inner, norm_a, norm_b),
        cosine_shared=_cosine(inner, shared_a, shared_b),
        norm_ratio=norm_b / norm_a if norm_a and norm_b else None,
        difference=gap / norm_a if norm_a and norm_b else None,
    )


def _in_lanes(tasks: list[tuple[str, LoraModule, LoraModule]]) -> list[tuple[ModuleComparison, float]]:
    """The modules side by side, each on one thread: many threads for one small product only wait for each other."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(lambda task: _compare_modules(*task), tasks))
    finally:
        torch.set_num_threads(threads)


def _compare_modules(name: str, a: LoraModule, b: LoraModule) -> tuple[ModuleComparison, float]:
    """A module's comparison, and ‖ΔW_a − ΔW_b‖_F."""
    svd_a, svd_b = (thin_svd(one.down, one.up, float(one.scale)) for one in (a, b))
    norm_a, norm_b = float(svd_a[1].norm()), float(svd_b[1].norm())
    rank_a, rank_b = _dimension(svd_a[1], a), _dimension(svd_b[1], b)
    lefts, rights = svd_a[0].mT @ svd_b[0], svd_a[2] @ svd_b[2].mT
    gap = _gap(svd_a, svd_b, lefts, rights)
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


def _gap(a: _SvdA, b: _SvdB, lefts: Float64[Tensor, "k_a k_b"], rights: Float64[Tensor, "k_a k_b"]) -> float:
    """‖ΔW_a − ΔW_b‖_F from four orthogonal parts: b within a's two spans, and outside either or both."""
    sigma_b = b[1]
    inside = a[1].diag() - (lefts * sigma_b) @ rights.mT
    outside_left, outside_right = b[0] - a[0] @ lefts, b[2].mT - a[2].mT @ rights
    weight = sigma_b.unsqueeze(1) * sigma_b

    def squared(left: Float64[Tensor, "rows k"], right: Float64[Tensor, "cols k"]) -> float:
        return max(float(((left.mT @ left) * (right.mT @ right) * weight).sum()), 0.0)

    return math.sqrt(
        float(inside.square().sum())
        + squared(lefts, outside_right)
        + squared(outside_left, rights)
        + squared(outside_left, outside_right)
    )


def _dimension(sigma: Float64[Tensor, " k"], module: LoraModule) -> int:
    # max(d) · eps of half a type is above 1, and no subspace would be left. The factors are stored, not ΔW:
    # their rounding moves σ by about eps · σ₁, whatever the width.
    as_read = int(numerical_rank(sigma, module.shape, torch.float32))
    return min(as_read, int(numerical_rank(sigma, (1, 1), module.dtype)))


def _overlap(products: Float64[Tensor, "k_a k_b"], width: int) -> SubspaceOverlap:
    cosines = torch.linalg.svdvals(products).clamp(0.0, 1.0)
    return SubspaceOverlap(tuple(cosines.tolist()), float(cosines.square().mean()), max(products.shape) / width)


def _cosine(inner: float, norm_a: float, norm_b: float) -> float | None:
    return max(-1.0, min(1.0, inner / norm_a / norm_b)) if norm_a and norm_b else None


def _norm(modules: Iterable[LoraModule]) -> float:
    return math.hypot(*(float(frobenius_norm(one.down, one.up, float(one.scale))) for one in modules))


def _space(module: LoraModule) -> tuple[tuple[int, int], tuple[int, ...], bool]:
    """Where ΔW lives; a 1×1 convolution is a linear layer."""
    return module.shape, module.kernel if max(module.kernel, default=1) > 1 else (), module.embedding


def _match(a: Adapter, b: Adapter) -> tuple[dict[str, str], tuple[str, str]]:
    """Names of `a` -> names of `b`, and the prefixes of both that one has and the other has not."""
    same = {name: name for name in a.modules if name in b.modules}
    if same:
        return same, ("", "")
    votes = _votes(a, b, 0) + _votes(b, a, 1)
    best = votes.most_common(2)
    if not best:
        raise LorabenchError(
            f"{a.path} and {b.path}: no module has the same name in both. The first names its modules like "
            f"{_examples(a)}; the second like {_examples(b)}. Compare adapters of the same base model."
        )
    if len(best) == 2 and best[0][1] == best[1][1]:
        (side, first), (_, second) = best[0][0], best[1][0]
        raise LorabenchError(
            f"{a.path} and {b.path}: no module has the same name in both, and two prefixes in the "
            f"{('first', 'second')[side]} would fit equally well, {first!r} and {second!r}. "
            f"The first names its modules like {_examples(a)}; the second like {_examples(b)}. "
            "Split the file that holds both parts, or rename the modules."
        )
    side, prefix = best[0][0]
    if side == 0:
        return {name: rest for name in a.modules if (rest := _without(name, prefix)) in b.modules}, (prefix, "")
    return {rest: name for name in b.modules if (rest := _without(name, prefix)) in a.modules}, ("", prefix)


def _votes(longer: Adapter, shorter: Adapter, side: int) -> Counter[tuple[int, str]]:
    """How many modules a prefix of `longer` brings together; those of one shape count far more."""
    votes: Counter[tuple[int, str]] = Counter()
    for name, module in longer.modules.items():
        parts = name.split(".")
        for cut in range(1, len(parts)):
            other = shorter.modules.get(".".join(parts[cut:]))
            if other is not None:
                votes[side, ".".join(parts[:cut]) + "."] += 1000 if _space(other) == _space(module) else 1
    return votes


def _without(name: str, prefix: str) -> str:
    return name.removeprefix(prefix) if name.startswith(prefix) else ""


def _examples(adapter: Adapter) -> str:
    names = list(adapter.modules)
    shown = ", ".join(dict.fromkeys([names[0], names[len(names) // 2], names[-1]]))
    return f"{shown} ({len(names)} modules, {' and '.join(adapter.schemes) or 'unknown'} names)"
