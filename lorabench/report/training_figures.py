"""Pictures of the classifiers over all layers: accuracies, learning curves, confusion."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lorabench.pictures import BLUE, GREY, ORANGE, drawable
from lorabench.report.controls import draw_controls
from lorabench.report.numbers import over
from lorabench.results import Result, Run, Summary

__all__ = ["accuracy_figure", "confusion_figure", "curves_figure"]


def accuracy_figure(result: Result, rows: Sequence[Summary]) -> Figure:
    """Test accuracy with its standard deviation over seeds, the best on top, and chance."""
    ordered = sorted(rows, key=lambda row: row.test_accuracy.mean)
    figure = Figure(figsize=(7, 1.5 + 0.32 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    means = [100 * row.test_accuracy.mean for row in ordered]
    spreads = [0.0 if math.isnan(row.test_accuracy.std) else 100 * row.test_accuracy.std for row in ordered]
    places = np.arange(len(ordered))
    for seen, colour, label in ((True, BLUE, "sees ΔW alone (gauge-invariant)"), (False, ORANGE, "sees the factors")):
        chosen = [i for i in places if bool(ordered[i].gauge_invariant) is seen]
        if chosen:
            axes.errorbar(
                [means[i] for i in chosen], chosen, xerr=[spreads[i] for i in chosen],
                fmt="o" if seen else "s", color=colour, capsize=3, label=label,
            )  # fmt: skip
    axes.axvline(100 * result.chance, color=GREY, linestyle="--", label="chance")
    draw_controls(axes, result)
    axes.set_yticks(places, [row.representation for row in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_xlim(0, 100)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    counted = over(result, max(row.test_accuracy.n for row in ordered))
    axes.set_xlabel(f"test accuracy, % (mean ± std over {counted})")
    axes.set_title(f"{result.dataset['name']}: reading the {result.target} from the weights alone", fontsize=11)
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=2)
    return figure


def curves_figure(runs: dict[str, list[Run]]) -> Figure:
    """Training and validation loss by epoch, a panel a representation, a thin line a seed."""
    columns = min(3, len(runs))
    lines = -(-len(runs) // columns)
    figure = Figure(figsize=(3.4 * columns + 0.6, 2.5 * lines + 0.5), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (name, members) in zip(panels, runs.items(), strict=False):
        _curves(axes, members)
        axes.set_title(name, fontsize=10)
    for axes in panels[len(runs) :]:
        axes.set_axis_off()
    panels[0].legend(fontsize=8, frameon=False)
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("cross-entropy", fontsize=10)
    return figure


def _curves(axes: Axes, members: Sequence[Run]) -> None:
    for number, run in enumerate(members):
        label = number == 0
        for key, colour, name in (("train_loss", ORANGE, "train"), ("val_loss", BLUE, "validation")):
            losses = [row[key] for row in run.history]
            axes.plot(losses, color=colour, lw=0.8, alpha=0.7, label=name if label else None)
        best = run.history[run.best_epoch]["val_loss"]
        axes.plot(run.best_epoch, best, "o", color=BLUE, ms=3, label="best epoch" if label else None)
    top = max(run.history[0]["val_loss"] for run in members)
    axes.set_ylim(0, 1.5 * top)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8)


def confusion_figure(name: str, members: Sequence[Run], classes: Sequence[str]) -> Figure:
    """Test predictions over all seeds: shares of every true class, in %; numbers up to 20 classes."""
    counts = np.sum([run.confusion for run in members], axis=0)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(max(4.0, 0.5 * len(classes) + 2.2), 12.0)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    few = len(classes) <= 20
    if few:
        for true, predicted in np.ndindex(shares.shape):
            value = shares[true, predicted]
            if value >= 0.5:
                colour = "white" if value > 55 else "black"
                axes.text(predicted, true, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    step = 1 if len(classes) <= 40 else -(-len(classes) // 40)
    ticks = range(0, len(classes), step)
    names = [drawable(classes[i]) for i in ticks]
    axes.set_xticks(ticks, names, rotation=90, fontsize=8)
    axes.set_yticks(ticks, names, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{drawable(name)}: test predictions, % of the true class", fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8)
    return figure
