"""Several adapters into one."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.merging.aligning import align, module_names
from lorabench.adapters.merging.clashing import hindrances, used_weights
from lorabench.adapters.merging.extras import merged_config, merged_extras
from lorabench.adapters.merging.methods import DEFAULT
from lorabench.adapters.merging.modules import Parts, merged_modules
from lorabench.adapters.merging.provenance import agreed_metadata, notes_on, parents_of
from lorabench.adapters.merging.recipe import Recipe
from lorabench.adapters.merging.report import MergeReport
from lorabench.adapters.writing.configuration import stated_options
from lorabench.adapters.writing.refusals import refuse_infinite
from lorabench.adapters.writing.tensors import scaled_biases
from lorabench.errors import LorabenchError

__all__ = ["merge"]

_HALVES = {torch.float16, torch.bfloat16}


def merge(
    adapters: Sequence[Adapter], weights: Sequence[float | int] | None = None, recipe: Recipe | None = None
) -> tuple[Adapter, MergeReport]:
    """One adapter whose ΔW is Σ w_i · ΔW_i, or what another method makes of it (`Recipe.method`).

    Methods on ΔW form it one module at a time, and go back to factors by the truncated SVD. The disjoint mean of those
    that elect signs divides by the number of adapters that agree, so normalised weights are multiplied by the number
    of adapters first: equal ones then give the plain mean of Yadav et al. (2023), and [a, a] gives a.

    The result has scale 1, α = its rank, and one type for all modules; errors are measured after the factors were
    rounded to it. What adapters hold besides low-rank pairs (heads, saved modules, biases) is carried where they agree,
    and summed by weights that sum to 1 where they do not. The order of the adapters matters for DARE alone, whose masks
    are drawn by position.

    Args:
        adapters: one or more; ranks, scales and layouts may differ. Modules match as `aligning.align` says, and the
            result has the first adapter's names.
        weights: w_i, one for each, negative ones and such above 1 too; None: all equal.
        recipe: how it is done; None: `Recipe()`.

    Returns:
        The merged adapter, its metadata naming method, weights, parents and error; and the report.

    Raises:
        LorabenchError: weights that sum to 0, what `clashing.hindrances` names (shapes that differ, DoRA magnitudes,
            tensors that are no low-rank pair, ranks that differ under "linear", a ΔW too large to be formed), or
            values that do not fit the type.

    Example:
        >>> from pathlib import Path
        >>> from lorabench.adapters.adapter import LoraModule
        >>> a, b = (Adapter(Path(name), (), {"q": LoraModule(torch.ones(1, 3), torch.ones(2, 1))}) for name in "ab")
        >>> merged, report = merge([a, b], [3, 1], Recipe("concat"))
        >>> merged.modules["q"].rank, report.weights, report.measured
        (2, (0.75, 0.25), 0.0)
    """
    recipe = recipe or Recipe()
    used = used_weights(len(adapters), weights, recipe.normalize)
    aligned = align(adapters)
    adapters = aligned.adapters
    for _, reason in hindrances(adapters, recipe):
        raise LorabenchError(reason)
    for adapter in adapters:
        refuse_infinite(adapter)
    same = _are_one(adapters, used, recipe)
    config = merged_config([stated_options(adapter) for adapter in adapters])
    extras = merged_extras([one.extras if same else scaled_biases(one) for one in adapters], used, recipe)
    parts = [Parts(name, tuple(one.modules.get(name) for one in adapters), used) for name in module_names(adapters)]
    merged = merged_modules(parts, recipe, _dtype(adapters, recipe))
    rows = tuple(row for _, row in merged.values())
    notes = (*aligned.notes, *notes_on(adapters, used, recipe, rows), *config.notes, *extras.notes)
    report = MergeReport(recipe.method, recipe.options(), parents_of(adapters, weights, used), rows, notes)
    result = Adapter(
        path=Path("merged"),
        schemes=adapters[0].schemes,
        modules=adapters[0].modules if same else {name: one for name, (one, _) in merged.items() if one is not None},
        metadata=agreed_metadata(adapters) | report.metadata(),
        config=config.entries,
        extras=extras.tensors,
    )
    return result, report


def _are_one(adapters: Sequence[Adapter], weights: Sequence[float], recipe: Recipe) -> bool:
    """Whether all are the same adapter and the weights sum to 1: then it is the result, with its scale and type.

    An adapter whose configuration changes its base when it is loaded (PiSSA) is the same only at its own ranks and
    scales; without a configuration nothing hangs on them. Factors that are summed apart (linear) are as many times
    themselves as there are adapters.
    """
    first = adapters[0]
    plain = recipe.method == DEFAULT or (not recipe.way.options and len(adapters) == 1)
    if (
        not first.config
        or not plain
        or recipe.rank
        or recipe.dtype
        or not math.isclose(math.fsum(weights), 1.0, rel_tol=1e-12)
    ):
        return False
    return all(
        other.modules.keys() == first.modules.keys()
        and other.config == first.config
        and all(_equal(module, other.modules[name]) for name, module in first.modules.items())
        and all(torch.equal(tensor, other.extras.get(key, tensor.new_empty(0))) for key, tensor in first.extras.items())
        for other in adapters
    )


def _equal(a: LoraModule, b: LoraModule) -> bool:
    same = a.kind == b.kind == "lora" and a.scale == b.scale and a.down.shape == b.down.shape
    return same and torch.equal(a.down, b.down) and torch.equal(a.up, b.up)


def _dtype(adapters: Sequence[Adapter], recipe: Recipe) -> torch.dtype:
    """The type asked for, or that of all adapters if it is a half one; float32 where they differ."""
    if recipe.dtype:
        chosen: torch.dtype = getattr(torch, recipe.dtype)
        return chosen
    stored = {module.dtype for adapter in adapters for module in adapter.modules.values()}
    return stored.pop() if len(stored) == 1 and stored <= _HALVES else torch.float32
