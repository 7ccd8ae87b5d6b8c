"""Categories that are named by their texts alone: by representation, and by pair."""

import functools
from collections.abc import Callable

from matplotlib.figure import Figure

from lorabench.ablation.none import Between
from lorabench.ablation.zero_shot import CHANCE, NEAREST, Named, ZeroShotFinding
from lorabench.report.between import verdicts_above
from lorabench.report.numbers import counts, difference, interval, method, number, p_value, percent
from lorabench.report.points import points_figure
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["figures", "sheets"]


def sheets(result: Result, found: ZeroShotFinding) -> list[Sheet]:
    """The representations, and the pairs."""
    return [_named(result, found), *([_pairs(found)] if found.by_pair else [])]


def figures(result: Result, found: ZeroShotFinding) -> dict[str, Callable[[], Figure]]:
    """The accuracies by both ways."""
    ran = [row for row in found.rows if row.accuracy is not None]
    series = {"text head": [row.accuracy for row in ran], NEAREST: [row.nearest for row in ran]}
    draw = functools.partial(
        points_figure,
        [row.representation for row in ran],
        series,
        number(None if found.chance is None else found.chance.mean),
        f"{result.dataset['name']}: two categories that training has not seen, by their names",
        "accuracy between the two",
    )
    return {"zero_shot": draw} if ran else {}


def _named(result: Result, found: ZeroShotFinding) -> Sheet:
    beside = {(row.representation, row.against): row for row in found.between}
    columns = ("representation", "named\n[95 %]", f"{NEAREST}\n[95 %]")
    more = tuple(text for other in (CHANCE, NEAREST) for text in (f"to {other}\n[95 %]", f"p, Holm\n({other})"))
    return Sheet(
        title=f"Which of two categories of {result.dataset['name']} that training has not seen, by their names",
        columns=(*columns, *more),
        rows=[_row(row, [beside.get((row.representation, one)) for one in (CHANCE, NEAREST)]) for row in found.rows],
        caption=[
            f"accuracy in %, of {counts(found.adapters)} test adapters of a split; texts by {found.model}",
            "named: ridge from features to texts of seen leaves; the name that is nearer to what it says",
            f"{NEAREST}: what the classifier says, and the name nearest to that one's",
            *([f"{CHANCE}: the more frequent of the two, {percent(found.chance.mean)}"] if found.chance else []),
            *([f"intervals and p are {method(found.between[0])}; Holm: over the table"] if found.between else []),
            *verdicts_above([(row, row.against) for row in found.between]),
            *(f"{row.representation} failed: {row.error}" for row in found.rows if row.error),
        ],
        text=("representation",),
        spare=tuple(reversed((*more[1::2], columns[2], more[2]))),
    )  # fmt: skip


def _row(row: Named, beside: list[Between | None]) -> tuple[str, ...]:
    own = ("–" if one is None else percent(one.mean) + interval(one) for one in (row.accuracy, row.nearest))
    cells = [
        ("–", "–") if one is None else (difference(one.difference, one.claimed), p_value(one.holm)) for one in beside
    ]
    return (row.representation, *own, *(text for pair in cells for text in pair))


def _pairs(found: ZeroShotFinding) -> Sheet:
    names = list(dict.fromkeys(row.representation for row in found.by_pair))
    cells = {(row.first, row.second, row.representation): row for row in found.by_pair}
    pairs = list(dict.fromkeys((row.first, row.second) for row in found.by_pair))
    return Sheet(
        title="Pair by pair",
        columns=("held out", *names, CHANCE),
        rows=[
            (
                " or ".join(pair),
                *(f"{percent(cells[*pair, name].accuracy)} ({percent(cells[*pair, name].nearest)})" for name in names),
                percent(cells[*pair, names[0]].chance),
            )
            for pair in pairs
        ],
        caption=[f"named by the text head (by the {NEAREST}), in %, mean over splits"],
        text=("held out",),
        spare=tuple(reversed(names[1:])),
    )
