"""How soon adapters of the same leaf are found, by representation."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure

from lorabench.ablation.retrieval import RetrievalFinding, Retrieved
from lorabench.findings import LEVEL, Compared, Measured
from lorabench.pictures import BLUE, GREY, tidy
from lorabench.report.between import between_sheet
from lorabench.report.numbers import difference, interval, method, p_value, percent
from lorabench.report.style import errors, legend_below, percents
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["figures", "sheets"]


def sheets(result: Result, found: RetrievalFinding) -> list[Sheet]:
    """The ranks, and the differences between representations."""
    between = [between_sheet(found.between, found.against, "the mean reciprocal rank")] if found.between else []
    return [_ranks(result, found), *between]


def figures(result: Result, found: RetrievalFinding) -> dict[str, Callable[[], Figure]]:
    """The mean reciprocal ranks."""
    return {"retrieval": functools.partial(_figure, result, found)} if _ran(found) else {}


def _ran(found: RetrievalFinding) -> list[tuple[str, Measured]]:
    return [(row.representation, row.mrr) for row in found.rows if row.mrr is not None]


def _ranks(result: Result, found: RetrievalFinding) -> Sheet:
    above = {row.representation: row for row in found.above}
    chance = ("chance", *(percent(one) for one in (found.chance.mrr, found.chance.hit_1, found.chance.hit_5)), "–", "–")
    return Sheet(
        title=f"Which adapter of {result.dataset['name']} was trained on the same leaf? Of unseen leaves",
        columns=("representation", "MRR\n[95 %]", "first\n[95 %]", "in 5\n[95 %]", "to chance\n[95 %]", "p, Holm"),
        rows=[*(_row(row, above.get(row.representation)) for row in found.rows), chance],
        caption=[
            f"queries: {_counts(found.queries)} test adapters of a split",
            f"ranked by the cosine of standardised features: {found.gallery}, {_counts(found.candidates)}",
            "MRR: mean of 1 / the place of the first of the same leaf; first, in 5: whether it is there; all in %",
            "chance: a random order, exactly; places of equal cosines are those of a random order",
            *([f"intervals and p are {method(found.above[0])}; Holm: over the representations"] if found.above else []),
            *(_told(row) for row in found.above),
            *(f"{row.representation} failed: {row.error}" for row in found.rows if row.error),
        ],
        text=("representation",),
        spare=("p, Holm", "in 5\n[95 %]", "first\n[95 %]"),
    )


def _row(row: Retrieved, above: Compared | None) -> tuple[str, ...]:
    cells = ("–" if one is None else percent(one.mean) + interval(one) for one in (row.mrr, row.hit_1, row.hit_5))
    beside = ("–", "–") if above is None else (difference(above.difference, above.claimed), p_value(above.holm))
    return (row.representation, *cells, *beside)


def _counts(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _told(row: Compared) -> str:
    above = row.claimed.low > 0 and row.holm < LEVEL
    return f"verdict: {row.representation} is {'' if above else 'not shown to be '}above chance"


def _figure(result: Result, found: RetrievalFinding) -> Figure:
    """A point a representation, and the line of a random order."""
    ran = _ran(found)
    figure = Figure(figsize=(7.5, 1.6 + 0.32 * len(ran)), layout="constrained")
    axes = figure.subplots()
    x = percents([one.mean for _, one in ran])
    ends = errors(x, [one.low for _, one in ran], [one.high for _, one in ran])
    axes.errorbar(x, np.arange(len(ran)), xerr=ends, fmt="o", color=BLUE, markersize=5, elinewidth=0.9, capsize=2)
    axes.axvline(100 * found.chance.mrr, color=GREY, linestyle="--", linewidth=1.2, label="chance", zorder=1)
    axes.set_yticks(range(len(ran)), [name for name, _ in ran], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("mean reciprocal rank of the first of the same leaf, % (95 % interval)", fontsize=9)
    tidy(axes, "x")
    figure.suptitle(f"{result.dataset['name']}: adapters of the same leaf, among {found.gallery}", fontsize=10)
    legend_below(figure, [axes])
    return figure
