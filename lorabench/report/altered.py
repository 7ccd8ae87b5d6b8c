"""What is said of altered adapters: tables, sentences and the picture that `gauge` and `shift` share."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from lorabench.ablation.copies import Altered
from lorabench.findings import LEVEL
from lorabench.pictures import SERIES, tidy
from lorabench.report.numbers import difference, method, p_value, percent
from lorabench.report.style import errors, legend_below, percents
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["altered_figure", "altered_sheet", "loses", "read_from"]


def altered_sheet(rows: Sequence[Altered], title: str, what: str, family: str, caption: Sequence[str]) -> Sheet:
    """A row a representation and alteration, with all that is known of it.

    Args:
        rows: of the table.
        title: what it shows.
        what: the column of the alterations.
        family: over what Holm's p are corrected.
        caption: what is to be said first.
    """
    body = [
        (
            row.representation,
            row.alteration,
            percent(row.before),
            percent(row.accuracy),
            difference(row.difference, row.claimed),
            p_value(row.claimed.p),
            p_value(row.holm),
            percent(row.same),
        )
        for row in rows
    ]
    return Sheet(
        title=title,
        columns=("representation", what, "before", "after", "difference\n[95 %]", "p", "p, Holm", "same, %"),
        rows=body,
        caption=[
            *caption,
            "before, after: test accuracy in %; difference in points, paired by member and adapter",
            *read_from(rows, family),
            "same: share of the predictions that are equal",
        ],
        text=("representation", what),
        spare=("p", "before"),
    )


def read_from(rows: Sequence[Altered], family: str) -> list[str]:
    """Where intervals and p come from."""
    return [f"intervals and p are {method(rows[0])}; Holm: over the {family}"] if rows else []


def loses(row: Altered) -> bool:
    """Whether it is shown to lose something."""
    return row.shown_below


def altered_figure(result: Result, rows: Sequence[Altered], title: str) -> Figure:
    """What every alteration changes, in points, a colour a representation; full where Holm's p is below 0.05."""
    names, arms = (list(dict.fromkeys(getattr(row, key) for row in rows)) for key in ("representation", "alteration"))
    reach = 0.72  # of the room of a row that its points take
    figure = Figure(figsize=(8.5, 1.7 + len(arms) * max(0.26, 0.11 * len(names))), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(names):
        colour, marker = SERIES[number % len(SERIES)]
        own = [row for row in rows if row.representation == name and not math.isnan(row.difference)]
        x = percents([row.difference for row in own])
        shift = reach * ((number + 0.5) / len(names) - 0.5)
        y = np.array([arms.index(row.alteration) for row in own]) + shift
        ends = errors(x, [row.claimed.low for row in own], [row.claimed.high for row in own])
        axes.errorbar(x, y, xerr=ends, fmt="none", ecolor=colour, elinewidth=0.9, capsize=1.5, alpha=0.8)
        for told, fill in ((True, colour), (False, "white")):
            chosen = [i for i, row in enumerate(own) if (row.holm < LEVEL) == told]
            axes.plot(x[chosen], y[chosen], marker, color=colour, markerfacecolor=fill, markersize=4.5, zorder=3)
        axes.plot([], [], marker, color=colour, markersize=4.5, label=name)
    axes.axvline(0, color="black", linewidth=0.8)
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, -103), min(high, 103))  # an interval of two splits may go beyond all that can be lost
    axes.set_yticks(range(len(arms)), arms)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    for place in range(1, len(arms)):
        axes.axhline(place - 0.5, color="0.9", linewidth=0.6, zorder=0)
    axes.set_xlabel("change of test accuracy, points (95 % interval; filled: Holm's p below 0.05)", fontsize=9)
    tidy(axes, "x")
    figure.suptitle(f"{result.dataset['name']}: {title}", fontsize=10)
    legend_below(figure, [axes])
    return figure
