"""One module of several adapters merged into one, and how far it is from what was asked."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from lorabench.adapters.adapter import LoraModule
from lorabench.adapters.comparing.deviation import Term, distance, stacked
from lorabench.adapters.merging.clashing import kernel_of
from lorabench.adapters.merging.recipe import DENSE, Recipe
from lorabench.adapters.merging.report import ModuleMerge
from lorabench.adapters.merging.sparsify import best_pair, dare_linear, dare_ties, magnitude_prune, ties
from lorabench.errors import LorabenchError
from lorabench.lowrank import frobenius_norm, thin_svd

__all__ = ["Parts", "merged_module"]

_ROUNDING = 1e-13


@dataclass(frozen=True)
class Parts:
    """One module in every adapter.

    Attributes:
        name: its canonical name.
        each: what each adapter holds, None where it lacks it; one at least is there.
        weights: of each adapter.
    """

    name: str
    each: tuple[LoraModule | None, ...]
    weights: tuple[float, ...]

    @property
    def held(self) -> list[tuple[int, LoraModule]]:
        """(position, module) of the adapters that have it."""
        return [(i, module) for i, module in enumerate(self.each) if module is not None]

    @property
    def terms(self) -> list[Term]:
        """(down, up, w_i · scale_i) of those."""
        return [(module.down, module.up, self.weights[i] * module.scale) for i, module in self.held]

    @property
    def ranks(self) -> tuple[int | None, ...]:
        """Of each, None where it lacks it."""
        return tuple(None if module is None else module.rank for module in self.each)


def merged_module(parts: Parts, recipe: Recipe, dtype: torch.dtype) -> tuple[LoraModule | None, ModuleMerge]:
    """The module merged, its factors rounded to `dtype`, and its row of the report; None where it is left out.

    Raises:
        LorabenchError: values that do not fit `dtype`.
    """
    terms = parts.terms
    if recipe.missing == "skip" and len(parts.held) < len(parts.each):
        return None, _left_out(parts)
    if recipe.method in DENSE:
        target = _sparse(parts, recipe)
        wanted = sum(len(down) for down, _, _ in terms) if recipe.rank is None else recipe.rank
        down, up, predicted = best_pair(target, wanted)
        down, up = _rounded(parts.name, down, up, dtype)
        aim, measured = _norm(target), _norm(target.sub_(up @ down))
        from_sum, norm = _distance(down, up, terms, dtype)
    else:
        down, up, predicted = _LOW_RANK[recipe.method](parts, recipe)
        down, up = _rounded(parts.name, down, up, dtype)
        measured, norm = _distance(down, up, terms, dtype)
        aim, from_sum = norm, measured
    modules = [module for _, module in parts.held]
    merged = LoraModule(
        down=down, up=up, scale=1.0, alpha=float(len(down)), dtype=dtype, embedding=modules[0].embedding,
        assumed=tuple(dict.fromkeys(said for one in modules for said in one.assumed)), kernel=kernel_of(modules),
    )  # fmt: skip
    return merged, ModuleMerge.of(
        parts.name, parts.ranks, len(down), predicted=predicted, measured=measured, target=aim, from_sum=from_sum,
        norm=norm,
    )  # fmt: skip


def _left_out(parts: Parts) -> ModuleMerge:
    """The row of a module that the result lacks: all of it is error."""
    down, up, _ = parts.terms[0]
    _, norm = distance((down[:1], up[:, :1], 0.0), parts.terms)
    return ModuleMerge.of(
        parts.name, parts.ranks, 0, predicted=norm, measured=norm, target=norm, from_sum=norm, norm=norm
    )


def _distance(
    down: Float32[Tensor, "r d_in"], up: Float32[Tensor, "d_out r"], terms: Sequence[Term], dtype: torch.dtype
) -> tuple[float, float]:
    """As `distance`; where the parts cancel, 0 for what rounding them to `dtype` leaves."""
    apart, norm = distance((down, up, 1.0), terms)
    if norm == 0 and apart <= torch.finfo(dtype).eps * sum(float(frobenius_norm(*term)) for term in terms):
        apart = 0.0
    return apart, norm


_Pair = tuple[Float64[Tensor, "k d_in"], Float64[Tensor, "d_out k"], float]
"""down, up, and the predicted ‖up @ down − Σ terms‖_F."""


def _concat(parts: Parts, _: Recipe) -> _Pair:
    return *stacked(parts.terms), 0.0


def _svd(parts: Parts, recipe: Recipe) -> _Pair:
    down, up = stacked(parts.terms)
    # What cancelled to rounding is no direction: a − a is zero, not noise.
    floor = _ROUNDING * float((up.norm(dim=0) * down.norm(dim=1)).sum())
    left, sigma, right = thin_svd(down, up)
    sigma = torch.where(sigma > floor, sigma, 0.0)
    largest = max(module.rank for _, module in parts.held)
    k = min(largest if recipe.rank is None else recipe.rank, len(sigma))
    root = sigma[:k].sqrt()
    return right[:k] * torch.where(root > 0, root, 1.0)[:, None], left[:, :k] * root, float(sigma[k:].norm())


def _linear(parts: Parts, _: Recipe) -> _Pair:
    terms = parts.terms
    roots = [math.sqrt(abs(factor)) for _, _, factor in terms]
    up = torch.stack([root * term[1].double() for term, root in zip(terms, roots, strict=True)]).sum(0)
    down = torch.stack(
        [math.copysign(root, term[2]) * term[0].double() for term, root in zip(terms, roots, strict=True)]
    ).sum(0)
    return down, up, distance((down, up, 1.0), terms)[0]


_LOW_RANK = {"concat": _concat, "svd": _svd, "linear": _linear}


class _Deltas:
    """The dense ΔW, one at a time, made anew each time they are gone through."""

    def __init__(self, parts: Parts) -> None:
        self._modules = [module for _, module in parts.held]

    def __iter__(self) -> Iterator[Tensor]:
        return (module.delta() for module in self._modules)


def _sparse(parts: Parts, recipe: Recipe) -> Float32[Tensor, "d_out d_in"]:
    """What a method on ΔW aims at."""
    deltas, density = _Deltas(parts), recipe.density
    weights = [parts.weights[i] for i, _ in parts.held]
    # A mean over n that agree makes one nth of weights that already sum to 1.
    lifted = [weight * len(parts.each) for weight in weights] if recipe.normalize else weights
    seeds = [_seed(recipe.seed, parts.name, i) for i, _ in parts.held]
    if recipe.method == "ties":
        return ties(deltas, lifted, density, recipe.by)
    if recipe.method == "dare_ties":
        return dare_ties(deltas, lifted, density, seeds, recipe.by)
    if recipe.method == "dare_linear":
        return dare_linear(deltas, weights, density, seeds)
    return magnitude_prune(deltas, weights, density)


def _seed(seed: int, module: str, position: int) -> int:
    """Other masks in every module and adapter, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{position}/{module}".encode()).digest()[:7], "big")


def _rounded(
    name: str, down: Float[Tensor, "r d_in"], up: Float[Tensor, "d_out r"], dtype: torch.dtype
) -> tuple[Float32[Tensor, "r d_in"], Float32[Tensor, "d_out r"]]:
    """Factors with values that `dtype` can hold."""
    if dtype == torch.float16:
        # It holds no small numbers well: powers of two, which round nothing, make both factors alike in size.
        of_up, of_down = up.norm(dim=0), down.norm(dim=1)
        shift = torch.where((of_up > 0) & (of_down > 0), of_down / of_up, 1.0).log2().div(2).round().exp2()
        down, up = down / shift[:, None], up * shift
    down, up = (factor.to(dtype).float().contiguous() for factor in (down, up))
    if not bool(torch.isfinite(down).all() & torch.isfinite(up).all()):
        raise LorabenchError(
            f"module {name}: the merged factors do not fit {dtype}. Use bfloat16 or float32, or smaller weights."
        )
    return down, up


def _norm(matrix: Float[Tensor, "rows cols"]) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))
