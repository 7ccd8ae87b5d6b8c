"""The degradation curve: layers go one by one, best first, or only the best stand."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lorabench.ablation.progressive import Curve, Drawn, ProgressiveFinding, Step
from lorabench.pictures import BLUE, GREEN, ORANGE, tidy
from lorabench.report.numbers import interval, percent, spread
from lorabench.report.ranked import sheet_title, warning
from lorabench.report.style import draw_chance, ended, errors, legend_below, percents
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["figures", "sheets"]

_STEPS = 24


def sheets(result: Result, found: ProgressiveFinding) -> list[Sheet]:
    """The curve."""
    return [_table(result, found.curve)]


def figures(result: Result, found: ProgressiveFinding) -> dict[str, Callable[[], Figure]]:
    """The curve."""
    return {"degradation": functools.partial(_degradation, result, found.curve)}


def _table(result: Result, curve: Curve) -> Sheet:
    """Layers removed one by one, and kept one by one."""
    remove, keep = ({step.layers: step for step in side} for side in (curve.remove, curve.keep))
    random = {draw.layers: draw for draw in curve.random}
    units = {count: step.unit for count, step in [*keep.items(), *remove.items()] if step.unit}
    return Sheet(
        title=sheet_title(result, f"{curve.representation} of {result.dataset['name']} as layers go, best first"),
        columns=("k", "layer of rank k", "without the k best", "the k best alone", "without k random"),
        rows=[
            (
                str(k),
                units.get(k, "–"),
                *(_step(side.get(k)) for side in (remove, keep)),
                percent(random[k].accuracy) + interval(random[k]) if k in random else "–",
            )
            for k in _chosen(sorted({*remove, *keep}), sorted(random))
        ],
        caption=[
            f"test accuracy, mean ± std over seeds [95 %], in % · chance {percent(result.chance)}",
            "random: mean [lowest, highest draw]",
            *(["steps evenly spaced; results.json and the picture have all"] if len({*remove, *keep}) > _STEPS else []),
            *warning(result),
        ],
        text=("layer of rank k",),
        names=("layer of rank k",),
        spare=("layer of rank k", "the k best alone", "without k random"),
    )


def _step(step: Step | None) -> str:
    return "–" if step is None else percent(step.accuracy) + spread(step.std) + interval(step)


def _chosen(counts: Sequence[int], drawn: Sequence[int]) -> list[int]:
    """The first and the last count, those with random draws, and others evenly between, `_STEPS` at most."""
    found = {counts[0], counts[-1], *_evenly([count for count in drawn if count in set(counts)], _STEPS - 2)}
    for count in _evenly(counts, _STEPS):
        if len(found) < _STEPS:
            found.add(count)
    return sorted(found)


def _evenly(values: Sequence[int], most: int) -> list[int]:
    if len(values) <= most:
        return list(values)
    return [values[round(i)] for i in np.linspace(0, len(values) - 1, most)]


def _degradation(result: Result, curve: Curve) -> Figure:
    """Test accuracy as the best layers go one by one beside random ones, and as the best ones alone stand."""
    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _band(left, curve.random, GREEN, "^", ":", "random ones taken away: mean, lowest and highest draw")
    _band(left, curve.remove, ORANGE, "s", "-", "best first taken away (95 % interval)")
    _band(right, curve.keep, BLUE, "o", "-", "the best k alone (95 % interval)")
    for axes, label in ((left, "layers taken away"), (right, "layers that stand")):
        draw_chance(axes, result)
        axes.set_xlabel(label, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        tidy(axes, "both")
    left.set_ylabel("test accuracy, %", fontsize=9)
    title = f"{result.dataset['name']}: {curve.representation} as layers go"
    figure.suptitle(ended(result, title), fontsize=10)
    legend_below(figure, [left, right], columns=2)
    return figure


def _band(axes: Axes, rows: Sequence[Step] | Sequence[Drawn], colour: str, marker: str, line: str, label: str) -> None:
    if not rows:
        return
    x, y = [row.layers for row in rows], percents([row.accuracy for row in rows])
    below, above = errors(y, [row.low for row in rows], [row.high for row in rows])
    axes.fill_between(x, y - below, y + above, color=colour, alpha=0.2, linewidth=0)
    size = 4 if len(rows) <= 40 else 2
    axes.plot(x, y, line, marker=marker, color=colour, markersize=size, linewidth=1.2, label=label)
