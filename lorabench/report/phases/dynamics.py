"""When in training the category becomes legible: accuracy by the number of steps, by representation and by layer."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorabench.ablation.dynamics import Course, DynamicsFinding
from lorabench.pictures import BLACK, SERIES, tidy
from lorabench.report.labels import LINE, MOST_LINES, layer_labels
from lorabench.report.numbers import interval, percent
from lorabench.report.style import draw_chance, errors, legend_below, percents
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["figures", "sheets"]

_MOST_LAYERS = 20


def sheets(result: Result, found: DynamicsFinding) -> list[Sheet]:
    """The representations, and the layers that are legible first."""
    shown = sorted(found.layers, key=functools.partial(_order, found))[:_MOST_LAYERS]
    more = len(found.layers) - len(shown)
    return [
        _table(result, found, found.representations, "representation", "with all layers", []),
        _table(
            result, found, shown, "layer", f"{found.single} of one layer each",
            [f"the first {len(shown)}; {more} more are in results.json"] if more else [],
        ),
    ]  # fmt: skip


def figures(result: Result, found: DynamicsFinding) -> dict[str, Callable[[], Figure]]:
    """The courses of the representations, and the layers by step."""
    return {"dynamics": functools.partial(_figure, result, found)}


def _order(found: DynamicsFinding, course: Course) -> tuple[int, float]:
    """First those that are legible first; of the same step, the best finished ones."""
    last = course.accuracy[-1]
    return course.legible or found.steps[-1] + 1, 0.0 if last is None else -last.mean


def _table(
    result: Result, found: DynamicsFinding, courses: Sequence[Course], what: str, how: str, more: list[str]
) -> Sheet:
    return Sheet(
        title=f"When in training {result.dataset['name']} tells the {result.target}, {how}",
        columns=(what, *(f"step {step}" for step in found.steps), "legible from"),
        rows=[
            (
                course.name,
                *("–" if one is None else percent(one.mean) + interval(one) for one in course.accuracy),
                "–" if course.legible is None else str(course.legible),
            )
            for course in courses
        ],
        caption=[
            f"test accuracy [95 %], in %; the last step: the finished adapters · chance {percent(result.chance)}",
            "legible from: from this step on above naming the most frequent training class, Holm's p below 0.05",
            *more,
            *(f"{course.name} failed: {course.error}" for course in courses if course.error),
        ],
        text=(what,),
        names=(what,) if what == "layer" else (),
        spare=tuple(f"step {step}" for step in found.steps[1:-1]),
    )


def _figure(result: Result, found: DynamicsFinding) -> Figure:
    """Accuracy by step of every representation, beside that of each layer alone along the depth."""
    labels = layer_labels([course.name for course in found.layers])
    height = max(LINE * min(len(labels), MOST_LINES), 3.4) + 1.3
    width = 0.075 * max(map(len, labels)) + max(0.5 * len(found.steps), 2.4)
    figure = Figure(figsize=(5.2 + width, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(4.2, width))
    for (colour, marker), course in zip(_styles(len(found.representations)), found.representations, strict=True):
        _draw_course(left, found.steps, course, colour, marker)
    draw_chance(left, result)
    left.set_xscale("log", base=2)
    left.set_xticks(found.steps, list(map(str, found.steps)))
    left.set_xlabel("steps of training (the last: finished adapters)", fontsize=9)
    left.set_ylabel("test accuracy, % (95 % interval)", fontsize=9)
    tidy(left, "both")
    _draw_layers(figure, right, found, labels)
    figure.suptitle(f"{result.dataset['name']}: when in training the {result.target} becomes legible", fontsize=10)
    legend_below(figure, [left], columns=3)
    return figure


def _styles(count: int) -> list[tuple[str, str]]:
    return [SERIES[number % len(SERIES)] for number in range(count)]


def _draw_course(axes: Axes, steps: Sequence[int], course: Course, colour: str, marker: str) -> None:
    there = [(step, one) for step, one in zip(steps, course.accuracy, strict=True) if one is not None]
    if not there:
        return
    x, y = [step for step, _ in there], percents([one.mean for _, one in there])
    below, above = errors(y, [one.low for _, one in there], [one.high for _, one in there])
    axes.fill_between(x, y - below, y + above, color=colour, alpha=0.2, linewidth=0)
    axes.plot(x, y, "-", marker=marker, color=colour, markersize=4, linewidth=1.2, label=course.name)


def _draw_layers(figure: Figure, axes: Axes, found: DynamicsFinding, labels: Sequence[str]) -> None:
    """A cell a layer and step; a dot where the layer is legible from."""
    means = [[np.nan if one is None else 100 * one.mean for one in course.accuracy] for course in found.layers]
    axes.set_facecolor("0.85")  # seen where nothing was measured
    image = axes.imshow(np.array(means), cmap="viridis", aspect="auto", vmin=0, interpolation="nearest")
    at = [
        (found.steps.index(course.legible), row)
        for row, course in enumerate(found.layers)
        if course.legible is not None
    ]
    axes.plot(
        [x for x, _ in at], [y for _, y in at], "o", markersize=3.5, markerfacecolor=BLACK, markeredgecolor="white",
        markeredgewidth=0.7,
    )  # fmt: skip
    rows = -(-len(labels) // MOST_LINES)
    axes.set_yticks(range(0, len(labels), rows), labels[::rows], fontsize=6.5)
    axes.set_xticks(range(len(found.steps)), list(map(str, found.steps)), fontsize=8)
    axes.set_xlabel("steps of training", fontsize=9)
    axes.set_title(f"{found.single} of each layer alone", fontsize=9)
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.9, aspect=30, pad=0.01)
    bar.set_label("test accuracy, % (dot: legible from here on)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
