"""Accuracies of representations as points with intervals, beside chance."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from lorabench.findings import Measured
from lorabench.pictures import GREY, SERIES, tidy
from lorabench.report.style import errors, legend_below, percents

__all__ = ["points_figure"]


def points_figure(
    names: Sequence[str], series: Mapping[str, Sequence[Measured | None]], chance: float, title: str, what: str
) -> Figure:
    """A row a representation, a point a series.

    Args:
        names: of the representations.
        series: label -> a value a representation; None where it failed.
        chance: where the line is, from 0 to 1.
        title: of the figure.
        what: the axis' words.
    """
    figure = Figure(figsize=(7.5, 1.7 + 0.34 * len(names)), layout="constrained")
    axes = figure.subplots()
    for number, (label, values) in enumerate(series.items()):
        colour, marker = SERIES[number % len(SERIES)]
        there = [(row, one) for row, one in enumerate(values) if one is not None]
        x = percents([one.mean for _, one in there])
        y = np.array([row for row, _ in there]) + 0.24 * (number - (len(series) - 1) / 2)
        ends = errors(x, [one.low for _, one in there], [one.high for _, one in there])
        axes.errorbar(
            x, y, xerr=ends, fmt=marker, color=colour, markersize=5, elinewidth=0.9, capsize=2, label=label
        )  # fmt: skip
    axes.axvline(100 * chance, color=GREY, linestyle="--", linewidth=1.2, label="chance", zorder=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(f"{what}, % (95 % interval)", fontsize=9)
    tidy(axes, "x")
    figure.suptitle(title, fontsize=10)
    legend_below(figure, [axes])
    return figure
