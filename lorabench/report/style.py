"""What the report's pictures share: colours and markers of arms and factors, error bars, titles, legends."""

import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorabench.pictures import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE
from lorabench.report.numbers import number
from lorabench.report.ranked import on_test
from lorabench.results import Result

__all__ = [
    "ARM_STYLES",
    "FACTOR_STYLES",
    "draw_chance",
    "ended",
    "errors",
    "legend_below",
    "percents",
    "ring",
    "titled",
    "wrapped",
]

_LETTERS = 11  # of 10 points, an inch

FACTOR_STYLES = {"down": (BLUE, "o"), "up": (ORANGE, "s"), "": (GREEN, "D")}
"""Factor -> colour and marker; "" is a module."""

ARM_STYLES = {
    "none": (BLUE, "o"),
    "top": (ORANGE, "s"),
    "random": (GREEN, "^"),
    "worst": (PURPLE, "D"),
    "permuted": (BLACK, "X"),
}
"""Kind of an arm -> colour and marker."""


def percents(values: Sequence[float | int | None]) -> Float64[np.ndarray, " n"]:
    """Fractions in percent, NaN for null."""
    found: Float64[np.ndarray, " n"] = 100 * np.array([number(value) for value in values], dtype=np.float64)
    return found


def errors(
    middle: Float64[np.ndarray, " n"], low: Sequence[float | int | None], high: Sequence[float | int | None]
) -> Float64[np.ndarray, "2 n"]:
    """Lengths of error bars in percent from the ends of intervals; 0 where an interval is not known."""
    lengths: Float64[np.ndarray, "2 n"] = np.array([middle - percents(low), percents(high) - middle])
    found: Float64[np.ndarray, "2 n"] = np.nan_to_num(np.maximum(lengths, 0))
    return found


def draw_chance(axes: Axes, result: Result, vertical: bool = False) -> None:
    """The line of always naming the most frequent training class."""
    draw = axes.axvline if vertical else axes.axhline
    draw(100 * result.chance, color=GREY, linestyle="--", linewidth=1.2, label="chance", zorder=1)


def ring(axes: Axes, x: Sequence[float], y: Sequence[float], label: str) -> None:
    """Mark points with a black ring."""
    axes.plot(x, y, "o", markersize=10, markerfacecolor="none", markeredgecolor="black", label=label, zorder=4)


def titled(result: Result, text: str) -> str:
    """The title, with the warning that the test split ranked."""
    return f"{text}\nranked on the TEST split: these accuracies are too high" if on_test(result) else text


def ended(result: Result, text: str) -> str:
    """The title of a picture whose order alone comes from the ranking."""
    return f"{text}\nranked on the TEST split" if on_test(result) else text


def wrapped(lines: Sequence[str], inches: float) -> str:
    """Lines of a title of 10 points that fit a figure of this width, long names on several."""
    return "\n".join(part for line in lines for part in textwrap.wrap(line, max(int(_LETTERS * inches), 1)))


def legend_below(figure: Figure, axes: Sequence[Axes], columns: int = 5) -> None:
    """One legend below everything, each label once."""
    found: dict[str, Artist] = {}
    for panel in axes:
        handles, labels = panel.get_legend_handles_labels()
        found |= {label: handle for handle, label in zip(handles, labels, strict=True) if label not in found}
    figure.legend(
        list(found.values()), list(found), fontsize=8, frameon=False, loc="outside lower center", ncols=columns
    )
