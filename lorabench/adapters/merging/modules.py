"""Modules of several adapters merged, and how far each is from what was asked."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from lorabench.adapters.adapter import LoraModule
from lorabench.adapters.comparing.deviation import chunks
from lorabench.adapters.merging.clashing import kernel_of
from lorabench.adapters.merging.recipe import Recipe
from lorabench.adapters.merging.report import ModuleMerge
from lorabench.adapters.merging.sparsify import Deltas
from lorabench.adapters.merging.terms import Terms
from lorabench.adapters.merging.truncating import best_pair
from lorabench.errors import LorabenchError
from lorabench.lowrank import frobenius_norm
from lorabench.machine import map_in_lanes, recycle_freed_blocks
from lorabench.progress import bar

__all__ = ["Merged", "Parts", "merged_modules"]

_MEMORY = 2**31
"""Bytes of dense matrices that all lanes together may hold, where a single module does not need more by itself."""

Merged = tuple[LoraModule | None, ModuleMerge]
"""A module, None where it is left out, and its row of the report."""


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
    def held(self) -> list[LoraModule]:
        """Of the adapters that have it."""
        return [module for module in self.each if module is not None]

    @property
    def owners(self) -> list[int]:
        """Positions of the adapters that have it."""
        return [i for i, module in enumerate(self.each) if module is not None]

    @property
    def owned_weights(self) -> list[float]:
        """Weights of those."""
        return [self.weights[i] for i in self.owners]

    @property
    def terms(self) -> Terms:
        """Its sum, as that of one module."""
        return Terms.of([[module] for module in self.held], self.owned_weights)

    @property
    def ranks(self) -> tuple[int | None, ...]:
        """Of each, None where it lacks it."""
        return tuple(None if module is None else module.rank for module in self.each)


def merged_modules(parts: Sequence[Parts], recipe: Recipe, dtype: torch.dtype) -> dict[str, Merged]:
    """Every module merged, its factors rounded to `dtype`.

    Methods on factors take modules of one shape and ranks together, those on ΔW one at a time; both in lanes, as far
    as memory goes. The numbers do not depend on how many lanes there are.

    Raises:
        LorabenchError: values that do not fit `dtype`.
    """
    left_out = [one for one in parts if recipe.missing == "skip" and None in one.each]
    merged = {one.name: _left_out(one) for one in left_out}
    rest = [one for one in parts if one.name not in merged]
    batches = [[one] for one in rest] if recipe.way.dense else list(_alike(rest))
    with bar("Merging modules", len(batches)) as shown:
        merged |= _merged(batches, recipe, dtype, shown.advance)
    return {one.name: merged[one.name] for one in parts}


def _merged(
    batches: Sequence[Sequence[Parts]], recipe: Recipe, dtype: torch.dtype, done: Callable[[], object]
) -> dict[str, Merged]:
    merged: dict[str, Merged] = {}
    if recipe.way.dense:
        recycle_freed_blocks()
        width = torch.get_num_threads()
        for frugal in (False, True):
            several = [one for (one,) in batches if (width * _dense_bytes(one) > _MEMORY) == frugal]
            task = partial(_on_delta, recipe=recipe, dtype=dtype, frugal=frugal)
            rows = map_in_lanes(task, several, 1 if frugal else width, done)
            merged |= {one.name: row for one, row in zip(several, rows, strict=True)}
    else:
        for batch in map_in_lanes(partial(_on_factors, recipe=recipe, dtype=dtype), batches, done=done):
            merged |= batch
    return merged


def _dense_bytes(parts: Parts) -> int:
    """What a method on ΔW holds at most: a matrix of each adapter, and five besides."""
    return 4 * math.prod(parts.held[0].shape) * (len(parts.held) + 5)


def _alike(parts: Sequence[Parts]) -> Iterator[Sequence[Parts]]:
    """Modules that the same adapters have in the same shape and ranks, in batches that a cache holds."""
    groups: dict[object, list[Parts]] = defaultdict(list)
    for one in parts:
        groups[one.held[0].shape, one.ranks].append(one)
    for group in groups.values():
        yield from chunks(group, sum(group[0].held[0].shape) * sum(module.rank for module in group[0].held))


def _on_factors(batch: Sequence[Parts], recipe: Recipe, dtype: torch.dtype) -> dict[str, Merged]:
    terms = Terms.of(
        [[one.each[i] for one in batch] for i in batch[0].owners],  # type: ignore[misc]  # no owner has None
        batch[0].owned_weights,
    )
    pairs = recipe.way.function(terms, **_options(recipe, batch[0]))
    down, up = _rounded([one.name for one in batch], pairs.down, pairs.up, dtype)
    measured, norms = _distances(down, up, terms, dtype)
    rows = zip(batch, down, up, pairs.predicted.tolist(), measured.tolist(), norms.tolist(), strict=True)
    return {
        one.name: (
            _module(one, own_down.clone(), own_up.clone(), dtype),
            ModuleMerge.of(
                one.name, one.ranks, len(own_down), predicted=predicted, measured=apart, target=norm, from_sum=apart,
                norm=norm,
            ),
        )
        for one, own_down, own_up, predicted, apart, norm in rows
    }  # fmt: skip


def _on_delta(parts: Parts, recipe: Recipe, dtype: torch.dtype, frugal: bool) -> Merged:
    weights = parts.owned_weights
    if recipe.way.elects and recipe.normalize:
        # A mean over n that agree makes one nth of weights that already sum to 1.
        weights = [weight * len(parts.each) for weight in weights]
    target = recipe.way.function(Deltas(parts.held, frugal), weights, **_options(recipe, parts))
    rank = sum(module.rank for module in parts.held) if recipe.rank is None else recipe.rank
    down, up, predicted = best_pair(target, rank)
    downs, ups = _rounded([parts.name], down[None], up[None], dtype)
    aim, measured = _norm(target), _norm(target.sub_(ups[0] @ downs[0]))
    from_sum, norm = (float(value) for value in _distances(downs, ups, parts.terms, dtype))
    return _module(parts, downs[0], ups[0], dtype), ModuleMerge.of(
        parts.name, parts.ranks, len(downs[0]), predicted=predicted, measured=measured, target=aim, from_sum=from_sum,
        norm=norm,
    )  # fmt: skip


def _options(recipe: Recipe, parts: Parts) -> dict[str, object]:
    """What the method's function asks for."""
    seeds = [_seed(recipe.seed, parts.name, i) for i in parts.owners]
    return {name: seeds if name == "seeds" else getattr(recipe, name) for name in recipe.way.arguments}


def _module(
    parts: Parts, down: Float32[Tensor, "r d_in"], up: Float32[Tensor, "d_out r"], dtype: torch.dtype
) -> LoraModule:
    modules = parts.held
    return LoraModule(
        down=down, up=up, scale=1.0, alpha=float(len(down)), dtype=dtype, embedding=modules[0].embedding,
        assumed=tuple(dict.fromkeys(note for module in modules for note in module.assumed)), kernel=kernel_of(modules),
    )  # fmt: skip


def _left_out(parts: Parts) -> Merged:
    """The row of a module that the result lacks: all of it is error."""
    norm = float(parts.terms.norms())
    return None, ModuleMerge.of(
        parts.name, parts.ranks, 0, predicted=norm, measured=norm, target=norm, from_sum=norm, norm=norm
    )


def _distances(
    down: Float32[Tensor, "n r d_in"], up: Float32[Tensor, "n d_out r"], terms: Terms, dtype: torch.dtype
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """As `Terms.distances`; where the parts cancel, 0 for what rounding them to `dtype` leaves."""
    apart, norms = terms.distances(down, up)
    if bool((norms == 0).any()):
        sizes = torch.stack([frobenius_norm(*term) for term in terms.each]).sum(0)
        apart = torch.where((norms == 0) & (apart <= torch.finfo(dtype).eps * sizes), 0.0, apart)
    return apart, norms


def _seed(seed: int, module: str, position: int) -> int:
    """Other masks in every module and adapter, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{position}/{module}".encode()).digest()[:7], "big")


def _rounded(
    names: Sequence[str], down: Float[Tensor, "n r d_in"], up: Float[Tensor, "n d_out r"], dtype: torch.dtype
) -> tuple[Float32[Tensor, "n r d_in"], Float32[Tensor, "n d_out r"]]:
    """Factors with values that `dtype` can hold."""
    if dtype == torch.float16:
        # It holds no small numbers well: powers of two, which round nothing, make both factors alike in size.
        of_up, of_down = up.norm(dim=-2), down.norm(dim=-1)
        shift = torch.where((of_up > 0) & (of_down > 0), of_down / of_up, 1.0).log2().div(2).round().exp2()
        down, up = down / shift[..., None], up * shift[..., None, :]
    down, up = (factor.to(dtype).float().contiguous() for factor in (down, up))
    fit = down.isfinite().all((-2, -1)) & up.isfinite().all((-2, -1))
    if not bool(fit.all()):
        name = names[fit.tolist().index(False)]
        raise LorabenchError(
            f"module {name}: the merged factors do not fit {dtype}. Use bfloat16 or float32, or smaller weights."
        )
    return down, up


def _norm(matrix: Float[Tensor, "rows cols"]) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))
