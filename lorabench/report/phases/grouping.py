"""Whole groups of layers, alone and taken away."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorabench.ablation.grouping import Group, GroupingFinding, Groups
from lorabench.findings import Measured
from lorabench.pictures import GREEN, tidy
from lorabench.report.numbers import difference, measured, p_value, percent
from lorabench.report.ranked import how_ranked, sheet_title, warning
from lorabench.report.style import ARM_STYLES, draw_chance, ended, errors, legend_below, percents
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["figures", "sheets"]


def sheets(result: Result, found: GroupingFinding) -> list[Sheet]:
    """The groups."""
    return [_table(result, found.groups)]


def figures(result: Result, found: GroupingFinding) -> dict[str, Callable[[], Figure]]:
    """The groups."""
    return {"groups": functools.partial(_groups_figure, result, found.groups)}


def _table(result: Result, found: Groups) -> Sheet:
    return Sheet(
        title=sheet_title(result, f"{found.representation} of {result.dataset['name']} by {found.by}"),
        columns=("group", "layers", "alone", "without it", "difference\n[95 %]", "p"),
        rows=[
            (
                row.group,
                str(row.layers),
                *("–" if side is None else measured(side) for side in (row.alone, row.without)),
                *((difference(row.lost.difference, row.lost), p_value(row.lost.p)) if row.lost else ("–", "–")),
            )
            for row in found.rows
        ],
        caption=[
            f"test accuracy, mean ± std over seeds [95 %], in % · chance {percent(result.chance)}",
            f"best first by {how_ranked(result)} accuracy alone",
            "difference: without it minus all layers, in points, paired",
            *warning(result),
        ],
        text=("group",),
        names=("group",),
        spare=("layers", "p", "alone"),
    )


def _groups_figure(result: Result, found: Groups) -> Figure:
    """Each group alone and without it, the best alone on top; what is lost without it."""
    rows = list(reversed(found.rows))
    figure = Figure(figsize=(9.5, 2.2 + 0.34 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _measured(left, [row.alone for row in rows], "none", "alone", 0.14)
    _measured(left, [row.without for row in rows], "top", "without it", -0.14)
    draw_chance(left, result, vertical=True)
    left.set_yticks(np.arange(len(rows)), [f"{row.group} ({row.layers})" for row in rows])
    left.set_ylim(-0.6, len(rows) - 0.4)
    left.set_xlabel("test accuracy, % (95 % interval)", fontsize=9)
    _lost(right, rows)
    for axes in (left, right):
        tidy(axes, "x")
    title = f"{result.dataset['name']}: {found.representation} by {found.by} (number of layers)"
    figure.suptitle(ended(result, title), fontsize=10)
    legend_below(figure, [left, right])
    return figure


def _measured(axes: Axes, values: Sequence[Measured | None], kind: str, label: str, shift: float) -> None:
    known = [(place, value) for place, value in enumerate(values) if value]
    means = percents([value.mean for _, value in known])
    colour, marker = ARM_STYLES[kind]
    axes.errorbar(
        means, np.array([place for place, _ in known]) + shift,
        xerr=errors(means, [value.low for _, value in known], [value.high for _, value in known]),
        fmt=marker, color=colour, markersize=4.5, elinewidth=1, capsize=2, label=label,
    )  # fmt: skip


def _lost(axes: Axes, rows: Sequence[Group]) -> None:
    known = [(place, row.lost) for place, row in enumerate(rows) if row.lost]
    middle = percents([lost.difference for _, lost in known])
    axes.errorbar(
        middle, [place for place, _ in known],
        xerr=errors(middle, [lost.low for _, lost in known], [lost.high for _, lost in known]),
        fmt="D", color=GREEN, markersize=4.5, elinewidth=1, capsize=2, label="difference to all layers",
    )  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("what is left minus all layers, points (95 % interval)", fontsize=9)
