"""Which layers carry the answer, over the splits that ranked them."""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lorabench.ablation.compare import CompareFinding
from lorabench.ablation.inference import corrected_t
from lorabench.ablation.statistics import kendall_tau
from lorabench.findings import Ranked, RankedFinding, Stability
from lorabench.pages.parts import Picture
from lorabench.report.comparison import interval_of_claim, split_number, test_to_train
from lorabench.report.layer_figures import layer_importance
from lorabench.report.numbers import percent
from lorabench.report.ranked import on_test, ranked_on
from lorabench.results import Result
from lorabench.text import counted, to_json

__all__ = ["ranked_together", "ranking_pictures"]

_NAMED = 3


def ranking_pictures(results: Sequence[Result]) -> list[Picture]:
    """A figure a representation that ranked layers: mean accuracy of each layer alone over all splits."""
    return [_picture(result, found) for result, found in ranked_together(results) if found.ranking]


def _picture(result: Result, found: RankedFinding) -> Picture:
    best = ", ".join(f"{row.layer} {percent(row.accuracy)} %" for row in found.ranking[:_NAMED])
    over = counted(found.stability.seeds, found.stability.of.removesuffix("s"))
    return Picture(
        name=f"layers of {found.baseline}",
        draw=functools.partial(layer_importance, result, found),
        alt=f"{found.baseline}: {ranked_on(result)} accuracy of each layer alone along the network, over {over}. "
        f"The best: {best}.",
        columns=("rank", "layer", "accuracy", "low", "high"),
        rows=[(row.rank, row.layer, row.accuracy, row.low, row.high) for row in found.ranking],
    )


def ranked_together(results: Sequence[Result]) -> list[tuple[Result, RankedFinding]]:
    """One ranking for each representation that ranked, with a run that has it.

    What several runs of one split each found is one ranking by mean accuracy over these splits, with the interval of
    the corrected resampled t, and the mean Kendall's τ of their accuracies. A run over several splits is its own.
    """
    known: dict[tuple[object, ...], dict[int, tuple[Result, RankedFinding]]] = {}
    for result in results:
        found = result.ablation
        if isinstance(found, RankedFinding):
            layers = tuple(sorted(row.layer for row in found.ranking))
            several = result.split.get("splits", 1) > 1
            key = (*_ranked_by(result, found), layers, id(result) if several else 0)
            known.setdefault(key, {}).setdefault(split_number(result), (result, found))
    return [_merged([by_split[split] for split in sorted(by_split)]) for by_split in known.values()]


def _ranked_by(result: Result, found: RankedFinding) -> tuple[object, ...]:
    """What rankings that are put together have in common."""
    config = result.config
    options = config.get("representations", {}).get(found.baseline, config.get("ablation", {}).get("baseline"))
    return found.baseline, found.folds, on_test(result), to_json(config.get("classifier")), to_json(options)


def _merged(ranked: Sequence[tuple[Result, RankedFinding]]) -> tuple[Result, RankedFinding]:
    result, found = ranked[0]
    if len(ranked) == 1 or not found.ranking:
        return result, found
    rows = [{row.layer: row for row in one.ranking} for _, one in ranked]
    ratio = test_to_train(result)
    merged = []
    for layer in rows[0]:
        values = [row[layer].accuracy for row in rows]
        mean, low, high = float(np.mean(values)), math.nan, math.nan
        if not any(map(math.isnan, values)):
            low, high = interval_of_claim(corrected_t(np.array(values)[:, None], ratio))
        merged.append(replace(rows[0][layer], accuracy=mean, low=low, high=high, per_seed=values))
    merged.sort(key=lambda row: -np.nan_to_num(row.accuracy, nan=-1.0))
    ordered = [replace(row, rank=place, tied_to=place) for place, row in enumerate(merged, start=1)]
    if isinstance(found, CompareFinding):
        found = replace(found, top_k=0)  # every run has taken its own split's best away: none of these are marked
    return result, replace(found, ranking=ordered, stability=_stability(ordered))


def _stability(rows: Sequence[Ranked]) -> Stability:
    taus = kendall_tau(np.array([row.per_seed for row in rows]).T)
    known = [float(tau) for tau in taus[np.triu_indices(len(taus), 1)] if not math.isnan(tau)]
    return Stability(float(np.mean(known)) if known else None, min(known, default=None), len(taus), "splits")
