"""Figures of many runs: what is told apart, what it costs, and what is left without the best layers."""

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from lorabench.findings import LEVEL
from lorabench.pages.parts import Picture
from lorabench.pages.svg import tip
from lorabench.pictures import BLACK, GREY, SERIES, drawable, tidy
from lorabench.report.comparison import Cell
from lorabench.report.numbers import percent, spread
from lorabench.report.standings import Standing, told_apart
from lorabench.report.style import errors, legend_below, percents
from lorabench.report.sweeps import column_title
from lorabench.text import counted

__all__ = ["cost", "degradation", "differences", "groups", "with_without"]

Rows = Sequence[Standing]


def groups(cells: Sequence[Cell]) -> list[tuple[int, int]]:
    """The longest runs of neighbours, best first, of which no two are told apart: first and last place of each.

    Args:
        cells: of one column, in the order of their means.
    """
    p = told_apart(cells)
    found: list[tuple[int, int]] = []
    for first in range(len(cells)):
        last = first
        while last + 1 < len(cells) and not any(p[i, last + 1] < LEVEL for i in range(first, last + 1)):
            last += 1
        if last > first and not (found and found[-1][1] >= last):
            found.append((first, last))
    return found


def differences(rows: Rows) -> Picture:
    """A column from its best down, with intervals, and a bar beside those that are not told apart."""
    known = sorted((row for row in rows if row.cell.accuracy), key=lambda row: -row.cell.mean)
    joined = groups([row.cell for row in known])
    title, best, last = column_title(known[0].cell.top_k), known[0], known[-1]
    said = "; ".join(f"{known[a].label} to {known[b].label}" for a, b in joined) or "none"
    member = [" ".join(str(g) for g, (a, b) in enumerate(joined) if a <= i <= b) for i in range(len(known))]
    return Picture(
        name=f"differences {title}",
        draw=functools.partial(_differences, known, joined),
        alt=f"{title}: test accuracy with 95 % intervals, best first, from {best.label} ({percent(best.cell.mean)} %) "
        f"to {last.label} ({percent(last.cell.mean)} %). Not told apart: {said}.",
        columns=("representation", "test_accuracy", "low", "high", "groups"),
        rows=[(row.label, row.cell.mean, *row.cell.interval(), own) for row, own in zip(known, member, strict=True)],
    )


def _differences(rows: Rows, joined: Sequence[tuple[int, int]]) -> Figure:
    figure = Figure(figsize=(7.5, 1.1 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots()
    _chance(axes, rows)
    for place, row in enumerate(rows):
        _point(axes, row, place, BLACK, "o")
    right = axes.get_xlim()[1]
    step = 0.018 * (right - axes.get_xlim()[0])
    for number, (first, last) in enumerate(joined, start=1):
        (bar,) = axes.plot([right + number * step] * 2, [first - 0.25, last + 0.25], color=SERIES[0][0], linewidth=3)
        tip(bar, f"not told apart: {', '.join(row.label for row in rows[first : last + 1])}")
    _names(axes, [row.label for row in rows])
    axes.set_xlabel("test accuracy, % [95 %]; a bar joins what is not told apart")
    return figure


def _point(axes: Axes, row: Standing, place: float | int, colour: str, marker: str, label: str = "") -> None:
    """A cell's mean with its interval, or its deviation where it has no interval."""
    cell = row.cell
    low, high = cell.interval()
    if math.isnan(low) and not math.isnan(cell.std):
        low, high = cell.mean - cell.std, cell.mean + cell.std
    middle = percents([cell.mean])
    drawn = axes.errorbar(
        middle, [place], xerr=errors(middle, [low], [high]),
        fmt=marker, color=colour, markersize=5, elinewidth=1, capsize=2, label=label,
    )  # fmt: skip
    tip(drawn.lines[0], f"{row.label}, {column_title(cell.top_k)}: {_said(cell)}")


def _said(cell: Cell) -> str:
    return f"{percent(cell.mean)}{spread(cell.std)} % ({counted(len(cell.accuracy), 'member')})"


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [drawable(name) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    tidy(axes, "x")


def _chance(axes: Axes, rows: Rows, vertical: bool = True) -> None:
    draw = axes.axvline if vertical else axes.axhline
    draw(100 * rows[0].cell.chance, color=GREY, linestyle="--", linewidth=1.2, label="chance", zorder=1)


def cost(rows: Rows) -> Picture | None:
    """Accuracy against seconds and against the number of features; None where no cell has a member that ended well."""
    known = [row for row in rows if row.cell.accuracy]
    if not known:
        return None
    table = [(row.label, row.cell.mean, row.cell.features, row.cell.seconds) for row in known]
    return Picture(
        name="cost",
        draw=functools.partial(_cost, known),
        alt="Test accuracy against seconds and against the number of features: "
        + "; ".join(f"{row.label} {percent(row.cell.mean)} %, {row.cell.features} features" for row in known),
        columns=("representation", "test_accuracy", "features", "seconds"),
        rows=table,
    )  # fmt: skip


def _cost(rows: Rows) -> Figure:
    seconds = [row.cell.seconds for row in rows]
    known = {"features": [float(row.cell.features) for row in rows]}
    if any(value > 0 for value in seconds):
        known = {"seconds: training of a member": seconds, **known}
    figure = Figure(figsize=(4.5 * len(known), 3.6), layout="constrained")
    panels = list(figure.subplots(1, len(known), sharey=True, squeeze=False).ravel())
    for axes, (label, x) in zip(panels, known.items(), strict=True):
        _chance(axes, rows, vertical=False)
        for number, (row, at) in enumerate(zip(rows, x, strict=True)):
            if at > 0:
                colour, marker = SERIES[number % len(SERIES)]
                (drawn,) = axes.plot([at], percents([row.cell.mean]), marker, color=colour, label=drawable(row.label))
                tip(drawn, f"{row.label}: {_said(row.cell)}, {at:.4g} {label.split(':')[0]}")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(label)
        tidy(axes, "both")
    panels[0].set_ylabel("test accuracy, %")
    legend_below(figure, panels, columns=4)
    return figure


def with_without(rows: Rows) -> Picture:
    """Every representation over all layers and without the best: a bar each."""
    table = [(row.label, row.cell.top_k, row.cell.mean, row.cell.std, *row.cell.interval()) for row in rows]
    return Picture(
        name="with and without",
        draw=functools.partial(_with_without, rows),
        alt="Test accuracy with and without the best layers: "
        + "; ".join(f"{row.label} {column_title(row.cell.top_k)} {percent(row.cell.mean)} %" for row in rows),
        columns=("representation", "top_k", "test_accuracy", "std", "low", "high"),
        rows=table,
    )


def _with_without(rows: Rows) -> Figure:
    taken = sorted({row.cell.top_k for row in rows})
    names = _by_mean(rows)
    figure = Figure(figsize=(7.5, 1.3 + (0.12 + 0.13 * len(taken)) * len(names)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(taken)
    for number, k in enumerate(taken):
        chosen = {row.label: row for row in rows if row.cell.top_k == k and row.cell.accuracy}
        places = [place for place, name in enumerate(names) if name in chosen]
        at = np.array(places) + height * (number - (len(taken) - 1) / 2)
        cells = [chosen[names[place]].cell for place in places]
        bars = axes.barh(
            at, percents([cell.mean for cell in cells]), height=0.9 * height,
            xerr=np.nan_to_num(percents([cell.std for cell in cells])), color=SERIES[number % len(SERIES)][0],
            label=column_title(k), error_kw={"elinewidth": 0.8, "ecolor": BLACK},
        )  # fmt: skip
        for bar, place, cell in zip(bars, places, cells, strict=True):
            tip(bar, f"{names[place]}, {column_title(k)}: {_said(cell)}")
    _chance(axes, rows)
    _names(axes, names)
    axes.set_xlabel("test accuracy, % (± standard deviation over splits and members)")
    legend_below(figure, [axes], columns=3)
    return figure


def _by_mean(rows: Rows) -> list[str]:
    """Labels, the best over the fewest layers taken away first."""
    least = min(row.cell.top_k for row in rows)
    of_least: Mapping[str, float] = {row.label: row.cell.mean for row in rows if row.cell.top_k == least}
    return sorted(dict.fromkeys(row.label for row in rows), key=lambda name: -np.nan_to_num(of_least.get(name, -1.0)))


def degradation(rows: Rows) -> Picture:
    """Accuracy by how many of the best layers are gone, a line a representation."""
    table = [(row.label, row.cell.top_k, row.cell.mean, *row.cell.interval()) for row in rows]
    return Picture(
        name="degradation",
        draw=functools.partial(_degradation, rows),
        alt="Test accuracy by the number of layers taken away, best first: "
        + "; ".join(f"{row.label} k={row.cell.top_k} {percent(row.cell.mean)} %" for row in rows),
        columns=("representation", "top_k", "test_accuracy", "low", "high"),
        rows=table,
    )


def _degradation(rows: Rows) -> Figure:
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    _chance(axes, rows, vertical=False)
    whole = {row.cell.whole: row for row in rows if row.cell.top_k == 0}
    for number, name in enumerate(_by_mean([row for row in rows if row.cell.top_k])):
        taken = [row for row in rows if row.label == name and row.cell.top_k and row.cell.accuracy]
        begins = [whole[row.cell.whole] for row in taken[:1] if row.cell.whole in whole]
        own = begins + sorted(taken, key=lambda row: row.cell.top_k)
        colour, marker = SERIES[number % len(SERIES)]
        line = "--" if number >= len(SERIES) else "-"
        x, y = [row.cell.top_k for row in own], percents([row.cell.mean for row in own])
        axes.plot(x, y, line, marker=marker, color=colour, linewidth=1.2, markersize=4, label=drawable(name))
        for row, at, value in zip(own, x, y, strict=True):
            (drawn,) = axes.plot([at], [value], marker, color=colour, markersize=4)
            tip(drawn, f"{name}, {column_title(at)}: {_said(row.cell)}")
    axes.set_xticks(sorted({row.cell.top_k for row in rows}))
    axes.set_xlabel("layers taken away, best first")
    axes.set_ylabel("test accuracy, %")
    tidy(axes, "both")
    legend_below(figure, [axes], columns=4)
    return figure
