"""Heat maps of weights: both factors and ΔW's blocks, a line of three panels for each module."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from lorabench.adapters import drawing
from lorabench.adapters.drawing.subject import Subject
from lorabench.errors import LorabenchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "ADAPTERS",
    "PAGE",
    "PATTERN",
    "WeightMap",
    "block_rms",
    "chosen_modules",
    "draw",
    "measure",
    "strongest_of_bins",
    "weight_map",
]

ADAPTERS, PATTERN = 1, True

PAGE = 8
"""Modules on a page."""

_BINS, _CELLS = 384, 48
_WHAT = ("down [r × inputs]", "up, transposed [r × outputs]", "RMS of ΔW in blocks\n[outputs × inputs]")
_COLOURS = ("RdBu_r", "RdBu_r", "viridis")
_TOP, _BOTTOM = 0.19, 0.85  # of a line: the module's name is above the panels, their numbers below


@dataclass(frozen=True)
class WeightMap:
    """What is drawn of one module.

    Attributes:
        module: its name.
        norm: ‖ΔW‖_F.
        shape: (d_out, d_in) of ΔW.
        down: [r, bins], of each bin of columns the weight of the largest magnitude.
        up: [r, bins], the same of up transposed.
        delta: [cells, cells], root mean square of ΔW in a block of rows (outputs) and columns (inputs).
    """

    module: str
    norm: float
    shape: tuple[int, int]
    down: Float64[np.ndarray, "r down_bins"]
    up: Float64[np.ndarray, "r up_bins"]
    delta: Float64[np.ndarray, "out_cells in_cells"]


@dataclass(frozen=True)
class Page:
    """One picture.

    Attributes:
        name: of the file.
        what: is drawn of it, with the number of the page.
        maps: the lines.
        limits: of the colours of down, up and ΔW, the same on all pages; the strongest 0.5 % may exceed them.
    """

    name: str
    what: str
    maps: tuple[WeightMap, ...]
    limits: tuple[float, float, float]


def measure(subject: Subject) -> Sequence[Page]:
    """Pages of `PAGE` modules."""
    names = chosen_modules(subject)
    maps = [weight_map(subject, name) for name in names]
    # Of each panel its own: the gauge shifts size between down and up.
    down, up, delta = (_limit([getattr(each, panel) for each in maps]) for panel in ("down", "up", "delta"))
    starts = range(0, len(names), PAGE)
    pattern = subject.pattern
    chosen = "the strongest modules" if pattern is None else f"modules {pattern if len(pattern) <= 30 else '...'}"
    what = f"weights of {chosen} ({len(names)} of {len(subject.modules)})"
    return [
        Page(
            subject.title,
            f"{what}, page {number} of {len(starts)}" if len(starts) > 1 else what,
            tuple(maps[start : start + PAGE]),
            (down, up, delta),
        )
        for number, start in enumerate(starts, 1)
    ]


def chosen_modules(subject: Subject) -> tuple[str, ...]:
    """The modules that fit the pattern in depth order; without one, the `PAGE` of the largest ‖ΔW‖_F, strongest first.

    Raises:
        LorabenchError: none fits.
    """
    names, pattern = subject.modules, subject.pattern
    if pattern is None:
        return tuple(names[i] for i in np.argsort(-subject.spectra.norm, kind="stable")[:PAGE])
    fitting = tuple(name for name in names if fnmatchcase(name, pattern))
    if not fitting:
        raise LorabenchError(
            f"{subject.adapter.path}: no module fits --modules {pattern!r}. Its {len(names)} modules are called "
            f'{", ".join(names[:3])}, ...; a pattern has stars: "*{names[0].rpartition(".")[2]}".'
        )
    return fitting


def weight_map(subject: Subject, name: str) -> WeightMap:
    """The three panels of a module."""
    down, up, scale = subject.factors(name)
    return WeightMap(
        module=name,
        norm=float(subject.spectra.norm[subject.modules.index(name)]),
        shape=(len(up), down.shape[1]),
        down=strongest_of_bins(down, _BINS),
        up=strongest_of_bins(up.T, _BINS),
        delta=block_rms(down, up, scale, _CELLS),
    )


def strongest_of_bins(matrix: Float64[np.ndarray, "rows cols"], most: int) -> Float64[np.ndarray, "rows bins"]:
    """At most so many bins of neighbouring columns, and of each the value of the largest magnitude, with its sign."""
    starts = [part[0] for part in np.array_split(np.arange(matrix.shape[1]), min(most, matrix.shape[1]))]
    low, high = (ufunc.reduceat(matrix, starts, axis=1) for ufunc in (np.minimum, np.maximum))
    return np.where(high >= -low, high, low)


def block_rms(
    down: Float64[np.ndarray, "r d_in"], up: Float64[np.ndarray, "d_out r"], scale: float, most: int
) -> Float64[np.ndarray, "out_cells in_cells"]:
    """Root mean square of ΔW in at most `most` × `most` blocks of neighbouring rows and columns.

    The energy of a block is Σ (up_Iᵀ·up_I) ∘ (down_J·down_Jᵀ): r×r matrices alone, no dense ΔW.
    """
    ups = np.array_split(up, min(most, len(up)))
    downs = np.array_split(down, min(most, down.shape[1]), axis=1)
    gram_up = np.stack([(part.T @ part).ravel() for part in ups])
    gram_down = np.stack([(part @ part.T).ravel() for part in downs])
    sizes = np.outer([len(part) for part in ups], [part.shape[1] for part in downs])
    rms: Float64[np.ndarray, "out_cells in_cells"] = abs(scale) * np.sqrt(np.maximum(gram_up @ gram_down.T, 0) / sizes)
    return rms


def _limit(maps: Sequence[Float64[np.ndarray, "..."]]) -> float:
    values = np.abs(np.concatenate([panel.ravel() for panel in maps]))
    return float(np.percentile(values, 99.5)) or float(values.max()) or 1.0


def draw(page: Page) -> "Figure":
    """A line a module; each column of panels is one axes, since axes are what takes the time."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    panels = drawing.panels
    figure = panels.new_figure(12.5, 1.3 * len(page.maps) + 1.5, page.name, page.what)
    columns = figure.subplots(1, 3, width_ratios=(1, 1, 0.42))
    for line, shown in enumerate(page.maps):
        (d_out, d_in), rank = shown.shape, len(shown.down)
        title = f"{panels.shortened(shown.module, 84)}   rank {rank}, ‖ΔW‖_F {shown.norm:.3g}"
        name = columns[0].text(0, line + _TOP - 0.04, panels.drawable(title), fontsize=8, va="bottom")
        name.set_in_layout(False)  # it may reach above the next panel, which has nothing there
        _panel(columns[0], line, shown.down, page.limits[0], (rank, d_in), "all 0")
        _panel(columns[1], line, shown.up, page.limits[1], (rank, d_out), "all 0")
        _panel(columns[2], line, shown.delta, page.limits[2], (d_out, d_in), panels.UNTRAINED)
    for number, (axes, limit, what, colours) in enumerate(zip(columns, page.limits, _WHAT, _COLOURS, strict=True)):
        axes.set_axis_off()
        axes.set_xlim(0, 1)
        axes.set_ylim(len(page.maps), 0)
        low = 0.0 if number == 2 else -limit
        bar = figure.colorbar(
            ScalarMappable(Normalize(low, limit), colours), ax=axes, location="bottom",
            aspect=40 if number < 2 else 17, pad=0.02, extend="max" if number == 2 else "both",
        )  # fmt: skip
        bar.set_label(what)
        bar.ax.locator_params(nbins=5 if number < 2 else 3)
    return figure


def _panel(
    axes: "Axes",
    line: int,
    values: Float64[np.ndarray, "rows cols"],
    limit: float,
    shape: tuple[int, int],
    nothing: str,
) -> None:
    """One heat map; its numbers count rows and columns of the matrix itself, not of the bins."""
    from matplotlib.patches import Rectangle

    top, bottom = line + _TOP, line + _BOTTOM
    delta = nothing == drawing.panels.UNTRAINED
    frame = Rectangle((0, top), 1, bottom - top, facecolor="none", edgecolor="black", linewidth=0.8, clip_on=False)
    axes.add_patch(frame)
    if not values.any():
        frame.set_facecolor("0.93")
        grey = drawing.panels.GREY
        axes.text(0.5, (top + bottom) / 2, nothing, ha="center", va="center", color=grey, fontsize=9)
        return
    axes.imshow(
        values, aspect="auto", interpolation="nearest", cmap=_COLOURS[2 if delta else 0],
        vmin=0 if delta else -limit, vmax=limit, extent=(0, 1, bottom, top),
    )  # fmt: skip
    for x, text, side in ((0, "0", "left"), (1, str(shape[1]), "right")):
        axes.text(x, bottom + 0.03, text, fontsize=7, ha=side, va="top")
    beside = axes.get_yaxis_transform()
    for y, text, side in ((top, "0", "top"), (bottom, str(shape[0]), "bottom")):
        axes.text(-0.008, y, text, fontsize=7, ha="right", va=side, transform=beside)
