"""What forbids to add several adapters: weights, shapes, magnitudes, and tensors that are no low-rank pair."""

import math
from collections.abc import Iterator, Sequence

from lorabench.adapters.adapter import MAGNITUDES, Adapter, LoraModule
from lorabench.adapters.merging.aligning import labels, module_names, space
from lorabench.adapters.merging.recipe import Recipe
from lorabench.adapters.writing.refusals import all_carried, asked_for
from lorabench.errors import LorabenchError

__all__ = [
    "hindrances",
    "kernel_of",
    "kinds_left",
    "magnitudes",
    "strangers",
    "sums_to_zero",
    "used_weights",
]

_MOST_ENTRIES = 2**28  # of a dense ΔW: 1 GiB in float32, of which up to five are held at a time


def used_weights(count: int, weights: Sequence[float | int] | None, normalize: bool) -> tuple[float, ...]:
    """The weights that a merge of `count` adapters uses: as given (None: all equal), or divided by their sum.

    Raises:
        LorabenchError: no adapter, another number of weights, one that is not finite, or a sum of 0 to divide by.
    """
    if count == 0:
        raise LorabenchError("adapters: none came. Give at least one adapter to merge.")
    given = tuple(float(weight) for weight in ([1.0] * count if weights is None else weights))
    if len(given) != count:
        raise LorabenchError(
            f"weights (--weights): {len(given)} came for {count} adapters. Give one number for each adapter."
        )
    if not all(math.isfinite(weight) for weight in given):
        raise LorabenchError(f"weights (--weights): {_list(given)} came; only finite numbers are allowed.")
    if not normalize:
        return given
    if sums_to_zero(given):
        raise LorabenchError(
            f"weights (--weights): {_list(given)} sum to 0, so they cannot be normalised to sum to 1. "
            "Use them as they are: --no-normalize, or normalize=False."
        )
    total = math.fsum(given)
    return tuple(weight / total for weight in given)


def sums_to_zero(weights: Sequence[float | int]) -> bool:
    """Whether the sum is 0 up to rounding."""
    return abs(math.fsum(weights)) <= 1e-12 * math.fsum(map(abs, weights))


def hindrances(adapters: Sequence[Adapter], recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Why adapters cannot be merged so, each reason as (what was looked at, a sentence with the way out).

    Args:
        adapters: under common names.
        recipe: how they are to be merged.
    """
    names, owners = labels(adapters), module_names(adapters)
    partial = [module for module, who in owners.items() if len(who) < len(adapters)]
    merged = [module for module in owners if recipe.missing != "skip" or len(owners[module]) == len(adapters)]
    differ = _first(_other_spaces(adapters, merged))
    if differ:
        yield "shapes", f"{differ}: such ΔW cannot be added. Merge adapters of one base model."
    if partial and recipe.missing == "error":
        yield (
            "modules",
            (
                f"{len(partial)} modules, first {partial[0]}, are not in every one of {', '.join(names)}. "
                "Count them as zero with --missing zero (missing='zero'), or leave them out with 'skip'."
            ),
        )
    if not merged:
        yield "modules", f"{', '.join(names)} have no module in common. Use --missing zero (missing='zero')."
    if not recipe.drop_dora:
        for i, modules in magnitudes(adapters).items():
            yield (
                "magnitudes",
                (
                    f"DoRA magnitudes cannot be merged, they belong to the base weights as each adapter left them: "
                    f"{names[i]} has {len(modules)}, first {modules[0]}. "
                    "Merge the low-rank parts alone with --drop-dora (drop_dora=True)."
                ),
            )
    if not recipe.drop_unsupported:
        for i, kinds in kinds_left(adapters).items():
            yield (
                "left out",
                (
                    f"{names[i]} has tensors that are no low-rank pair and cannot be merged: {kinds}. "
                    f"Leave them out with --drop-unsupported (drop_unsupported=True).{asked_for(adapters[i])}"
                ),
            )
    yield from _of_the_method(adapters, recipe, merged)


def _of_the_method(adapters: Sequence[Adapter], recipe: Recipe, merged: Sequence[str]) -> Iterator[tuple[str, str]]:
    unequal = _first(_other_ranks(adapters, merged)) if recipe.way.equal_ranks else ""
    if unequal:
        why = f"method {recipe.method!r} {recipe.way.equal_ranks}, so ranks must be equal"
        yield "ranks", f"{unequal}: {why}. Use --method svd."
    owners = module_names(adapters)
    large = [one for one in merged if math.prod(adapters[owners[one][0]].modules[one].shape) > _MOST_ENTRIES]
    if large and recipe.way.dense:
        rows, cols = adapters[owners[large[0]][0]].modules[large[0]].shape
        yield (
            "size",
            (
                f"module {large[0]}: its ΔW of {rows}x{cols} is too large to be formed, "
                f"as method {recipe.method!r} must. Use --method svd or concat."
            ),
        )


def strangers(adapters: Sequence[Adapter]) -> list[str]:
    """Labels of the adapters that have no module in common with any other."""
    if len(adapters) < 2:
        return []
    kin = {i for owners in module_names(adapters).values() if len(owners) > 1 for i in owners}
    return [name for i, name in enumerate(labels(adapters)) if i not in kin]


def magnitudes(adapters: Sequence[Adapter]) -> dict[int, list[str]]:
    """Which adapter has which modules with a DoRA magnitude."""
    found = {i: [name for name, one in each.modules.items() if one.has_magnitude] for i, each in enumerate(adapters)}
    return {i: modules for i, modules in found.items() if modules}


def kinds_left(adapters: Sequence[Adapter], dropped: bool = False) -> dict[int, str]:
    """Which adapter has tensors that no merge can take up, in words; DoRA magnitudes are told by `magnitudes`.

    Args:
        adapters: what is merged.
        dropped: whether what could be carried (`Adapter.extras`) is left out too.
    """
    left = {}
    for i, adapter in enumerate(adapters):
        kinds = [
            f"{len(keys)} of kind {kind} ({keys[0]})"
            for kind, keys in adapter.unsupported.items()
            if kind != MAGNITUDES and keys and (dropped or not all_carried(keys, adapter))
        ]
        if kinds:
            left[i] = ", ".join(kinds)
    return left


def kernel_of(modules: Sequence[LoraModule]) -> tuple[int, ...]:
    """The kernel of modules that fit: a 1×1 convolution's where one file says that, and another says linear."""
    return max((module.kernel for module in modules), key=len)


def _other_spaces(adapters: Sequence[Adapter], modules: Sequence[str]) -> Iterator[str]:
    """Modules of one name whose ΔW cannot be added, in words."""
    names = labels(adapters)
    for module in modules:
        kinds = {
            name: _what(one.modules[module]) for name, one in zip(names, adapters, strict=True) if module in one.modules
        }
        if len(set(kinds.values())) > 1:
            yield f"module {module} is " + ", ".join(f"{kind} in {name}" for name, kind in kinds.items())


def _other_ranks(adapters: Sequence[Adapter], modules: Sequence[str]) -> Iterator[str]:
    """Modules whose factors cannot be averaged, as their ranks differ, in words."""
    names = labels(adapters)
    for module in modules:
        ranks = {
            name: one.modules[module].rank for name, one in zip(names, adapters, strict=True) if module in one.modules
        }
        if len(set(ranks.values())) > 1:
            yield f"module {module} has rank " + ", ".join(f"{rank} in {name}" for name, rank in ranks.items())


def _first(found: Iterator[str]) -> str:
    """The first, and how many more there are; "" for none."""
    several = list(found)
    more = f" (and {len(several) - 1} more modules differ)" if len(several) > 1 else ""
    return several[0] + more if several else ""


def _what(module: LoraModule) -> str:
    shape, kernel, embedding = space(module)
    kind = "an embedding" if embedding else f"a {kernel} convolution" if kernel else "a matrix"
    return f"{kind} of {shape[0]}x{shape[1]}"


def _list(weights: Sequence[float]) -> str:
    return " ".join(f"{weight:g}" for weight in weights)
