"""What each layer alone knows of each class, and the layer that knows it best."""

import functools
from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from lorabench.ablation.concepts import ByClass, ConceptsFinding
from lorabench.pictures import ORANGE
from lorabench.report.labels import LINE, MOST_LINES, layer_labels
from lorabench.report.numbers import percent
from lorabench.report.ranked import sheet_title
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["figures", "sheets"]

_MOST_COLUMNS = 90


def sheets(result: Result, found: ConceptsFinding) -> list[Sheet]:
    """The best layer of every class."""
    return [_table(result, found.concepts)]


def figures(result: Result, found: ConceptsFinding) -> dict[str, Callable[[], Figure]]:
    """Recall by layer and class."""
    return {"concepts": functools.partial(_figure, result, found.concepts)}


def _table(result: Result, found: ByClass) -> Sheet:
    """The layer that knows each class best."""
    best = found.best
    return Sheet(
        title=sheet_title(result, f"The layer of {result.dataset['name']} that knows each {result.target} best"),
        columns=("class", "recall", "layer"),
        rows=[
            (name, percent(best[name].recall), best[name].layer) if name in best else (name, "–", "–")
            for name in found.classes
        ],
        caption=[
            "recall: share of the class's test adapters that the layer alone finds, mean over seeds, in %",
            "the layer is the one with the best validation recall",
            *_taus(found),
        ],
        text=("class", "layer"),
        names=("layer",),
    )


def _taus(found: ByClass) -> list[str]:
    between, within = found.tau_between_classes, found.tau_within_classes
    if between is None or within is None:
        return []
    said = f"{between:.2f} between halves of two classes, {within:.2f} between those of one"
    return [f"Kendall's τ of the layers' order: {said}"]


def _figure(result: Result, found: ByClass) -> Figure:
    """How much of each class each layer alone finds, along the depth; a dot at the best layer of a class."""
    layers, classes = found.layers, found.classes
    recall = 100 * np.array(found.recall)
    labels = layer_labels(layers)
    height = max(LINE * min(len(layers), MOST_LINES), 2.4) + 1.6 + 0.06 * max(map(len, classes))
    width = 0.075 * max(map(len, labels)) + min(max(0.24 * len(classes), 3.4), 16.0) + 1.2
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.85")  # seen where a class has no test adapter
    image = axes.imshow(recall, cmap="viridis", aspect="auto", vmin=0, vmax=100, interpolation="nearest")
    at = {layer: place for place, layer in enumerate(layers)}
    best = [(i, at[found.best[name].layer]) for i, name in enumerate(classes) if name in found.best]
    axes.plot(
        [i for i, _ in best], [place for _, place in best], "o",
        markersize=4, markerfacecolor=ORANGE, markeredgecolor="white", markeredgewidth=0.8,
    )  # fmt: skip
    rows, columns = -(-len(layers) // MOST_LINES), -(-len(classes) // _MOST_COLUMNS)
    axes.set_yticks(range(0, len(layers), rows), labels[::rows], fontsize=6.5)
    axes.set_xticks(range(0, len(classes), columns), classes[::columns], rotation=90, fontsize=8)
    axes.set_title(f"{result.dataset['name']}: which layer alone knows which {result.target}", fontsize=10)
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.8, aspect=40, pad=0.01)
    bar.set_label("test recall, % (dot: best on validation; grey: no test adapter)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure
