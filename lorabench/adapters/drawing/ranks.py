"""Rank analysis: spectra, energy, and effective rank along the depth."""

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lorabench.adapters.adapter import Adapter
from lorabench.adapters.drawing.depth import depth_axis, depth_width
from lorabench.adapters.drawing.names import counted, drawable, shortened, titled
from lorabench.adapters.drawing.places import families
from lorabench.adapters.drawing.spectra import Spectra, spectra
from lorabench.adapters.drawing.style import (
    GREY,
    SERIES,
    count_axis,
    hatch,
    log_axis,
    new_figure,
    say,
    tidy,
    untrained_patch,
)

__all__ = ["ranks_figure"]

_SPAN = 1e-9  # of σ: one module of nearly nothing must not press all others together
_NOTHING = "untrained (ΔW = 0): no spectrum"


def ranks_figure(adapter: Adapter) -> Figure:
    """Singular values and cumulative energy of all modules; effective rank and spectra by depth."""
    found = spectra(adapter)
    width = depth_width(len(found.modules))
    figure = new_figure(width, 11.0, titled(adapter, f"ranks of {counted(len(found.modules))}"))
    panels = figure.subplot_mosaic(
        [["spectra", "energy"], ["depth", "depth"], ["heat", "heat"]], height_ratios=(1.0, 1.15, 0.95)
    )
    _spectra(panels["spectra"], found)
    _energy(figure, panels["energy"], found)
    _by_depth(panels["depth"], found, 0.88 * width)
    _heat(figure, panels["heat"], found, 0.88 * width)
    return figure


def _lines(axes: Axes, height: Float64[np.ndarray, "n r"]) -> LineCollection | None:
    """A line of every trained module along the index of the singular value, coloured by depth."""
    index = np.arange(1, height.shape[1] + 1)
    drawn = [i for i in range(len(height)) if np.isfinite(height[i]).any()]
    if not drawn:
        say(axes, _NOTHING)
        return None
    depth = Normalize(0, max(len(height) - 1, 1))
    lines = LineCollection(
        [np.column_stack([index, height[i]])[np.isfinite(height[i])] for i in drawn],
        array=np.array(drawn, dtype=np.float64), cmap="viridis", norm=depth,
        linewidths=1.0 if len(drawn) < 60 else 0.6, alpha=0.85 if len(drawn) < 60 else 0.5,
    )  # fmt: skip
    axes.add_collection(lines)
    # A rank of 1 has a point and no line.
    dotted = [i for i in drawn if height.shape[1] <= 16 or np.isfinite(height[i]).sum() < 3]
    x, y = np.tile(index, len(dotted)), height[dotted].ravel()
    axes.scatter(x, y, c=np.repeat(dotted, len(index)), cmap="viridis", norm=depth, s=7, linewidths=0)
    axes.set_xlim(0.5, max(height.shape[1], 2) + 0.5)
    count_axis(axes.xaxis)
    axes.set_xlabel("index of the singular value")
    tidy(axes, "both")
    return lines


def _spectra(axes: Axes, found: Spectra) -> None:
    values = np.where(found.sigma > 0, found.sigma, np.nan)
    values[found.relative < 1e-7] = np.nan
    axes.set_title("singular values σ of ΔW")
    if _lines(axes, values) is not None:
        high = float(np.nanmax(values))
        low = float(values[values > high * _SPAN].min())
        below = int((values < low).any(axis=1).sum())
        if below:
            axes.set_xlabel(f"index of the singular value; below the panel: values of {counted(below)}")
        axes.set_ylim(low / 1.3, high * 1.3)
        log_axis(axes, "y")


def _energy(figure: Figure, axes: Axes, found: Spectra) -> None:
    axes.set_title("energy in the first values, Σσ² of the whole; dashed: 90 %")
    lines = _lines(axes, found.energy)
    if lines is None:
        return
    axes.axhline(0.9, color=GREY, linestyle="--", linewidth=1)
    axes.set_ylim(min(0.85, float(np.nanmin(found.energy)) - 0.05), 1.02)
    bar = figure.colorbar(lines, ax=axes, pad=0.02, aspect=30)
    bar.set_label("module along the depth (first 0)")
    bar.locator = MaxNLocator(integer=True, nbins=5)
    bar.update_ticks()
    if bar.solids is not None:
        bar.solids.set_alpha(1.0)  # the lines are translucent, their key need not be


def _by_depth(axes: Axes, found: Spectra, width: float) -> None:
    count = len(found.modules)
    axes.set_title("effective rank by depth (exp of the entropy of σ/Σσ)")
    x = np.arange(count)
    axes.hlines(found.rank, x - 0.5, x + 0.5, color="0.55", linewidth=1.0, label="nominal rank")
    trained = ~found.untrained
    axes.plot(
        x[trained], found.energy_rank[trained], "_", color="0.35", markersize=5 if count > 80 else 9,
        label="values with 90 % of the energy",
    )  # fmt: skip
    for (name, mine), (colour, marker) in zip(families(found.modules, len(SERIES)).items(), SERIES, strict=False):
        at = np.array([i for i in mine if trained[i]], dtype=np.int64)
        if len(at):
            label = drawable(shortened(name, 28))
            axes.plot(at, found.effective_rank[at], marker, color=colour, markersize=4.5, label=label)
    hatch(axes, found.untrained)
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(
        handles=[*handles, *([untrained_patch()] if found.untrained.any() else [])],
        loc="upper left", bbox_to_anchor=(0, -0.02), ncols=max(int(width // 1.9), 2), borderaxespad=0,
    )  # fmt: skip
    axes.set_ylim(0, float(found.rank.max()) * 1.06 + 0.1)
    count_axis(axes.yaxis)
    axes.set_ylabel("rank")
    tidy(axes)
    depth_axis(axes, found.modules, width, labels=False)


def _heat(figure: Figure, axes: Axes, found: Spectra, width: float) -> None:
    axes.set_title("σ/σ₁ by depth; light grey: no such value, or lost in rounding")
    if found.untrained.all():
        say(axes, _NOTHING)
        return
    axes.set_facecolor("0.9")
    decibels = np.log10(found.relative.T)
    low = max(float(np.nanpercentile(decibels, 2)), -6.0)
    image = axes.imshow(
        decibels, aspect="auto", cmap="viridis", interpolation="nearest", vmin=min(low, -0.3), vmax=0, origin="upper",
        extent=(-0.5, len(found.modules) - 0.5, found.sigma.shape[1] + 0.5, 0.5),
    )  # fmt: skip
    hatch(axes, found.untrained)
    axes.set_ylabel("index of the value")
    count_axis(axes.yaxis)
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=25, extend="min")
    bar.set_label("log₁₀ σ/σ₁")
    depth_axis(axes, found.modules, width)
