"""Accuracy by the number of training adapters, and where two representations part."""

import functools
from collections.abc import Callable

from matplotlib.figure import Figure

from lorabench.ablation.learning_curve import LearningCurveFinding, Parting
from lorabench.pictures import SERIES, tidy
from lorabench.report.numbers import difference, measured, method, p_value
from lorabench.report.style import draw_chance, errors, legend_below, percents
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["figures", "sheets"]


def sheets(result: Result, found: LearningCurveFinding) -> list[Sheet]:
    """The curves, and the differences of each pair."""
    return [_curves(result, found), *([_leads(found)] if found.leads else [])]


def figures(result: Result, found: LearningCurveFinding) -> dict[str, Callable[[], Figure]]:
    """The curves."""
    return {"learning_curve": functools.partial(_figure, result, found)}


def _curves(result: Result, found: LearningCurveFinding) -> Sheet:
    names = list(dict.fromkeys(row.representation for row in found.curve))
    cells = {(row.representation, row.size): row for row in found.curve}
    body = []
    for size in found.sizes:
        own = [cells[name, size] for name in names]
        body.append((str(size), *(measured(row.accuracy) if row.accuracy else "failed" for row in own)))
    failed = [f"{row.representation} failed with {row.size}: {row.error}" for row in found.curve if row.error]
    return Sheet(
        title=f"What {result.dataset['name']} says by the number of training adapters",
        columns=("adapters", *names),
        rows=body,
        caption=[
            f"test accuracy, mean ± std over members [95 %], in % · chance {100 * result.chance:.1f}",
            "nested subsets of the training adapters, a draw a split; validation and test adapters are the same",
            *(_told(pair, found.sizes[-1]) for pair in found.partings),
            *failed,
        ],
        spare=tuple(reversed(names[1:])),
    )


def _told(pair: Parting, most: int) -> str:
    if pair.size is None:
        return f"verdict: {pair.representation} and {pair.against} are not told apart with {most} adapters"
    behind = pair.against if pair.ahead == pair.representation else pair.representation
    return f"verdict: from {pair.size} adapters on {pair.ahead} is ahead of {behind}"


def _leads(found: LearningCurveFinding) -> Sheet:
    return Sheet(
        title="Differences by the number of training adapters, in points, paired",
        columns=("representation", "to", "adapters", "difference\n[95 %]", "p", "p, Holm"),
        rows=[
            (
                row.representation,
                row.against,
                str(row.size),
                difference(row.difference, row.claimed),
                p_value(row.claimed.p),
                p_value(row.holm),
            )
            for row in found.leads
        ],
        caption=[f"intervals and p are {method(found.leads[0])}; Holm: over the sizes of a pair"],
        text=("representation", "to"),
        spare=("p",),
    )


def _figure(result: Result, found: LearningCurveFinding) -> Figure:
    """Test accuracy against the number of training adapters, a line a representation."""
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row.representation for row in found.curve))
    for number, name in enumerate(names):
        colour, marker = SERIES[number % len(SERIES)]
        own = [(row.size, row.accuracy) for row in found.curve if row.representation == name and row.accuracy]
        x, y = [size for size, _ in own], percents([accuracy.mean for _, accuracy in own])
        ends = errors(y, [accuracy.low for _, accuracy in own], [accuracy.high for _, accuracy in own])
        axes.errorbar(
            [size * 1.015 ** (number - (len(names) - 1) / 2) for size in x], y, yerr=ends, fmt=f"-{marker}",
            color=colour, markersize=4.5, linewidth=1.2, elinewidth=0.9, capsize=2, label=name,
        )  # fmt: skip
    draw_chance(axes, result)
    axes.set_xscale("log", base=2)
    axes.set_xticks(found.sizes, [str(size) for size in found.sizes])
    axes.minorticks_off()
    axes.set_xlabel("training adapters of a split (logarithmic)", fontsize=9)
    axes.set_ylabel("test accuracy, % (95 % interval)", fontsize=9)
    tidy(axes, "both")
    figure.suptitle(f"{result.dataset['name']}: accuracy by the number of training adapters", fontsize=10)
    legend_below(figure, [axes])
    return figure
