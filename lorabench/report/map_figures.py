"""Pictures with a line a layer: clusters of layers, and what each layer knows of each class."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorabench.pictures import BLUE, GREY, ORANGE
from lorabench.report.labels import layer_labels
from lorabench.report.numbers import number
from lorabench.results import Result

__all__ = ["clusters_figure", "concepts_figure"]

_LINE = 0.125  # inches a layer, room for a label of 6.5 points
_MOST_LINES = 320
_MOST_COLUMNS = 90


def clusters_figure(result: Result) -> Figure:
    """The tree of layers that answer alike, beside their distances in the tree's order."""
    found = result.ablation["clusters"]
    order, count = list(found["order"]), len(found["layers"])
    labels = layer_labels(found["layers"])
    height = max(_LINE * min(count, _MOST_LINES), 2.6) + 1.2
    side = min(max(_LINE * count, 2.6), 13.0)
    label_width = 0.075 * max(map(len, labels))
    figure = Figure(figsize=(2.6 + side + label_width + 1.0, height), layout="constrained")
    tree, strip, heat = figure.subplots(1, 3, sharey=True, width_ratios=(2.2, 0.35, side))
    _tree(tree, found["linkage"], order, found["threshold"])
    _strip(strip, [found["cluster"][leaf] for leaf in order])
    distances = np.array([[number(value) for value in row] for row in found["distance"]])[np.ix_(order, order)]
    image = heat.imshow(distances, cmap="viridis_r", aspect="auto", vmin=0, interpolation="nearest")
    step = -(-count // _MOST_LINES)
    heat.set_yticks(range(0, count, step), [labels[leaf] for leaf in order[::step]], fontsize=6.5)
    heat.yaxis.tick_right()
    heat.tick_params(axis="y", labelleft=False, labelright=True)
    heat.set_xticks([])
    heat.set_xlabel("the same layers in the same order", fontsize=8)
    heat.set_ylim(count - 0.5, -0.5)
    bar = figure.colorbar(image, ax=[tree, strip, heat], location="bottom", shrink=0.4, aspect=40, pad=0.01)
    bar.set_label("how often two layers name different classes", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(f"{result.dataset['name']}: layers whose members answer alike", fontsize=10)
    return figure


def _tree(axes: Axes, linkage: Sequence[Sequence[float]], order: Sequence[int], threshold: float) -> None:
    """The dendrogram, leaves at the rows of the heat map."""
    height = {leaf: float(place) for place, leaf in enumerate(order)}
    joined = dict.fromkeys(order, 0.0)
    for step, (a, b, distance, _) in enumerate(linkage):
        one, two, node = int(a), int(b), len(order) + step
        colour = BLUE if distance <= threshold else GREY
        axes.plot(
            [joined[one], distance, distance, joined[two]],
            [height[one], height[one], height[two], height[two]],
            color=colour, linewidth=0.9,
        )  # fmt: skip
        height[node], joined[node] = (height[one] + height[two]) / 2, float(distance)
    axes.axvline(threshold, color=ORANGE, linestyle="--", linewidth=1)
    axes.set_xlim(1.03 * max([*joined.values(), threshold], default=1.0), 0)
    axes.set_xlabel("distance\n(dashed: the cut)", fontsize=8)
    axes.tick_params(axis="y", left=False, labelleft=False)
    axes.tick_params(axis="x", labelsize=7)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _strip(axes: Axes, clusters: Sequence[int]) -> None:
    """Bands of one cluster each, with its number where there is room."""
    starts = [i for i, cluster in enumerate(clusters) if i == 0 or cluster != clusters[i - 1]]
    stops = [*starts[1:], len(clusters)]
    for band, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        axes.axhspan(start - 0.5, stop - 0.5, color="0.80" if band % 2 else "0.93", linewidth=0)
        axes.text(0.5, (start + stop - 1) / 2, f"{clusters[start]}", ha="center", va="center", fontsize=6.5)
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.set_xlabel("cluster", fontsize=8, rotation=90)
    axes.tick_params(axis="y", left=False, labelleft=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def concepts_figure(result: Result) -> Figure:
    """How much of each class each layer alone finds, along the depth; a dot at the best layer of a class."""
    found = result.ablation["concepts"]
    layers, classes = found["layers"], found["classes"]
    recall = 100 * np.array([[number(value) for value in row] for row in found["recall"]])
    labels = layer_labels(layers)
    height = max(_LINE * min(len(layers), _MOST_LINES), 2.4) + 1.6 + 0.06 * max(map(len, classes))
    width = 0.075 * max(map(len, labels)) + min(max(0.24 * len(classes), 3.4), 16.0) + 1.2
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.85")  # seen where a class has no test adapter
    image = axes.imshow(recall, cmap="viridis", aspect="auto", vmin=0, vmax=100, interpolation="nearest")
    at = {layer: place for place, layer in enumerate(layers)}
    best = [(i, at[found["best"][name]["layer"]]) for i, name in enumerate(classes) if found["best"].get(name)]
    axes.plot(
        [i for i, _ in best], [place for _, place in best], "o",
        markersize=4, markerfacecolor=ORANGE, markeredgecolor="white", markeredgewidth=0.8,
    )  # fmt: skip
    rows, columns = -(-len(layers) // _MOST_LINES), -(-len(classes) // _MOST_COLUMNS)
    axes.set_yticks(range(0, len(layers), rows), labels[::rows], fontsize=6.5)
    axes.set_xticks(range(0, len(classes), columns), classes[::columns], rotation=90, fontsize=8)
    axes.set_title(f"{result.dataset['name']}: which layer alone knows which {result.target}", fontsize=10)
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.8, aspect=40, pad=0.01)
    bar.set_label("test recall, % (dot: best on validation; grey: no test adapter)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure
