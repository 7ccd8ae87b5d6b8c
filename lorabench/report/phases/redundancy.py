"""What is lost when one layer alone goes."""

import functools
from collections.abc import Callable

from matplotlib.figure import Figure

from lorabench.ablation.redundancy import RedundancyFinding
from lorabench.report.alone import alone_axes, beside_alone, scatter
from lorabench.report.numbers import difference, p_value, percent
from lorabench.report.ranked import BEST, sheet_title
from lorabench.report.style import legend_below
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["figures", "sheets"]


def sheets(result: Result, found: RedundancyFinding) -> list[Sheet]:
    """The losses."""
    return [_table(result, found)]


def figures(result: Result, found: RedundancyFinding) -> dict[str, Callable[[], Figure]]:
    """Losses against accuracy alone."""
    return {"redundancy": functools.partial(_figure, result, found)}


def _table(result: Result, found: RedundancyFinding) -> Sheet:
    """What is lost when one layer alone goes."""
    missed = found.redundancy
    rows = sorted(missed.rows, key=lambda row: -row.drop)
    return Sheet(
        title=sheet_title(result, f"What {missed.representation} of {result.dataset['name']} loses without one layer"),
        columns=("layer", "loss\n[95 %]", "p", "alone"),
        rows=[(row.layer, difference(row.drop, row), p_value(row.p), percent(row.accuracy)) for row in rows[:BEST]],
        caption=beside_alone(
            result, found, "loss: test accuracy of all layers minus that without the one", len(rows), missed.kendall_tau
        ),
        text=("layer",),
        names=("layer",),
        spare=("p", "alone"),
    )


def _figure(result: Result, found: RedundancyFinding) -> Figure:
    """What is lost without one layer against accuracy alone."""
    rows = found.redundancy.rows
    figure, axes = alone_axes(
        result, found.redundancy.representation, "what is lost without one layer", found.redundancy.kendall_tau
    )
    axes.axvline(0, color="black", linestyle=":", linewidth=1, label="nothing lost")
    drops = [row.drop for row in rows]
    scatter(axes, found, rows, drops, [row.low for row in rows], [row.high for row in rows])
    axes.set_xlabel("test accuracy of all layers minus that without the one, points (95 % interval)", fontsize=9)
    legend_below(figure, [axes], columns=3)
    return figure
