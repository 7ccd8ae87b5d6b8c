"""Pictures of principal components: of one layer, of all layers of an adapter, and between adapters."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lorabench.adapters.drawing.panels import (
    count_axis,
    depth_axis,
    depth_width,
    hatch,
    log_axis,
    new_figure,
    untrained_patch,
    words_instead,
)
from lorabench.adapters.places import by_depth
from lorabench.adapters.principal_components import AdaptersPCA, LayerPCA, LayerVariances
from lorabench.adapters.reading.naming import layer_names
from lorabench.pictures import BLUE, GREY, ORANGE, SERIES, drawable, shortened, tidy

__all__ = ["across_figure", "cumulative_table", "layer_figure", "layers_figure"]

_COLOURS = {"down": BLUE, "up": ORANGE}
_NO_NUMBERS = "no components (untrained, one sample, or constant)"


def layer_figure(layer: LayerPCA) -> Figure:
    """One layer: variance, cumulative variance, singular values, and the components themselves."""
    title = f"{shortened(layer.layer, 100)}\n{layer.samples} samples of {layer.features} features"
    figure = new_figure(11.0, 7.5, drawable(title))
    panels = figure.subplot_mosaic([["variance", "sum", "values"], ["heat"] * 3], height_ratios=(1.0, 1.1))
    if layer.reason:
        for axes in panels.values():
            words_instead(axes, layer.reason)
        return figure
    index = np.arange(1, layer.n_components + 1)
    panels["variance"].bar(index, 100 * layer.explained_variance_ratio, color=BLUE)
    panels["variance"].set_title("explained variance, %")
    panels["sum"].plot(index, 100 * layer.cumulative, "o-", color=BLUE, markersize=3)
    panels["sum"].axhline(90, color=GREY, linestyle="--", linewidth=1)
    panels["sum"].set_ylim(0, 104)
    panels["sum"].set_title("cumulative, %; dashed: 90 %")
    panels["values"].plot(index, layer.singular_values, "o-", color=BLUE, markersize=3)
    panels["values"].set_ylim(0, 1.06 * float(layer.singular_values[0]))
    panels["values"].set_title("singular values of the samples")
    for name in ("variance", "sum", "values"):
        panels[name].set_xlabel("component")
        panels[name].set_xlim(0.3, layer.n_components + 0.7)
        count_axis(panels[name].xaxis)
        tidy(panels[name])
    _components(figure, panels["heat"], layer)
    return figure


def _components(figure: Figure, axes: Axes, layer: LayerPCA) -> None:
    limit = float(np.percentile(np.abs(layer.components), 99.5)) or 1.0
    image = axes.imshow(
        layer.components, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest",
        extent=(0, layer.features, layer.n_components + 0.5, 0.5),
    )  # fmt: skip
    count_axis(axes.yaxis)
    axes.set_ylabel("component")
    axes.set_xlabel("feature")
    count_axis(axes.xaxis)
    axes.set_title("components")
    figure.colorbar(image, ax=axes, pad=0.01, aspect=25, extend="both").set_label("loading")


def cumulative_table(
    layers: Mapping[str, LayerVariances], modules: Sequence[str], part: int, most: int = 32
) -> Float64[np.ndarray, "k n"]:
    """What the first 1, 2, ... components explain, a column a module; NaN where there are none or fewer.

    Args:
        layers: layer name -> its components.
        modules: the columns.
        part: 0 for down, 1 for up.
        most: rows at most.
    """
    none: Float64[np.ndarray, " k"] = np.zeros(0)
    shares = [layers[layer].cumulative if (layer := layer_names(name)[part]) in layers else none for name in modules]
    table = np.full((min(max(map(len, shares), default=0), most) or 1, len(modules)), np.nan)
    for column, share in enumerate(shares):
        table[: len(share), column] = share[: len(table)]
    return table


def layers_figure(layers: Mapping[str, LayerVariances], name: str, what: str) -> Figure:
    """All layers: curves of variance, cumulative variance and singular values; cumulative variance along the depth."""
    modules = by_depth(list(dict.fromkeys(name.rpartition(".lora.")[0] for name in layers)))
    parts = [part for part in (0, 1) if any(layer_names(name)[part] in layers for name in modules)]
    width = max(depth_width(len(modules)), 10.0)
    rows: list[Any] = [[f"heat {part}"] * 3 for part in parts]
    figure = new_figure(width, 4.4 + 3.0 * len(rows), name, what)
    panels = figure.subplot_mosaic([["variance", "sum", "values"], *rows], height_ratios=(1.25, *[1.0] * len(rows)))
    _curves(panels["variance"], [(layer.layer, 100 * layer.explained_variance_ratio) for layer in layers.values()])
    panels["variance"].set_title("explained variance, %")
    _curves(panels["sum"], [(layer.layer, 100 * layer.cumulative) for layer in layers.values()])
    panels["sum"].set_title("cumulative, %; thick: median of the layers")
    _curves(panels["values"], [(layer.layer, layer.singular_values) for layer in layers.values()], logarithmic=True)
    panels["values"].set_title("singular values of the samples")
    for part in parts:
        names = "down (r samples)" if part == 0 else "up (d_out samples)"
        axes = panels[f"heat {part}"]
        axes.set_title(f"{names}: cumulative explained variance, %")
        _heat(figure, axes, cumulative_table(layers, modules, part), modules, 0.88 * width, last=part == parts[-1])
    handles = [Line2D([], [], color=colour, linewidth=2, label=part) for part, colour in _COLOURS.items()]
    missing = [untrained_patch(_NO_NUMBERS)] if any(layer.reason for layer in layers.values()) else []
    figure.legend(handles=[*handles, *missing], loc="outside lower left", ncols=3)
    return figure


def _curves(axes: Axes, curves: Sequence[tuple[str, Float64[np.ndarray, "..."]]], logarithmic: bool = False) -> None:
    """A thin line a layer in its factor's colour, and the median of each factor."""
    drawn = [(name, values) for name, values in curves if len(values)]
    if not drawn:
        words_instead(axes, _NO_NUMBERS)
        return
    longest = max(len(values) for _, values in drawn)
    for part, colour in _COLOURS.items():
        mine = [values for name, values in drawn if name.endswith(f".{part}.weight")]
        if not mine:
            continue
        lines = [np.column_stack([np.arange(1, len(values) + 1), values]) for values in mine]
        few = len(mine) < 60
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=0.7, alpha=0.5 if few else 0.2))
        if longest <= 16:  # a rank of 1 has a point and no line
            axes.plot(*np.concatenate(lines).T, ".", color=colour, markersize=2.5, alpha=0.4)
        table = np.full((len(mine), max(map(len, mine))), np.nan)
        for row, values in zip(table, mine, strict=True):
            row[: len(values)] = values
        middle = np.nanmedian(table, axis=0)
        marker = "o" if len(middle) <= 16 else ""
        index = np.arange(1, len(middle) + 1)
        axes.plot(index, middle, color="white", linewidth=4.5, zorder=4)
        axes.plot(
            index, middle, color=colour, linewidth=2, marker=marker, markersize=6, markeredgecolor="white", zorder=5
        )
    low, high = (f([f(values) for _, values in drawn]) for f in (np.min, np.max))
    axes.set_xlim(0.5, max(longest, 2) + 0.5)
    if logarithmic and high > 0:
        axes.set_ylim(max(float(low), 1e-6 * float(high)) / 1.3, float(high) * 1.3)
        log_axis(axes, "y")
    else:
        axes.set_ylim(0, float(high) * 1.05)
    count_axis(axes.xaxis)
    axes.set_xlabel("component")
    tidy(axes)


def _heat(
    figure: Figure, axes: Axes, table: Float64[np.ndarray, "k n"], modules: Sequence[str], width: float, last: bool
) -> None:
    if np.isnan(table).all():
        words_instead(axes, _NO_NUMBERS)
        return
    axes.set_facecolor("0.9")
    image = axes.imshow(
        100 * table, aspect="auto", cmap="viridis", vmin=0, vmax=100, interpolation="nearest",
        extent=(-0.5, len(modules) - 0.5, len(table) + 0.5, 0.5),
    )  # fmt: skip
    hatch(axes, np.isnan(table).all(axis=0))
    axes.set_ylabel("components")
    count_axis(axes.yaxis)
    figure.colorbar(image, ax=axes, pad=0.01, aspect=20).set_label("%")
    depth_axis(axes, modules, width, labels=last)


def across_figure(analyses: Mapping[str, AdaptersPCA]) -> Figure:
    """Between adapters: variance of the components by depth, and how far each adapter is from the mean."""
    modules = by_depth(list(analyses))
    labels = analyses[modules[0]].adapters
    width = depth_width(len(modules))
    figure = new_figure(
        width, 6.4 + 0.2 * min(len(labels), 60), f"ΔW of {len(labels)} adapters, {len(modules)} modules"
    )
    curves, heat = figure.subplots(2, 1, height_ratios=(4.2, 1.2 + 0.2 * min(len(labels), 60)))
    missing = np.array([bool(analyses[name].reason) for name in modules])
    highest = max(analyses[name].n_components for name in modules)
    most = min(max(highest - 1, min(highest, 1)), 5)  # all of them together always explain 100 %
    curves.set_title("cumulative variance of the first components, %")
    for k, (colour, marker) in zip(range(most), SERIES, strict=False):
        share = np.array([100 * float(analyses[name].cumulative[k : k + 1].sum() or np.nan) for name in modules])
        axes_label = f"PC1 to {k + 1}" if k else "PC1"
        curves.plot(np.arange(len(modules)), share, marker, color=colour, markersize=4, label=axes_label)
    if not most:
        words_instead(curves, "no module that varies between these adapters")
    else:
        curves.set_ylim(0, 104)
        hatch(curves, missing)
        handles, _ = curves.get_legend_handles_labels()
        patch = [untrained_patch("no components: see the table")] if missing.any() else []
        curves.legend(handles=[*handles, *patch], loc="upper left", bbox_to_anchor=(0, -0.02), ncols=6, borderaxespad=0)
        tidy(curves)
        depth_axis(curves, modules, 0.88 * width, labels=False)
    _distances(figure, heat, [analyses[name] for name in modules], missing, 0.88 * width)
    return figure


def _distances(figure: Figure, axes: Axes, analyses: Sequence[AdaptersPCA], missing: np.ndarray, width: float) -> None:
    """‖ΔW_i − mean‖_F, each module in units of its own root mean square over the adapters."""
    labels = analyses[0].adapters
    distance = np.full((len(labels), len(analyses)), np.nan)
    for column, analysis in enumerate(analyses):
        if not analysis.reason:
            lengths = np.linalg.norm(analysis.scores, axis=1)
            distance[:, column] = lengths / np.sqrt(np.mean(lengths**2))
    axes.set_title("distance of each adapter from the mean ΔW, 1: the usual one of the module")
    if missing.all():
        words_instead(axes, "no module that varies between these adapters")
        return
    image = axes.imshow(
        distance, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest",
        extent=(-0.5, len(analyses) - 0.5, len(labels) - 0.5, -0.5),
    )  # fmt: skip
    hatch(axes, missing)
    step = -(-len(labels) // 60)
    axes.set_yticks(range(0, len(labels), step), [drawable(shortened(label, 32)) for label in labels[::step]])
    figure.colorbar(image, ax=axes, pad=0.01, aspect=15)
    depth_axis(axes, [analysis.module for analysis in analyses], width, groups=False)
