"""Where the classifier of all layers looks."""

import functools
from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from lorabench.ablation.attribution import AttributionFinding
from lorabench.report.alone import alone_axes, beside_alone, scatter
from lorabench.report.numbers import percent, spread
from lorabench.report.ranked import BEST, sheet_title
from lorabench.report.style import legend_below
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["figures", "sheets"]


def sheets(result: Result, found: AttributionFinding) -> list[Sheet]:
    """The shares."""
    return [_table(result, found)]


def figures(result: Result, found: AttributionFinding) -> dict[str, Callable[[], Figure]]:
    """Shares against accuracy alone."""
    return {"attribution": functools.partial(_figure, result, found)}


def _table(result: Result, found: AttributionFinding) -> Sheet:
    """The layers that the classifier of all layers leans on."""
    shares = found.attribution
    rows = sorted(shares.rows, key=lambda row: -row.share)
    said = "integrated gradients summed by layer, share ± std over seeds, in %"
    return Sheet(
        title=sheet_title(result, f"Where the classifier of {shares.representation} over all layers looks"),
        columns=("layer", "share", "alone"),
        rows=[(row.layer, percent(row.share) + spread(row.std), percent(row.accuracy)) for row in rows][:BEST],
        caption=beside_alone(result, found, said, len(rows), shares.kendall_tau),
        text=("layer",),
        names=("layer",),
        spare=("alone",),
    )


def _figure(result: Result, found: AttributionFinding) -> Figure:
    """Share of the all-layer classifier's attribution against accuracy alone."""
    rows = found.attribution.rows
    figure, axes = alone_axes(
        result,
        found.attribution.representation,
        "where the classifier of all layers looks",
        found.attribution.kendall_tau,
    )
    shares = [row.share for row in rows]
    low = [float(np.maximum(row.share - row.std, 0)) for row in rows]
    high = [row.share + row.std for row in rows]
    axes.axvline(100 / len(rows), color="black", linestyle=":", linewidth=1, label="equal shares")
    scatter(axes, found, rows, shares, low, high)
    axes.set_xlabel("share of the attribution, % (± std over seeds)", fontsize=9)
    legend_below(figure, [axes], columns=3)
    return figure
