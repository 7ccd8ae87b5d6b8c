"""Pictures of what each layer alone predicts: along the network's depth, and by place."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorabench.adapters.places import block_labels, groups, place
from lorabench.findings import Ranked, RankedFinding
from lorabench.pictures import tidy
from lorabench.report.depth_panels import DepthPanel, depth_panels
from lorabench.report.ranked import marked_units, ranked_on
from lorabench.report.style import FACTOR_STYLES, draw_chance, errors, legend_below, percents, ring, titled
from lorabench.results import Result

__all__ = ["importance_by_place", "layer_importance"]


def layer_importance(result: Result, found: RankedFinding) -> Figure:
    """Accuracy of each layer alone along the depth: a panel an attention kind and projection, a colour a factor."""
    rows = {row.layer: row for row in found.ranking}
    figure, panels = depth_panels(list(rows))
    for panel in panels:
        _panel(panel, result, found, [rows[layer] for layer in panel.layers])
    split = ranked_on(result)
    figure.supylabel(f"{split} accuracy of one layer alone, %\n(95 % interval)", fontsize=9)
    figure.suptitle(
        titled(result, f"{result.dataset['name']}: {found.baseline} of each layer, along the depth"), fontsize=10
    )
    legend_below(figure, [panel.axes for panel in panels])
    return figure


def _panel(panel: DepthPanel, result: Result, found: RankedFinding, rows: Sequence[Ranked]) -> None:
    axes = panel.axes
    draw_chance(axes, result)
    best, best_label = marked_units(found)
    factors = [factor for factor in FACTOR_STYLES if any(place(row.layer).factor == factor for row in rows)]
    marked: list[tuple[float, float]] = []
    for number, factor in enumerate(factors):
        colour, marker = FACTOR_STYLES[factor]
        chosen = [row for row in rows if place(row.layer).factor == factor]
        layers = [row.layer for row in chosen]
        shift = 0.0 if len(factors) == 1 else 0.3 * (number / (len(factors) - 1) - 0.5)
        x = panel.places(layers) + shift
        y = percents([row.accuracy for row in chosen])
        axes.errorbar(
            x, y, yerr=errors(y, [row.low for row in chosen], [row.high for row in chosen]),
            fmt=marker, color=colour, markersize=4, elinewidth=0.8, label=factor or "module", zorder=3,
        )  # fmt: skip
        if panel.is_line(layers):
            axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.5, zorder=2)
        marked += [(x[i], y[i]) for i, layer in enumerate(layers) if layer in best]
    if marked:
        ring(axes, [x for x, _ in marked], [y for _, y in marked], best_label)


def importance_by_place(result: Result, found: RankedFinding) -> Figure:
    """Accuracy of each layer alone by block, attention kind, projection and factor: a point a layer, and the mean."""
    rows = {row.layer: row for row in found.ranking}
    places = {by: groups(list(rows), by) for by in ("block", "attention", "projection", "factor")}
    places = {by: members for by, members in places.items() if len(members) > 1} or {"block": places["block"]}
    wide = "block" in places
    small = [by for by in places if by != "block"]
    longest = max([len(name) for by in small for name in places[by]], default=0)
    width = min(max(7.5, 0.22 * len(places.get("block", ())) + 1.5, 0.3 * sum(len(places[by]) for by in small) + 2), 16)
    height = (2.9 if wide else 0) + (2.5 + 0.05 * longest if small else 0) + 0.7
    figure = Figure(figsize=(width, height), layout="constrained")
    parts = figure.subfigures(int(wide) + bool(small), 1, squeeze=False).ravel()
    drawn: list[Axes] = []
    if wide:
        axes = parts[0].subplots()
        _strip(axes, result, rows, "block", places["block"])
        drawn.append(axes)
    if small:
        shares = [max(len(places[by]), 2) for by in small]
        panels = parts[-1].subplots(1, len(small), squeeze=False, sharey=True, width_ratios=shares).ravel()
        for axes, by in zip(panels, small, strict=True):
            _strip(axes, result, rows, by, places[by])
            drawn.append(axes)
    for axes in (drawn[0], drawn[1] if wide and small else drawn[0]):
        axes.set_ylabel(f"{ranked_on(result)} accuracy, %", fontsize=8)
    figure.suptitle(
        titled(result, f"{result.dataset['name']}: {found.baseline} of each layer, by its place"), fontsize=10
    )
    legend_below(figure, drawn)
    return figure


def _strip(
    axes: Axes, result: Result, rows: Mapping[str, Ranked], by: str, members: Mapping[str, Sequence[str]]
) -> None:
    draw_chance(axes, result)
    for number, layers in enumerate(members.values()):
        y = percents([rows[layer].accuracy for layer in layers])
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
    labels, lists = block_labels(names) if by == "block" else (names, "")
    longest = max(map(len, labels))
    axes.set_xticks(range(len(names)), labels, rotation=90 if longest > 2 and len(names) > 4 else 0, fontsize=8)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_title(f"{by} ({lists})" if lists else by, fontsize=9)
    tidy(axes, "y")
