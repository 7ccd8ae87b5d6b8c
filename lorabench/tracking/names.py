"""The names under which a run's numbers are logged: the same in every run of a sweep (docs/tracking.md)."""

import math
from collections.abc import Collection, Iterator

from lorabench.ablation.compare import CompareFinding
from lorabench.findings import RankedFinding
from lorabench.jobs import peak_memory_mb
from lorabench.results import METRICS, NUMBER_METRICS, Result, Summary

__all__ = ["prefix", "summary_of"]

_ARMS = {"top": "without_top/", "random": "without_random/", "worst": "without_worst/"}


def prefix(representation: str, chosen: Collection[str]) -> str:
    """What stands before the names of a representation's numbers: nothing where it is the only one of its run.

    >>> prefix("stats", ["stats"]), prefix("stats", ["stats", "flat"])
    ('', 'stats/')
    """
    return "" if list(chosen) == [representation] else f"{representation}/"


def summary_of(result: Result) -> dict[str, float]:
    """A run's final numbers by name; those that are not defined (NaN) are left out."""
    chosen = result.config["representations"]
    found: dict[str, float] = {
        "chance": result.chance,
        "seconds": sum(result.seconds.values()),
        "peak_memory_mb": peak_memory_mb(),
        "failed_members": sum(run.error is not None for run in result.runs),
    }
    if isinstance(result.ablation, RankedFinding) and result.ablation.stability.kendall_tau is not None:
        found["ranking_stability"] = result.ablation.stability.kendall_tau
    for row in result.summary:
        before = prefix(row.representation, chosen)
        for arm in _arms(result, row):
            found |= {f"{before}{arm}{name}": value for name, value in _numbers(row)}
    for name in chosen:
        before = prefix(name, chosen)
        everything, left = (f"{before}{arm}test_accuracy" for arm in ("", "without_top/"))
        if everything in found and left in found:
            found[f"{before}drop"] = found[everything] - found[left]
    return {name: float(value) for name, value in found.items() if not math.isnan(value)}


def _numbers(row: Summary) -> Iterator[tuple[str, float]]:
    for metric in (*METRICS, *NUMBER_METRICS):
        statistic = getattr(row, metric)
        if statistic is not None:
            yield metric, statistic.mean
            yield f"{metric}_std", statistic.std
    yield "members", row.test_accuracy.n
    yield "features", row.features


def _arms(result: Result, row: Summary) -> list[str]:
    """What stands for a row's arm in names; "without_top/" whatever k is, so that jobs of a sweep can be compared."""
    if row.ablation == "none":
        return ["", "without_top/"] if result.config["top_k"] == 0 else [""]
    taken = result.ablation.arms if isinstance(result.ablation, CompareFinding) else []
    kinds = {arm.name: arm.kind for arm in taken}
    return [_ARMS.get(kinds.get(row.ablation, ""), f"{row.ablation}/")]
