"""Where the attention over modules goes."""

import functools
import math
from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from lorabench.ablation.attention import AttentionFinding
from lorabench.report.alone import alone_axes, beside_alone, scatter
from lorabench.report.numbers import percent, spread
from lorabench.report.ranked import BEST, sheet_title
from lorabench.report.style import legend_below
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["figures", "sheets"]


def sheets(result: Result, found: AttentionFinding) -> list[Sheet]:
    """The shares, most looked at first."""
    shares = found.attention
    rows = sorted(shares.rows, key=lambda row: -row.share)
    said = "attention over modules, mean over the test adapters, share ± std over seeds, in %"
    caption = beside_alone(result, found, said, len(rows), shares.kendall_tau)
    if math.isfinite(found.tau_low):
        caption.append(
            f"95 % interval of τ, members and adapters resampled: {found.tau_low:.2f} to {found.tau_high:.2f}"
        )
    return [
        Sheet(
            title=sheet_title(result, f"Which modules {shares.representation} looks at"),
            columns=("module", "share", "alone"),
            rows=[(row.layer, percent(row.share) + spread(row.std), percent(row.accuracy)) for row in rows][:BEST],
            caption=caption,
            text=("module",),
            names=("module",),
            spare=("alone",),
        )
    ]


def figures(result: Result, found: AttentionFinding) -> dict[str, Callable[[], Figure]]:
    """Shares against accuracy alone."""
    return {"attention": functools.partial(_figure, result, found)}


def _figure(result: Result, found: AttentionFinding) -> Figure:
    rows, shares = found.attention.rows, [row.share for row in found.attention.rows]
    text = "which modules are looked at"
    figure, axes = alone_axes(result, found.attention.representation, text, found.attention.kendall_tau)
    low = [float(np.maximum(row.share - row.std, 0)) for row in rows]
    axes.axvline(100 / len(rows), color="black", linestyle=":", linewidth=1, label="equal shares")
    scatter(axes, found, rows, shares, low, [row.share + row.std for row in rows])
    axes.set_xlabel("share of the attention, % (± std over seeds)", fontsize=9)
    legend_below(figure, [axes], columns=3)
    return figure
