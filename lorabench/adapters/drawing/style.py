"""What all pictures of an adapter share: colours, sizes, how "untrained" looks, and how a figure is written."""

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from lorabench.errors import LorabenchError
from lorabench.storage import write_chunks

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "SERIES",
    "UNTRAINED",
    "count_axis",
    "hatch",
    "house",
    "log_axis",
    "new_figure",
    "save",
    "say",
    "tidy",
    "untrained_patch",
]

# Okabe & Ito 2008, as in the report: told apart by colour-blind readers.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
SERIES = (
    (BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), ("#CC79A7", "D"), ("#56B4E9", "v"), ("#E69F00", "P"),
    ("#882255", "X"), ("#000000", "<"), ("#8B5A2B", ">"), ("#F0E442", "p"),
)  # fmt: skip
"""Colours and markers of up to ten series."""

UNTRAINED = "untrained (ΔW = 0)"

_SETTINGS: dict[Any, Any] = {
    "axes.labelsize": 8,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "figure.titlesize": 11,
    "font.family": "DejaVu Sans",  # comes with matplotlib: one picture on every machine
    "font.size": 8,
    "hatch.color": "0.6",
    "hatch.linewidth": 0.6,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "svg.hashsalt": "lorabench",
    "text.parse_math": False,  # a dollar sign in a module's name is a dollar sign
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}
_LOCK = threading.RLock()


@contextmanager
def house() -> Iterator[None]:
    """The look of all pictures; settings are of the whole process, so threads draw one after the other."""
    with _LOCK, mpl.rc_context({**mpl.rcParamsDefault, **_SETTINGS, "backend": "agg"}):
        yield


def new_figure(width: float | int, height: float | int, title: str) -> Figure:
    """An empty figure of this size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure, whole or not at all, and free it; the same figure gives the same bytes.

    Args:
        figure: drawn within `house`.
        path: ends in .png or .svg.

    Raises:
        LorabenchError: another ending, or the disk refuses.
    """
    kind = path.suffix.lower()
    if kind not in (".png", ".svg"):
        raise LorabenchError(f"{path}: a picture is written as .png or .svg. Give a path that ends so.")
    data = io.BytesIO()
    figure.savefig(data, format=kind[1:], dpi=130, metadata={"Date" if kind == ".svg" else "Software": None})
    figure.clear()
    write_chunks(path, [data.getvalue()])
    return path


def tidy(axes: Axes, grid: Literal["both", "x", "y"] = "y") -> None:
    """Light grid lines behind the data, no box."""
    axes.grid(axis=grid, color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def log_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis with plain numbers, enough of them on a short span too; its limits are set and positive."""
    axes.set_xscale("log") if which == "x" else axes.set_yscale("log")
    axis, (low, high) = (axes.xaxis, axes.get_xlim()) if which == "x" else (axes.yaxis, axes.get_ylim())
    ratio = high / low
    few = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10])
    axis.set_major_locator(few if ratio < 8 else LogLocator(subs=(1, 2, 5) if ratio < 1000 else (1,), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def count_axis(axis: Axis) -> None:
    """Whole numbers at the ticks, be it one alone."""
    axis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))


def say(axes: Axes, text: str) -> None:
    """Words in place of data that is not there."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def hatch(axes: Axes, marked: Bool[np.ndarray, " n"] | Sequence[bool]) -> None:
    """Hatched bands along x over the places that are marked; neighbours are one band."""
    at = np.flatnonzero(np.asarray(marked, dtype=bool))
    for run in np.split(at, np.flatnonzero(np.diff(at) > 1) + 1):
        if len(run):
            axes.axvspan(run[0] - 0.5, run[-1] + 0.5, facecolor="0.93", hatch="////", edgecolor="0.6", linewidth=0)


def untrained_patch(text: str = UNTRAINED) -> Patch:
    """For legends: what the hatching means."""
    return Patch(facecolor="0.93", hatch="////", edgecolor="0.6", linewidth=0, label=text)
