"""How soon adapters of the same leaf are found, by representation."""

import functools
from collections.abc import Callable

from matplotlib.figure import Figure

from lorabench.ablation.retrieval import RetrievalFinding, Retrieved
from lorabench.findings import Compared
from lorabench.report.between import between_sheet, verdicts_above
from lorabench.report.numbers import counts, difference, interval, method, p_value, percent
from lorabench.report.points import points_figure
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["figures", "sheets"]


def sheets(result: Result, found: RetrievalFinding) -> list[Sheet]:
    """The ranks, and the differences between representations."""
    between = [between_sheet(found.between, found.against, "the mean reciprocal rank")] if found.between else []
    return [_ranks(result, found), *between]


def figures(result: Result, found: RetrievalFinding) -> dict[str, Callable[[], Figure]]:
    """The mean reciprocal ranks."""
    ran = [row for row in found.rows if row.mrr is not None]
    draw = functools.partial(
        points_figure,
        [row.representation for row in ran],
        {"MRR": [row.mrr for row in ran]},
        found.chance.mrr,
        f"{result.dataset['name']}: adapters of the same leaf, among {found.gallery}",
        "mean reciprocal rank of the first of the same leaf",
    )
    return {"retrieval": draw} if ran else {}


def _ranks(result: Result, found: RetrievalFinding) -> Sheet:
    above = {row.representation: row for row in found.above}
    chance = ("chance", *(percent(one) for one in (found.chance.mrr, found.chance.hit_1, found.chance.hit_5)), "–", "–")
    return Sheet(
        title=f"Which adapter was trained on the same leaf: {result.dataset['name']}, leaves new to training",
        columns=("representation", "MRR\n[95 %]", "first\n[95 %]", "in 5\n[95 %]", "to chance\n[95 %]", "p, Holm"),
        rows=[*(_row(row, above.get(row.representation)) for row in found.rows), chance],
        caption=[
            f"queries: {counts(found.queries)} test adapters of a split",
            f"ranked by the cosine of standardised features: {found.gallery}, {counts(found.candidates)}",
            "MRR: mean of 1 / the place of the first of the same leaf; first, in 5: whether it is there; all in %",
            "chance: a random order, exactly; places of equal cosines are those of a random order",
            *([f"intervals and p are {method(found.above[0])}; Holm: over the representations"] if found.above else []),
            *verdicts_above([(row, "chance") for row in found.above]),
            *(f"{row.representation} failed: {row.error}" for row in found.rows if row.error),
        ],
        text=("representation",),
        spare=("p, Holm", "in 5\n[95 %]", "first\n[95 %]"),
    )


def _row(row: Retrieved, above: Compared | None) -> tuple[str, ...]:
    cells = ("–" if one is None else percent(one.mean) + interval(one) for one in (row.mrr, row.hit_1, row.hit_5))
    beside = ("–", "–") if above is None else (difference(above.difference, above.claimed), p_value(above.holm))
    return (row.representation, *cells, *beside)
