"""What the panels of an adapter's pictures share: axes, the depth of the network along x, how "untrained" looks."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import blended_transform_factory

from lorabench.adapters.places import Place, block_labels, kinds_in_order, place
from lorabench.pictures import BLUE, GREEN, GREY, ORANGE, SERIES, drawable, shortened, tidy

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "MODULE_LABELS",
    "ORANGE",
    "SERIES",
    "UNTRAINED",
    "count_axis",
    "counted",
    "depth_axis",
    "depth_width",
    "drawable",
    "families",
    "hatch",
    "log_axis",
    "new_figure",
    "shortened",
    "tidy",
    "untrained_patch",
    "words_instead",
]

UNTRAINED = "untrained (ΔW = 0)"

MODULE_LABELS = 40
"""Up to so many modules are each named; of more, the blocks are."""

_HATCHED = {"facecolor": "0.93", "hatch": "////", "edgecolor": "0.6", "linewidth": 0}
_INCHES_A_LABEL = 0.145
_INCHES_A_LETTER = 0.061  # at 7 points


def new_figure(width: float | int, height: float | int, name: str, what: str = "") -> Figure:
    """An empty figure of this size in inches, whose title names the file, and says what is drawn of it."""
    title = drawable(f"{shortened(name, 60)}: {what}" if what else name)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


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


def words_instead(axes: Axes, text: str) -> None:
    """Words in place of data that is not there."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def hatch(axes: Axes, marked: Bool[np.ndarray, " n"] | Sequence[bool]) -> None:
    """Hatched bands along x over the places that are marked; neighbours are one band."""
    at = np.flatnonzero(np.asarray(marked, dtype=bool))
    for run in np.split(at, np.flatnonzero(np.diff(at) > 1) + 1):
        if len(run):
            axes.axvspan(run[0] - 0.5, run[-1] + 0.5, **_HATCHED)  # type: ignore[arg-type]


def untrained_patch(text: str = UNTRAINED) -> Patch:
    """For legends: what the hatching means."""
    return Patch(label=text, **_HATCHED)  # type: ignore[arg-type]


def depth_width(count: int) -> float:
    """Inches of a figure with so many modules along x."""
    return min(max(0.22 * count + 2.5, 8.0), 13.0)


def depth_axis(
    axes: Axes, modules: Sequence[str], width: float | int, labels: bool = True, groups: bool = True
) -> None:
    """Ticks where blocks begin, lines and names where parts of the network do.

    Args:
        axes: x is the index into `modules`.
        modules: in depth order.
        width: inches of the axes, about.
        labels: whether to name the ticks; of panels that share x the lowest alone needs it.
        groups: whether to name the parts above the panel, below its title, which must be set before.
    """
    axes.set_xlim(-0.5, len(modules) - 0.5)
    places = [place(module) for module in modules]
    axes.set_xticks(*(_ticks(places, width) if labels else ([], [])), rotation=90)
    axes.tick_params(axis="x", length=2)
    keys = [(where.part, where.stage) for where in places]
    starts = _starts(keys)
    if len(starts) == 1 or len(starts) > 24:
        return
    if groups:
        axes.set_title(axes.get_title(loc="left"), pad=15)
    inch = width / len(modules)
    above = blended_transform_factory(axes.transData, axes.transAxes)
    shown = ""
    for start, stop in zip(starts, [*starts[1:], len(modules)], strict=True):
        if start:
            axes.axvline(start - 0.5, color="0.75", linewidth=0.8, zorder=0.5)
        part, stage = keys[start]
        short = stage.removesuffix("_blocks").removesuffix("_block").rpartition(".")[2]
        wishes = (short,) if part in (shown, "model") else (f"{part} {short}".strip(), part)
        room = int((stop - start) * inch / _INCHES_A_LETTER)
        name = next((wish for wish in wishes if len(wish) <= room), "")
        if groups and name:
            axes.text(start - 0.4, 1.01, drawable(name), transform=above, fontsize=7, color=GREY, va="bottom")
            shown = part


def _starts(keys: Sequence[object]) -> list[int]:
    return [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]


def _ticks(places: Sequence[Place], width: float | int) -> tuple[list[int], list[str]]:
    """As many places and names as there is room for."""
    if len(places) <= MODULE_LABELS:
        blocks, _ = block_labels([where.block for where in places])
        names = [_module_label(where, label) for where, label in zip(places, blocks, strict=True)]
        return list(range(len(places))), [drawable(shortened(name, 32)) for name in names]
    starts = _starts([(where.part, where.block, where.inner or 0) for where in places])
    several = {where.block for where in places if where.inner}
    blocks, _ = block_labels([places[i].block for i in starts])
    blocks = [
        f"{label}#{places[i].inner or 0}" if places[i].block in several else label
        for i, label in zip(starts, blocks, strict=True)
    ]
    gap = _INCHES_A_LABEL * len(places) / width
    ticks: list[int] = []
    names = []
    for start, label in zip(starts, blocks, strict=True):
        if not ticks or start - ticks[-1] >= gap:
            ticks.append(start)
            names.append(drawable(shortened(label, 24)))
    return ticks, names


def _module_label(where: Place, block: str) -> str:
    if where.counted:
        return where.kind
    inner = f"#{where.inner}" if where.inner else ""
    return f"{block}{inner} {where.kind}" if where.block else where.kind


def counted(modules: int) -> str:
    """So many modules, in words.

    >>> counted(1), counted(264)
    ('1 module', '264 modules')
    """
    return f"{modules} module{'' if modules == 1 else 's'}"


def families(modules: Sequence[str], most: int) -> dict[str, tuple[int, ...]]:
    """The modules' indices by kind, for colours: by the kind's first word where kinds are too many, the rarest as one.

    Args:
        modules: names.
        most: families that can be told apart.

    Returns:
        Kind ("attn1.to_q", or "attn1", or "other"; "module" where names only count) -> indices into `modules`.
    """
    places = [place(module) for module in modules]
    if any(where.counted for where in places):
        return {"module": tuple(range(len(modules)))}
    names = [where.kind for where in places]
    if len(set(names)) > most:
        names = [name.split(".")[0] for name in names]
    order = list(kinds_in_order(names))
    if len(order) > most:
        common = {name for name, _ in Counter(names).most_common(most - 1)}
        names = [name if name in common else "other" for name in names]
        order = [name for name in order if name in common] + ["other"]
    return {kind: tuple(i for i, name in enumerate(names) if name == kind) for kind in order}
