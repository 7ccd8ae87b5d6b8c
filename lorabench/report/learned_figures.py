"""Pictures of how well learned representations fitted: what they reconstruct, and how their training went."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lorabench.adapters.places import place
from lorabench.pictures import BLUE, GREY, ORANGE, SERIES, tidy
from lorabench.report.depth_panels import DepthPanel, depth_panels
from lorabench.report.numbers import number
from lorabench.report.style import legend_below, wrapped
from lorabench.results import Result

__all__ = ["decodes", "fitting_figure", "reconstruction_figure"]

_WHOLE = "all"
_ERROR = "relative reconstruction error\nof held-out training adapters"
_LONGEST = 50  # letters of a line in a legend
_LETTERS = 14  # of a legend, an inch
_MEAN = "1: no better than the training mean"


def decodes(learned: Mapping[str, Any]) -> bool:
    """Whether a representation of `Result.learned` has a decoder, and so an error."""
    return any("reconstruction_error" in known for known in learned["units"].values())


def reconstruction_figure(result: Result) -> Figure:
    """Relative reconstruction error of every unit of all learned representations, along the network's depth.

    A colour a representation; down factors are filled, up factors hollow. A representation with one unit of all
    layers is a line; where there is no other, a point.
    """
    errors = {
        name: {unit: number(known.get("reconstruction_error")) for unit, known in found["units"].items()}
        for name, found in result.learned.items()
        if decodes(found)
    }
    units = list(dict.fromkeys(unit for by_unit in errors.values() for unit in by_unit if not _is_whole(by_unit)))
    if units:
        figure, panels = depth_panels(units)
        for panel in panels:
            _panel(panel, errors)
        panels[0].axes.set_ylim(bottom=0)  # theirs is one; set earlier, it would not grow with the others
        figure.supylabel(_ERROR, fontsize=9)
        _legend(figure, [panel.axes for panel in panels])
    else:
        figure = _points({name: by_unit[_WHOLE] for name, by_unit in errors.items()})
    title = f"{result.dataset['name']}: what learned representations cannot reconstruct"
    figure.suptitle(wrapped([title], figure.get_figwidth()), fontsize=10)
    return figure


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """As many columns as the longest label leaves."""
    labels = [label for panel in axes for label in panel.get_legend_handles_labels()[1]]
    longest = max(len(line) for label in labels for line in label.splitlines())
    legend_below(figure, axes, columns=min(max(int(_LETTERS * figure.get_figwidth() / (longest + 8)), 1), 4))


def _is_whole(by_unit: Mapping[str, float]) -> bool:
    return list(by_unit) == [_WHOLE]


def _style(position: int) -> tuple[str, str]:
    """Colour and marker of a representation; beyond ten, colours meet other markers."""
    turn, at = divmod(position, len(SERIES))
    return SERIES[at][0], SERIES[(at + turn) % len(SERIES)][1]


def _panel(panel: DepthPanel, errors: Mapping[str, Mapping[str, float]]) -> None:
    axes = panel.axes
    series = [
        (position, name, factor, [unit for unit in panel.layers if unit in by_unit and place(unit).factor == factor])
        for position, (name, by_unit) in enumerate(errors.items())
        if not _is_whole(by_unit)
        for factor in ("down", "up", "")
    ]
    series = [one for one in series if one[-1]]
    dodge = np.linspace(-0.28, 0.28, len(series)) if len(series) > 1 else [0.0]
    for (position, name, factor, layers), shift in zip(series, dodge, strict=True):
        colour, marker = _style(position)
        x = panel.places(layers) + shift
        y = [errors[name][layer] for layer in layers]
        axes.plot(
            x, y, marker, color=colour, markersize=4, markerfacecolor="white" if factor == "up" else colour,
            label=_named(name, factor), zorder=3,
        )  # fmt: skip
        if panel.is_line(layers):
            axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.5, zorder=2)
    for position, (name, by_unit) in enumerate(errors.items()):
        if _is_whole(by_unit):
            axes.axhline(
                by_unit[_WHOLE], color=_style(position)[0], linestyle="-.", linewidth=1.4, label=_named(name, _WHOLE)
            )
    axes.axhline(1, color=GREY, linestyle="--", linewidth=1.2, label=_MEAN, zorder=1)


def _named(name: str, part: str) -> str:
    said = {"": "modules", _WHOLE: "all layers as one unit"}.get(part, part)
    return textwrap.fill(f"{name}, {said}", _LONGEST)


def _points(errors: Mapping[str, float]) -> Figure:
    """One point a representation, the best on top."""
    names = sorted(errors, key=lambda name: -np.nan_to_num(errors[name], nan=np.inf))
    figure = Figure(figsize=(7, 2.1 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.plot([errors[name] for name in names], range(len(names)), "o", color=BLUE, label="all layers as one unit")
    axes.axvline(1, color=GREY, linestyle="--", linewidth=1.2, label=_MEAN, zorder=1)
    axes.set_yticks(range(len(names)), [textwrap.fill(name, 30) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(left=0)
    axes.set_xlabel(_ERROR, fontsize=9)
    tidy(axes, "x")
    legend_below(figure, [axes])
    return figure


def fitting_figure(result: Result) -> Figure:
    """Loss by epoch over that of the first: a panel a representation, its units' median and range, their best epochs.

    The loss is that of the training adapters which decide when to stop. A unit that has stopped counts with its best
    loss from then on, since these weights are what it keeps.
    """
    names = list(result.learned)
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(max(3.6 * columns + 0.6, 5.0), 2.6 * lines + 1.2), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, name in zip(grid, names, strict=False):
        _fitting(axes, list(result.learned[name]["units"].values()))
        axes.set_title(wrapped([name], 3.2), fontsize=9)
        axes.set_xlabel("epoch", fontsize=8)
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    figure.supylabel("loss of held-out training adapters,\nas a share of the first epoch's", fontsize=9)
    legend_below(figure, list(grid[: len(names)]), columns=3)
    figure.suptitle(wrapped([f"{result.dataset['name']}: how the representations learned"], 5.0), fontsize=10)
    return figure


def _fitting(axes: Axes, units: Sequence[Mapping[str, Any]]) -> None:
    curves = _relative([[number(value) for value in known["learning_curve"]] for known in units])
    epochs = np.arange(1, curves.shape[1] + 1)
    axes.fill_between(
        epochs, curves.min(0), curves.max(0), color=BLUE, alpha=0.2, linewidth=0, label="lowest to highest"
    )
    axes.plot(epochs, np.median(curves, 0), color=BLUE, linewidth=1.4, label="median unit")
    best = [known["best_epoch"] for known in units]
    axes.plot(
        np.array(best) + 1, curves[np.arange(len(units)), best], "o", markersize=3.5, color=ORANGE, alpha=0.5,
        markeredgewidth=0, label="best epoch of a unit",
    )  # fmt: skip
    axes.set_ylim(0, max(1.05, 1.05 * float(np.median(curves, 0).max())))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(axes, "y")


def _relative(curves: Sequence[Sequence[float]]) -> Float64[np.ndarray, "units epochs"]:
    """Losses over the first, and the lowest one from the epoch on in which a unit has stopped."""
    longest = max(map(len, curves))
    found = np.array([[*curve, *[min(curve)] * (longest - len(curve))] for curve in curves], dtype=np.float64)
    relative: Float64[np.ndarray, "units epochs"] = found / np.maximum(found[:, :1], np.finfo(np.float64).tiny)
    return relative
