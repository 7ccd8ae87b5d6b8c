"""Pictures of what each layer alone predicts: along the network's depth, and by place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorabench.ablation.places import Place, by_depth, groups, place
from lorabench.report.arms import marked_units, on_test
from lorabench.report.labels import axis_of_blocks, block_labels
from lorabench.report.style import (
    FACTOR_STYLES,
    draw_chance,
    errors,
    legend_below,
    percents,
    ring,
    tidy,
    titled,
)  # fmt: skip
from lorabench.results import Result

__all__ = ["importance_by_place", "layer_importance"]

_MOST_LABELS = 80
_MOST_INCHES = 15.0
_OUTSIDE = "outside the blocks"


@dataclass(frozen=True)
class _Axis:
    """Where along x the layers of some panels stand.

    Attributes:
        at: layer -> its place along x, from 0.
        labels: of every place.
        title: what the labels count.
    """

    at: Mapping[str, int]
    labels: Sequence[str]
    title: str

    @property
    def inches(self) -> float:
        """The width that the labels need."""
        return min(max(0.19 * len(self.labels) + 0.9, 3.0), _MOST_INCHES)


def layer_importance(result: Result) -> Figure:
    """Accuracy of each layer alone along the depth: a panel an attention kind and projection, a colour a factor."""
    rows = {row["layer"]: row for row in result.ablation["ranking"]}
    panels = _panels(by_depth(list(rows)))
    axis = _axis([layer for name, layers in panels.items() if name != _OUTSIDE for layer in layers])
    outside = _axis(panels.get(_OUTSIDE, ()))
    inches = max(axis.inches, outside.inches)
    columns = _columns(list(panels), inches)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(max(inches * columns + 0.5, 6.5), 2.1 * lines + 2.1), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    drawn = list(grid.ravel()[: len(panels)])
    for number, (axes, (name, layers)) in enumerate(zip(drawn, panels.items(), strict=True)):
        along = outside if name == _OUTSIDE else axis
        _panel(axes, result, [rows[layer] for layer in layers], along)
        axes.set_title(name, fontsize=9)
        lowest = number + columns >= len(panels) or list(panels)[number + columns] == _OUTSIDE
        _label_axis(axes, along, max(len(axis.labels), len(outside.labels)), lowest or name == _OUTSIDE)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_axis_off()
    split = "test" if on_test(result) else "validation"
    figure.supylabel(f"{split} accuracy of one layer alone, %\n(95 % interval)", fontsize=9)
    name = result.ablation["baseline"]
    figure.suptitle(titled(result, f"{result.dataset['name']}: {name} of each layer, along the depth"), fontsize=10)
    legend_below(figure, drawn)
    return figure


def _panels(layers: Sequence[str]) -> dict[str, list[str]]:
    """Layers by attention kind and projection, those outside the blocks last."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        spot = place(layer)
        found.setdefault(_panel_name(spot), []).append(layer)
    if _OUTSIDE in found:
        found[_OUTSIDE] = found.pop(_OUTSIDE)
    return found


def _panel_name(spot: Place) -> str:
    if not spot.block:
        return _OUTSIDE
    part = "" if spot.projection.startswith(f"{spot.attention}.") else spot.attention
    return " · ".join(word for word in (part, spot.projection) if word) or "layers"


def _axis(layers: Sequence[str]) -> _Axis:
    """A place for every depth of the network, in order."""
    places = {layer: place(layer) for layer in by_depth(layers)}
    if not any(spot.block for spot in places.values()):
        modules = list(dict.fromkeys(spot.module for spot in places.values()))
        at_module = {layer: modules.index(spot.module) for layer, spot in places.items()}
        return _Axis(at_module, [place(module).projection or module for module in modules], "module")
    spots = list(dict.fromkeys((spot.block, spot.depth) for spot in places.values()))
    at = {spot: number for number, spot in enumerate(spots)}
    blocks = [block for block, _ in spots]
    # A block of several depths (SDXL has up to ten transformer blocks in one) is named at its first.
    labels = [
        label if number == blocks.index(block) else ""
        for number, (block, label) in enumerate(zip(blocks, block_labels(blocks), strict=True))
    ]
    return _Axis({layer: at[spot.block, spot.depth] for layer, spot in places.items()}, labels, axis_of_blocks(blocks))


def _columns(names: Sequence[str], inches: float) -> int:
    """As many panels side by side as an attention kind has projections, where they fit."""
    fit = max(int(_MOST_INCHES // inches), 1)
    kinds = [name.partition(" · ")[0] for name in names]
    each = {kinds.count(kind) for kind in kinds}
    count = each.pop() if len(each) == 1 else 0
    return count if 1 < count <= fit else min(fit, 2 if len(names) <= 8 else 3, len(names))


def _panel(axes: Axes, result: Result, rows: Sequence[Mapping[str, Any]], axis: _Axis) -> None:
    draw_chance(axes, result)
    best, best_label = marked_units(result)
    factors = [factor for factor in FACTOR_STYLES if any(place(row["layer"]).factor == factor for row in rows)]
    marked: list[tuple[float, float]] = []
    for number, factor in enumerate(factors):
        colour, marker = FACTOR_STYLES[factor]
        chosen = [row for row in rows if place(row["layer"]).factor == factor]
        shift = 0.0 if len(factors) == 1 else 0.3 * (number / (len(factors) - 1) - 0.5)
        x = _spread([axis.at[row["layer"]] for row in chosen]) + shift
        y = percents([row["accuracy"] for row in chosen])
        axes.errorbar(
            x, y, yerr=errors(y, [row["low"] for row in chosen], [row["high"] for row in chosen]),
            fmt=marker, color=colour, markersize=4, elinewidth=0.8, label=factor or "module", zorder=3,
        )  # fmt: skip
        if axis.title != "module" and len({axis.at[row["layer"]] for row in chosen}) == len(chosen):
            axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.5, zorder=2)
        marked += [(x[i], y[i]) for i, row in enumerate(chosen) if row["layer"] in best]
    if marked:
        ring(axes, [x for x, _ in marked], [y for _, y in marked], best_label)
    tidy(axes, "y")


def _spread(places: Sequence[int]) -> np.ndarray:
    """Layers that share a place stand side by side."""
    found = np.array(places, dtype=np.float64)
    for spot in set(places):
        same = np.flatnonzero(np.array(places) == spot)
        if len(same) > 1:
            found[same] += np.linspace(-0.3, 0.3, len(same))
    return found


def _label_axis(axes: Axes, axis: _Axis, places: int, named: bool) -> None:
    axes.set_xlim(-0.6, places - 0.4)
    step = -(-len(axis.labels) // _MOST_LABELS)
    ticks = [i for i, label in enumerate(axis.labels) if label][::step]
    labels = [axis.labels[i] for i in ticks] if named else [""] * len(ticks)
    longest = max((len(label) for label in labels), default=0)
    axes.set_xticks(ticks, labels, rotation=0 if longest <= 2 else 90, fontsize=7)
    if named:
        axes.set_xlabel(axis.title, fontsize=8)


def importance_by_place(result: Result) -> Figure:
    """Accuracy of each layer alone by block, attention kind, projection and factor: a point a layer, and the mean."""
    rows = {row["layer"]: row for row in result.ablation["ranking"]}
    found = {by: groups(list(rows), by) for by in ("block", "attention", "projection", "factor")}
    found = {by: members for by, members in found.items() if len(members) > 1} or {"block": found["block"]}
    wide = "block" in found
    small = [by for by in found if by != "block"]
    longest = max([len(name) for by in small for name in found[by]], default=0)
    width = min(max(7.5, 0.22 * len(found.get("block", ())) + 1.5, 0.3 * sum(len(found[by]) for by in small) + 2), 16)
    height = (2.9 if wide else 0) + (2.5 + 0.05 * longest if small else 0) + 0.7
    figure = Figure(figsize=(width, height), layout="constrained")
    parts = figure.subfigures(int(wide) + bool(small), 1, squeeze=False).ravel()
    drawn: list[Axes] = []
    if wide:
        axes = parts[0].subplots()
        _strip(axes, result, rows, "block", found["block"])
        drawn.append(axes)
    if small:
        shares = [max(len(found[by]), 2) for by in small]
        panels = parts[-1].subplots(1, len(small), squeeze=False, sharey=True, width_ratios=shares).ravel()
        for axes, by in zip(panels, small, strict=True):
            _strip(axes, result, rows, by, found[by])
            drawn.append(axes)
    for axes in (drawn[0], drawn[1] if wide and small else drawn[0]):
        axes.set_ylabel(f"{'test' if on_test(result) else 'validation'} accuracy, %", fontsize=8)
    name = result.ablation["baseline"]
    figure.suptitle(titled(result, f"{result.dataset['name']}: {name} of each layer, by its place"), fontsize=10)
    legend_below(figure, drawn)
    return figure


def _strip(
    axes: Axes, result: Result, rows: Mapping[str, Mapping[str, Any]], by: str, members: Mapping[str, Sequence[str]]
) -> None:
    draw_chance(axes, result)
    for number, layers in enumerate(members.values()):
        y = percents([rows[layer]["accuracy"] for layer in layers])
        # Golden-ratio steps: neighbours in the order never stand at the same place.
        x = number + 0.5 * ((np.arange(len(y)) * 0.618) % 1 - 0.5) * (len(y) > 1)
        factors = [place(layer).factor for layer in layers]
        for factor, (colour, marker) in FACTOR_STYLES.items():
            chosen = [i for i, found in enumerate(factors) if found == factor]
            if chosen:
                axes.plot(
                    x[chosen], y[chosen], marker, color=colour, markersize=3.5, alpha=0.6, label=factor or "module"
                )
        axes.hlines(
            y.mean(),
            number - 0.38,
            number + 0.38,
            color="black",
            linewidth=2,
            label="mean",
            zorder=3,
        )
    names = list(members)
    labels = block_labels(names) if by == "block" else names
    longest = max(map(len, labels))
    axes.set_xticks(range(len(names)), labels, rotation=90 if longest > 2 and len(names) > 4 else 0, fontsize=8)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_title(by if by != "block" else axis_of_blocks(names), fontsize=9)
    tidy(axes, "y")
