"""Pictures that set something of each layer beside what it alone predicts."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorabench.adapters.places import place
from lorabench.pictures import tidy
from lorabench.report.arms import marked_units
from lorabench.report.style import FACTOR_STYLES, draw_chance, ended, errors, legend_below, percents, ring
from lorabench.results import Result

__all__ = ["attribution_figure", "redundancy_figure"]


def attribution_figure(result: Result) -> Figure:
    """Share of the all-layer classifier's attribution against accuracy alone."""
    found = result.ablation["attribution"]
    rows = found["rows"]
    figure, axes = _figure(result, "where the classifier of all layers looks", found)
    shares = [row["share"] for row in rows]
    low = [None if row.get("std") is None else max(row["share"] - row["std"], 0) for row in rows]
    high = [None if row.get("std") is None else row["share"] + row["std"] for row in rows]
    axes.axvline(100 / len(rows), color="black", linestyle=":", linewidth=1, label="equal shares")
    _scatter(axes, result, rows, shares, low, high)
    axes.set_xlabel("share of the attribution, % (± std over seeds)", fontsize=9)
    legend_below(figure, [axes], columns=3)
    return figure


def redundancy_figure(result: Result) -> Figure:
    """What is lost without one layer against accuracy alone."""
    found = result.ablation["redundancy"]
    rows = found["rows"]
    figure, axes = _figure(result, "what is lost without one layer", found)
    axes.axvline(0, color="black", linestyle=":", linewidth=1, label="nothing lost")
    drops = [row["drop"] for row in rows]
    _scatter(axes, result, rows, drops, [row.get("low") for row in rows], [row.get("high") for row in rows])
    axes.set_xlabel("test accuracy of all layers minus that without the one, points (95 % interval)", fontsize=9)
    legend_below(figure, [axes], columns=3)
    return figure


def _figure(result: Result, text: str, found: dict[str, Any]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 5.2), layout="constrained")
    axes = figure.subplots()
    tau = found.get("kendall_tau")
    agreement = "" if tau is None else f" (Kendall's τ {tau:.2f})"
    axes.set_title(
        ended(result, f"{result.dataset['name']}, {found['representation']}: {text}{agreement}"), fontsize=10
    )
    axes.set_ylabel("test accuracy of the layer alone, %", fontsize=9)
    draw_chance(axes, result)
    tidy(axes, "both")
    return figure, axes


def _scatter(
    axes: Axes,
    result: Result,
    rows: Sequence[dict[str, Any]],
    values: Sequence[float | int | None],
    low: Sequence[float | int | None],
    high: Sequence[float | int | None],
) -> None:
    factors = [place(row["layer"]).factor for row in rows]
    x, y = percents(values), percents([row["accuracy"] for row in rows])
    bars = errors(x, low, high)
    for factor, (colour, marker) in FACTOR_STYLES.items():
        chosen = [i for i, found in enumerate(factors) if found == factor]
        if chosen:
            axes.errorbar(
                x[chosen], y[chosen], xerr=bars[:, chosen], fmt=marker, color=colour, alpha=0.8,
                markersize=4.5, elinewidth=0.6, label=factor or "module",
            )  # fmt: skip
    best, best_label = marked_units(result)
    marked = [i for i, row in enumerate(rows) if row["layer"] in best]
    if marked:
        ring(axes, x[marked].tolist(), y[marked].tolist(), best_label)
