"""Several adapters into one: exactly, best at a rank, by averaged factors, or by TIES, DARE and pruning on ΔW."""

from collections.abc import Sequence
from pathlib import Path

import torch

from lorabench.adapters.adapter import Adapter
from lorabench.adapters.merging.aligning import align, module_names
from lorabench.adapters.merging.clashing import hindrances, used_weights
from lorabench.adapters.merging.modules import Parts, merged_module
from lorabench.adapters.merging.provenance import agreed_config, agreed_metadata, notes_on, parents_of
from lorabench.adapters.merging.recipe import DENSE, METHODS, MISSING, Recipe
from lorabench.adapters.merging.report import MergeReport
from lorabench.errors import LorabenchError
from lorabench.machine import map_in_lanes

__all__ = ["DENSE", "METHODS", "MISSING", "merge"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def merge(
    adapters: Sequence[Adapter],
    weights: Sequence[float | int] | None = None,
    *,
    method: str = "svd",
    rank: int | None = None,
    density: float | int = 0.5,
    majority: str = "total",
    normalize: bool = True,
    seed: int = 0,
    missing: str = "zero",
    drop_dora: bool = False,
    drop_unsupported: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[Adapter, MergeReport]:
    """One adapter whose ΔW is Σ w_i · ΔW_i, or what a method of merging makes of it.

    - `svd`: the best of its rank (Eckart & Young 1936), by factors alone.
    - `concat`: exact; rows of down stacked, columns of w_i · scale_i · up stacked, so ranks add.
    - `linear`: (Σ √|w_i·s_i| · up_i) @ (Σ ±√|w_i·s_i| · down_i), as PEFT's `add_weighted_adapter` has it, with
      s_i = scale_i and the sign of w_i·s_i; not exact, for its cross terms.
    - `ties`, `dare_linear`, `dare_ties`, `magnitude_prune`: on dense ΔW (see `sparsify`), one module at a time, and
      back to factors by the truncated SVD. The disjoint mean of the two `ties` divides by the number of adapters that
      agree, so normalised weights are multiplied by the number of adapters first: equal ones then give the plain mean
      of Yadav et al. (2023), and [a, a] gives a.

    The result has scale 1, α = its rank, and one type for all modules. The order of the adapters matters for DARE
    alone, whose masks are drawn by position.

    Args:
        adapters: one or more; ranks, scales and layouts may differ. Modules match as `aligning.align` says, and the
            result has the first adapter's names.
        weights: w_i, one for each, negative ones and such above 1 too; None: all equal.
        method: one of `METHODS`.
        rank: of each module, for `svd` (None: the largest of its parents') and those on ΔW (None: the sum of its
            parents'); never over min(d_out, d_in).
        density: share of the entries that is kept, in (0, 1]; for the methods on ΔW.
        majority: how the two `ties` elect a sign, by "total" or by "count".
        normalize: divide the weights by their sum.
        seed: of DARE's masks.
        missing: a module that only some of the adapters have: "zero": its ΔW is 0 in the others; "skip": it is
            left out; "error".
        drop_dora: merge the low-rank parts of DoRA adapters, without their magnitudes.
        drop_unsupported: leave out what is no low-rank pair (`Adapter.unsupported`).
        dtype: float32, float16 or bfloat16, to which the factors are rounded; errors are measured after it.

    Returns:
        The merged adapter, its metadata naming method, weights, parents and error; and the report.

    Raises:
        LorabenchError: an argument that is not allowed, weights that sum to 0, what `clashing.hindrances` names (shapes
            that differ, DoRA magnitudes, tensors that are no low-rank pair, ranks that differ under "linear", a ΔW too
            large to be formed), or values that do not fit `dtype`.
    """
    recipe = Recipe(method, rank, density, majority, normalize, seed, missing)
    if dtype not in _DTYPES:
        raise LorabenchError(f"dtype={dtype}: allowed are {', '.join(map(str, _DTYPES))}.")
    used = used_weights(len(adapters), weights, normalize)
    aligned = align(adapters)
    adapters = aligned.adapters
    for _, reason in hindrances(adapters, recipe, drop_dora, drop_unsupported):
        raise LorabenchError(reason)
    parts = [Parts(name, tuple(one.modules.get(name) for one in adapters), used) for name in module_names(adapters)]
    # One at a time where each needs several dense ΔW.
    found = map_in_lanes(lambda one: merged_module(one, recipe, dtype), parts, 1 if method in DENSE else None)
    modules = {one.name: module for one, (module, _) in zip(parts, found, strict=True) if module is not None}
    rows = [row for _, row in found]
    notes = (*aligned.notes, *notes_on(adapters, used, recipe, rows))
    report = MergeReport(method, recipe.options(), parents_of(adapters, weights, used), tuple(rows), notes)
    merged = Adapter(
        path=Path("merged"),
        schemes=adapters[0].schemes,
        modules=modules,
        metadata=agreed_metadata(adapters) | report.metadata(),
        config=agreed_config(adapters),
    )
    return merged, report
