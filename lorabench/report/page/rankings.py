"""Which layers carry the answer, over the splits that ranked them."""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lorabench.ablation.inference import corrected_t
from lorabench.findings import Ranked, RankedFinding, Stability
from lorabench.report.layer_figures import layer_importance
from lorabench.report.numbers import percent
from lorabench.report.page.parts import Picture
from lorabench.report.ranked import on_test, ranked_on
from lorabench.results import Result
from lorabench.text import counted

__all__ = ["ranked_together", "ranking_pictures"]

_NAMED = 3


def ranking_pictures(results: Sequence[Result]) -> list[Picture]:
    """A figure a representation that ranked layers: mean accuracy of each layer alone over all splits."""
    return [_picture(*one) for one in ranked_together(results)]


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
            key = (found.baseline, found.folds, on_test(result), layers, id(result) if several else 0)
            known.setdefault(key, {}).setdefault(int(result.config["seed"]), (result, found))
    return [_merged([by_seed[seed] for seed in sorted(by_seed)]) for by_seed in known.values()]


def _merged(ranked: Sequence[tuple[Result, RankedFinding]]) -> tuple[Result, RankedFinding]:
    result, found = ranked[0]
    if len(ranked) == 1:
        return result, found
    rows = [{row.layer: row for row in one.ranking} for _, one in ranked]
    ratio = result.split["test"] / result.split["train"]
    merged = []
    for layer in rows[0]:
        values = [row[layer].accuracy for row in rows]
        mean, low, high = float(np.mean(values)), math.nan, math.nan
        if not any(map(math.isnan, values)):
            low, high = corrected_t(np.array(values)[:, None], ratio).interval()
        merged.append(replace(rows[0][layer], accuracy=mean, low=low, high=high, per_seed=values))
    merged.sort(key=lambda row: -np.nan_to_num(row.accuracy, nan=-1.0))
    ordered = [replace(row, rank=place, tied_to=place) for place, row in enumerate(merged, start=1)]
    return result, replace(found, ranking=ordered, stability=_stability(ordered))


def _stability(rows: Sequence[Ranked]) -> Stability:
    from scipy.stats import kendalltau

    splits = len(rows[0].per_seed)
    by_split = np.array([row.per_seed for row in rows]).T
    taus = [float(kendalltau(by_split[a], by_split[b]).statistic) for a, b in itertools.combinations(range(splits), 2)]
    taus = [tau for tau in taus if not math.isnan(tau)]
    return Stability(float(np.mean(taus)) if taus else None, min(taus, default=None), splits, "splits")
