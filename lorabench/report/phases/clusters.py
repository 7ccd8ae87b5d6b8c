"""Layers that answer alike: their clusters, and the tree beside their distances."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorabench.ablation.clusters import ClustersFinding, Tree
from lorabench.pictures import BLUE, GREY, ORANGE
from lorabench.report.labels import LINE, MOST_LINES, layer_labels
from lorabench.report.ranked import sheet_title
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["figures", "sheets"]


def sheets(result: Result, found: ClustersFinding) -> list[Sheet]:
    """The clusters."""
    return [_table(result, found.clusters)]


def figures(result: Result, found: ClustersFinding) -> dict[str, Callable[[], Figure]]:
    """The tree."""
    return {"clusters": functools.partial(_figure, result, found.clusters)}


def _table(result: Result, found: Tree) -> Sheet:
    """Layers that answer alike."""
    ids, own = found.cluster, found.between_seeds
    rows: list[tuple[str, ...]] = []
    for cluster in dict.fromkeys(ids[leaf] for leaf in found.order):
        members = [found.layers[leaf] for leaf in found.order if ids[leaf] == cluster]
        rows += [
            (str(cluster) if first else "", str(len(members)) if first else "", layer)
            for first, layer in ((i == 0, layer) for i, layer in enumerate(members))
        ]
    return Sheet(
        title=sheet_title(result, f"Layers of {result.dataset['name']} whose members answer alike"),
        columns=("cluster", "layers", "layer"),
        rows=rows,
        caption=[
            "distance: how often two layers name different classes; neighbours here are neighbours in the tree",
            *(["no two layers answer alike at this cut"] if len(set(ids)) == len(ids) else []),
            f"cut at {found.threshold:.2f}" + ("" if own is None else f" · two seeds of one layer: {own:.2f}"),
        ],
        text=("layer",),
        names=("layer",),
        spare=("layers",),
    )


def _figure(result: Result, found: Tree) -> Figure:
    """The tree of layers that answer alike, beside their distances in the tree's order."""
    order, count = list(found.order), len(found.layers)
    labels = layer_labels(found.layers)
    height = max(LINE * min(count, MOST_LINES), 2.6) + 1.2
    side = min(max(LINE * count, 2.6), 13.0)
    label_width = 0.075 * max(map(len, labels))
    figure = Figure(figsize=(2.6 + side + label_width + 1.0, height), layout="constrained")
    tree, strip, heat = figure.subplots(1, 3, sharey=True, width_ratios=(2.2, 0.35, side))
    _tree(tree, found.linkage, order, found.threshold)
    _strip(strip, [found.cluster[leaf] for leaf in order])
    distances = np.array(found.distance)[np.ix_(order, order)]
    image = heat.imshow(distances, cmap="viridis_r", aspect="auto", vmin=0, interpolation="nearest")
    step = -(-count // MOST_LINES)
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
