"""What sets something of each layer beside what it alone predicts: a caption, and a scatter plot."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorabench.adapters.places import place
from lorabench.findings import RankedFinding
from lorabench.pictures import tidy
from lorabench.report.numbers import percent
from lorabench.report.ranked import BEST, marked_units
from lorabench.report.style import FACTOR_STYLES, draw_chance, ended, errors, percents, ring
from lorabench.results import Result

__all__ = ["alone_axes", "beside_alone", "scatter"]


@runtime_checkable
class _Alone(Protocol):
    @property
    def layer(self) -> str: ...
    @property
    def accuracy(self) -> float | None: ...


def beside_alone(result: Result, found: RankedFinding, text: str, count: int, tau: float | None) -> list[str]:
    """The caption of a table that sets something of each layer beside its accuracy alone."""
    more = f"the first {BEST} of {count}, all are in results.json" if count > BEST else f"all {count}"
    agreement = "" if tau is None else f" · Kendall's τ with the accuracy alone {tau:.2f}"
    alone = f"alone: test accuracy of {found.baseline} of one layer"
    return [text, f"{more} · {alone} · chance {percent(result.chance)}{agreement}"]


def alone_axes(result: Result, representation: str, text: str, tau: float | None) -> tuple[Figure, Axes]:
    """A figure whose y is the accuracy of a layer alone."""
    figure = Figure(figsize=(7.5, 5.2), layout="constrained")
    axes = figure.subplots()
    agreement = "" if tau is None else f" (Kendall's τ {tau:.2f})"
    axes.set_title(ended(result, f"{result.dataset['name']}, {representation}: {text}{agreement}"), fontsize=10)
    axes.set_ylabel("test accuracy of the layer alone, %", fontsize=9)
    draw_chance(axes, result)
    tidy(axes, "both")
    return figure, axes


def scatter(
    axes: Axes,
    found: RankedFinding,
    rows: Sequence[_Alone],
    values: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
) -> None:
    """A point a layer, a colour a factor; rings round the best of the ranking."""
    factors = [place(row.layer).factor for row in rows]
    x, y = percents(values), percents([row.accuracy for row in rows])
    bars = errors(x, low, high)
    for factor, (colour, marker) in FACTOR_STYLES.items():
        chosen = [i for i, own in enumerate(factors) if own == factor]
        if chosen:
            axes.errorbar(
                x[chosen], y[chosen], xerr=bars[:, chosen], fmt=marker, color=colour, alpha=0.8,
                markersize=4.5, elinewidth=0.6, label=factor or "module",
            )  # fmt: skip
    best, best_label = marked_units(found)
    marked = [i for i, row in enumerate(rows) if row.layer in best]
    if marked:
        ring(axes, x[marked].tolist(), y[marked].tolist(), best_label)
