"""Rank analysis: spectra, energy, and effective rank along the depth."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from lorabench.adapters import drawing
from lorabench.adapters.drawing.subject import Spectra, Subject

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

__all__ = ["ADAPTERS", "PATTERN", "draw", "measure"]

ADAPTERS, PATTERN = 1, False

_SPAN = 1e-9  # of σ: one module of nearly nothing must not press all others together
_NOTHING = "untrained (ΔW = 0): no spectrum"


def measure(subject: Subject) -> Sequence[tuple[str, Spectra]]:
    """The file's name, and the spectra."""
    return [(subject.title, subject.spectra)]


def draw(page: tuple[str, Spectra]) -> "Figure":
    """Singular values and cumulative energy of all modules; effective rank and spectra by depth."""
    name, spectra = page
    width = drawing.panels.depth_width(len(spectra.modules))
    figure = drawing.panels.new_figure(width, 11.0, name, f"ranks of {drawing.panels.counted(len(spectra.modules))}")
    panels = figure.subplot_mosaic(
        [["spectra", "energy"], ["depth", "depth"], ["heat", "heat"]], height_ratios=(1.0, 1.15, 0.95)
    )
    _spectra(panels["spectra"], spectra)
    _energy(figure, panels["energy"], spectra)
    _by_depth(panels["depth"], spectra, 0.88 * width)
    _heat(figure, panels["heat"], spectra, 0.88 * width)
    return figure


def _lines(axes: "Axes", height: Float64[np.ndarray, "n r"]) -> "LineCollection | None":
    """A line of every trained module along the index of the singular value, coloured by depth."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize

    index = np.arange(1, height.shape[1] + 1)
    drawn = [i for i in range(len(height)) if np.isfinite(height[i]).any()]
    if not drawn:
        drawing.panels.words_instead(axes, _NOTHING)
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
    drawing.panels.count_axis(axes.xaxis)
    axes.set_xlabel("index of the singular value")
    drawing.panels.tidy(axes, "both")
    return lines


def _spectra(axes: "Axes", spectra: Spectra) -> None:
    values = np.where(spectra.sigma > 0, spectra.sigma, np.nan)
    values[spectra.relative < 1e-7] = np.nan
    axes.set_title("singular values σ of ΔW")
    if _lines(axes, values) is not None:
        high = float(np.nanmax(values))
        low = float(values[values > high * _SPAN].min())
        below = int((values < low).any(axis=1).sum())
        if below:
            axes.set_xlabel(f"index of the singular value; below the panel: values of {drawing.panels.counted(below)}")
        axes.set_ylim(low / 1.3, high * 1.3)
        drawing.panels.log_axis(axes, "y")


def _energy(figure: "Figure", axes: "Axes", spectra: Spectra) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title("energy in the first values, Σσ² of the whole; dashed: 90 %")
    lines = _lines(axes, spectra.energy)
    if lines is None:
        return
    axes.axhline(0.9, color=drawing.panels.GREY, linestyle="--", linewidth=1)
    axes.set_ylim(min(0.85, float(np.nanmin(spectra.energy)) - 0.05), 1.02)
    bar = figure.colorbar(lines, ax=axes, pad=0.02, aspect=30)
    bar.set_label("module along the depth (first 0)")
    bar.locator = MaxNLocator(integer=True, nbins=5)
    bar.update_ticks()
    if bar.solids is not None:
        bar.solids.set_alpha(1.0)  # the lines are translucent, their key need not be


def _by_depth(axes: "Axes", spectra: Spectra, width: float) -> None:
    count = len(spectra.modules)
    axes.set_title("effective rank by depth (exp of the entropy of σ/Σσ)")
    x = np.arange(count)
    axes.hlines(spectra.rank, x - 0.5, x + 0.5, color="0.55", linewidth=1.0, label="nominal rank")
    trained = ~spectra.untrained
    axes.plot(
        x[trained], spectra.energy_rank[trained], "_", color="0.35", markersize=5 if count > 80 else 9,
        label="values with 90 % of the energy",
    )  # fmt: skip
    for (name, mine), (colour, marker) in zip(
        drawing.panels.families(spectra.modules, len(drawing.panels.SERIES)).items(),
        drawing.panels.SERIES,
        strict=False,
    ):
        at = np.array([i for i in mine if trained[i]], dtype=np.int64)
        if len(at):
            label = drawing.panels.drawable(drawing.panels.shortened(name, 28))
            axes.plot(at, spectra.effective_rank[at], marker, color=colour, markersize=4.5, label=label)
    drawing.panels.hatch(axes, spectra.untrained)
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(
        handles=[*handles, *([drawing.panels.untrained_patch()] if spectra.untrained.any() else [])],
        loc="upper left", bbox_to_anchor=(0, -0.02), ncols=max(int(width // 1.9), 2), borderaxespad=0,
    )  # fmt: skip
    axes.set_ylim(0, float(spectra.rank.max()) * 1.06 + 0.1)
    drawing.panels.count_axis(axes.yaxis)
    axes.set_ylabel("rank")
    drawing.panels.tidy(axes)
    drawing.panels.depth_axis(axes, spectra.modules, width, labels=False)


def _heat(figure: "Figure", axes: "Axes", spectra: Spectra, width: float) -> None:
    axes.set_title("σ/σ₁ by depth; light grey: no such value, or lost in rounding")
    if spectra.untrained.all():
        drawing.panels.words_instead(axes, _NOTHING)
        return
    axes.set_facecolor("0.9")
    decibels = np.log10(spectra.relative.T)
    low = max(float(np.nanpercentile(decibels, 2)), -6.0)
    image = axes.imshow(
        decibels, aspect="auto", cmap="viridis", interpolation="nearest", vmin=min(low, -0.3), vmax=0, origin="upper",
        extent=(-0.5, len(spectra.modules) - 0.5, spectra.sigma.shape[1] + 0.5, 0.5),
    )  # fmt: skip
    drawing.panels.hatch(axes, spectra.untrained)
    axes.set_ylabel("index of the value")
    drawing.panels.count_axis(axes.yaxis)
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=25, extend="min")
    bar.set_label("log₁₀ σ/σ₁")
    drawing.panels.depth_axis(axes, spectra.modules, width)
