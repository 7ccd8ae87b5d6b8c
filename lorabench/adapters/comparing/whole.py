"""Two adapters module by module: angle, norm, difference and shared subspaces of ΔW, which is never formed."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.fusing import in_one_naming
from lorabench.adapters.merging.aligning import match, space
from lorabench.adapters.pairs import ModulePair, SubspaceOverlap, module_pairs
from lorabench.adapters.writing.refusals import refuse_infinite
from lorabench.errors import LorabenchError
from lorabench.lowrank import frobenius_norm

__all__ = ["Comparison", "ModuleComparison", "compare"]


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

    The numbers are those of `pairs.module_pairs`; ‖ΔW_a − ΔW_b‖ is right to 1e-14 of the factors, so the difference of
    equal adapters is no 1e-8. Modules are matched as `aligning.match` does.

    Args:
        a: the first adapter, of which ratios are taken.
        b: the second.
        top: keep the modules that differ most, this many; None keeps all.

    Raises:
        LorabenchError: no module has the same name in both, or `top` is below 1.

    Example:
        >>> from pathlib import Path
        >>> import torch
        >>> from lorabench.adapters.adapter import LoraModule
        >>> a = Adapter(Path("a"), (), {"q": LoraModule(torch.eye(2, 5), torch.eye(4, 2))})
        >>> b = Adapter(Path("b"), (), {"q": LoraModule(torch.eye(2, 5), torch.eye(4, 2), scale=3.0)})
        >>> found = compare(a, b)
        >>> round(found.cosine, 6), round(found.norm_ratio, 6), round(found.difference, 6)
        (1.0, 3.0, 2.0)
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
    pairs_of = module_pairs({x: (a.modules[x], b.modules[y]) for x, y in same.items()})
    modules = sorted(
        (_compared(x, a.modules[x], b.modules[y], pairs_of[x][0, 1]) for x, y in same.items()),
        key=lambda one: -one.distance,
    )
    matched, named = set(same.values()), set(pairs.values())
    alone_a = _norm(module for name, module in a.modules.items() if name not in same)
    alone_b = _norm(module for name, module in b.modules.items() if name not in matched)
    shared_a, shared_b = (math.hypot(*(one.norms[side] for one in modules)) for side in (0, 1))
    norm_a, norm_b = math.hypot(shared_a, alone_a), math.hypot(shared_b, alone_b)
    measured = [pairs[0, 1] for pairs in pairs_of.values()]
    inner = math.fsum(pair.inner for pair in measured)
    gap = math.hypot(alone_a, alone_b, *(pair.distance for pair in measured))
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


def _compared(name: str, a: LoraModule, b: LoraModule, pair: ModulePair) -> ModuleComparison:
    norm_a, norm_b = pair.norms
    return ModuleComparison(
        module=name,
        shape=a.shape,
        ranks=(a.rank, b.rank),
        numerical_ranks=pair.dimensions,
        norms=pair.norms,
        untrained=None if pair.trained else "both" if norm_a == norm_b else "a" if norm_a == 0 else "b",
        cosine=pair.cosine,
        norm_ratio=norm_b / norm_a if pair.trained else None,
        difference=pair.distance / norm_a if pair.trained else None,
        distance=pair.distance / (max(pair.norms) or 1.0),
        left=pair.left,
        right=pair.right,
    )


def _cosine(inner: float, norm_a: float, norm_b: float) -> float | None:
    return max(-1.0, min(1.0, inner / norm_a / norm_b)) if norm_a and norm_b else None


def _norm(modules: Iterable[LoraModule]) -> float:
    return math.hypot(*(float(frobenius_norm(one.down, one.up, float(one.scale))) for one in modules))


def _examples(adapter: Adapter) -> str:
    names = list(adapter.modules)
    shown = ", ".join(dict.fromkeys([names[0], names[len(names) // 2], names[-1]]))
    return f"{shown} ({len(names)} modules, {' and '.join(adapter.schemes) or 'unknown'} names)"
