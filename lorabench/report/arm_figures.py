"""Pictures of what is left when layers go: arms beside one another, the degradation curve, groups."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lorabench.pictures import BLUE, GREEN, ORANGE, tidy
from lorabench.report.arms import shown_arms, with_arm
from lorabench.report.controls import draw_controls
from lorabench.report.numbers import number, over
from lorabench.report.style import ARM_STYLES, draw_chance, ended, errors, legend_below, percents
from lorabench.results import Result

__all__ = ["degradation", "groups_figure", "with_without"]


def with_without(result: Result) -> Figure:
    """Test accuracy of every representation, a marker an arm; the best over all layers on top."""
    arms = shown_arms(result)
    names = list(dict.fromkeys(row.representation for row in result.summary))
    whole = {row.representation: number(row.test_accuracy.mean) for row in with_arm(result, arms[0].name)}
    names.sort(key=lambda name: np.nan_to_num(whole.get(name, np.nan), nan=-1))
    figure = Figure(figsize=(7.5, 1.9 + 0.11 * max(len(arms), 3) * len(names)), layout="constrained")
    axes = figure.subplots()
    for place in range(1, len(names), 2):
        axes.axhspan(place - 0.5, place + 0.5, color="0.96", zorder=0)
    draw_chance(axes, result, vertical=True)
    draw_controls(axes, result)
    dodge = np.linspace(0.32, -0.32, len(arms))
    seen: set[str] = set()
    for arm, shift in zip(arms, dodge, strict=True):
        rows = {row.representation: row for row in with_arm(result, arm.name) if row.test_accuracy.n}
        places = [place for place, name in enumerate(names) if name in rows]
        chosen = [rows[names[place]].test_accuracy for place in places]
        seen |= set(rows)
        colour, marker = ARM_STYLES[arm.kind]
        axes.errorbar(
            percents([value.mean for value in chosen]), np.array(places) + shift,
            xerr=np.nan_to_num(percents([value.std for value in chosen])),
            fmt=marker, color=colour, markersize=4.5, elinewidth=1, capsize=2, label=arm.title,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), [name if name in seen else f"{name} (failed)" for name in names])
    axes.set_ylim(-0.5, len(names) - 0.5)
    axes.set_xlim(left=-0.015 * axes.get_xlim()[1])  # a marker at 0 stays whole
    tidy(axes, "x")
    seeds = max((row.test_accuracy.n for row in result.summary if row.ablation == arms[0].name), default=0)
    axes.set_xlabel(f"test accuracy, % (mean ± std over {over(result, seeds)})", fontsize=9)
    title = f"{result.dataset['name']}: reading the {result.target} with and without layers"
    axes.set_title(ended(result, title), fontsize=10)
    legend_below(figure, [axes], columns=3)
    return figure


def degradation(result: Result) -> Figure:
    """Test accuracy as the best layers go one by one beside random ones, and as the best ones alone stand."""
    curve = result.ablation["curve"]
    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _band(left, curve.get("random") or [], GREEN, "^", ":", "random ones taken away: mean, lowest and highest draw")
    _band(left, curve.get("remove") or [], ORANGE, "s", "-", "best first taken away (95 % interval)")
    _band(right, curve.get("keep") or [], BLUE, "o", "-", "the best k alone (95 % interval)")
    for axes, label in ((left, "layers taken away"), (right, "layers that stand")):
        draw_chance(axes, result)
        axes.set_xlabel(label, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        tidy(axes, "both")
    left.set_ylabel("test accuracy, %", fontsize=9)
    title = f"{result.dataset['name']}: {curve['representation']} as layers go"
    figure.suptitle(ended(result, title), fontsize=10)
    legend_below(figure, [left, right], columns=2)
    return figure


def _band(axes: Axes, rows: Sequence[dict[str, Any]], colour: str, marker: str, line: str, label: str) -> None:
    if not rows:
        return
    rows = sorted(rows, key=lambda row: row["layers"])
    x, y = [row["layers"] for row in rows], percents([row["accuracy"] for row in rows])
    below, above = errors(y, [row.get("low") for row in rows], [row.get("high") for row in rows])
    axes.fill_between(x, y - below, y + above, color=colour, alpha=0.2, linewidth=0)
    size = 4 if len(rows) <= 40 else 2
    axes.plot(x, y, line, marker=marker, color=colour, markersize=size, linewidth=1.2, label=label)


def groups_figure(result: Result) -> Figure:
    """Each group alone and without it, the best alone on top; what is lost without it."""
    found = result.ablation["groups"]
    rows = list(reversed(found["rows"]))
    places = np.arange(len(rows))
    figure = Figure(figsize=(9.5, 2.2 + 0.34 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for side, kind, label, shift in (("alone", "none", "alone", 0.14), ("without", "top", "without it", -0.14)):
        chosen = [place for place in places if rows[place].get(side)]
        values = [rows[place][side] for place in chosen]
        means = percents([value["mean"] for value in values])
        colour, marker = ARM_STYLES[kind]
        axis_errors = errors(means, [value.get("low") for value in values], [value.get("high") for value in values])
        left.errorbar(
            means, np.array(chosen) + shift, xerr=axis_errors,
            fmt=marker, color=colour, markersize=4.5, elinewidth=1, capsize=2, label=label,
        )  # fmt: skip
    draw_chance(left, result, vertical=True)
    left.set_yticks(places, [f"{row['group']} ({row['layers']})" for row in rows])
    left.set_ylim(-0.6, len(rows) - 0.4)
    left.set_xlabel("test accuracy, % (95 % interval)", fontsize=9)
    _lost(right, rows)
    for axes in (left, right):
        tidy(axes, "x")
    title = f"{result.dataset['name']}: {found['representation']} by {found['by']} (number of layers)"
    figure.suptitle(ended(result, title), fontsize=10)
    legend_below(figure, [left, right])
    return figure


def _lost(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    places = [place for place, row in enumerate(rows) if not np.isnan(number(row.get("difference")))]
    chosen = [rows[place] for place in places]
    middle = percents([row["difference"] for row in chosen])
    axes.errorbar(
        middle, places, xerr=errors(middle, [row.get("low") for row in chosen], [row.get("high") for row in chosen]),
        fmt="D", color=GREEN, markersize=4.5, elinewidth=1, capsize=2, label="difference to all layers",
    )  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("what is left minus all layers, points (95 % interval)", fontsize=9)
