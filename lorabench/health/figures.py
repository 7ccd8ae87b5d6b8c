"""Figures of an audit: the rank that every module uses, its dominance, and both over the steps of a training."""

import functools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorabench.adapters.names.identity import component
from lorabench.adapters.places import by_depth
from lorabench.health.auditing import Audit
from lorabench.health.metrics import LoRAAdapterMetrics
from lorabench.health.structure import BANDS
from lorabench.pages.parts import Picture
from lorabench.pages.svg import tip
from lorabench.pictures import BLUE, GREEN, GREY, ORANGE, SERIES, drawable, tidy

__all__ = ["dominance_picture", "draw_steps", "rank_picture", "steps_picture"]

_TIPS = 400  # marks that say what they are, on a page of some hundred kB


def rank_picture(one: Audit) -> Picture | None:
    """Effective rank by depth, beside the nominal one and that of random directions; None where nothing is trained."""
    rows = [row for row in _in_order(one.rows) if row.effective_rank_BA is not None]
    if not rows:
        return None
    used = [row.rank_utilization or 0.0 for row in rows]
    return Picture(
        name="rank used",
        draw=functools.partial(_draw_ranks, rows),
        alt=f"Effective rank of {len(rows)} modules in network order, {min(used):.0%} to {max(used):.0%} of the rank.",
        columns=("module", "nominal_rank", "effective_rank", "effective_rank_by_norms", "stable_rank"),
        rows=[
            (row.module, row.nominal_rank, row.effective_rank_BA, row.effective_rank_norms, row.stable_rank)
            for row in rows
        ],
    )


def _in_order(rows: Sequence[LoRAAdapterMetrics]) -> list[LoRAAdapterMetrics]:
    by_name = {row.module: row for row in rows}
    return [by_name[name] for name in by_depth(list(by_name))]


def _draw_ranks(rows: Sequence[LoRAAdapterMetrics]) -> Figure:
    figure = Figure(figsize=(8.5, 3.2), layout="constrained")
    axes = figure.subplots()
    depth = np.arange(len(rows))
    axes.step(depth, [row.nominal_rank for row in rows], where="mid", color=GREY, linewidth=1.2, label="rank r")
    axes.plot(
        depth, [row.effective_rank_norms or np.nan for row in rows], "_", color=ORANGE, markersize=5,
        label="random directions of the same norms",
    )  # fmt: skip
    axes.plot(depth, [row.stable_rank or np.nan for row in rows], "^", color=GREEN, markersize=3, label="stable rank")
    _marks(axes, rows, [row.effective_rank_BA or np.nan for row in rows], "effective rank")
    _parts(axes, rows)
    axes.set_ylim(0, 1.05 * max(row.nominal_rank for row in rows))
    axes.set_ylabel("rank")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4)
    return figure


def _marks(axes: Axes, rows: Sequence[LoRAAdapterMetrics], values: Sequence[float], what: str) -> None:
    """Points, each of which says what it is where there are not too many."""
    if len(rows) > _TIPS:
        axes.plot(range(len(rows)), values, "o", color=BLUE, markersize=3, label=what)
        return
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        (mark,) = axes.plot([place], [value], "o", color=BLUE, markersize=3.5, label=what if place == 0 else None)
        tip(mark, f"{row.module}: {what} {value:.3g} of {row.nominal_rank}")


def _parts(axes: Axes, rows: Sequence[LoRAAdapterMetrics]) -> None:
    """Lines between the parts of a pipeline, and their names."""
    parts = [component(row.module) for row in rows]
    starts = [i for i, part in enumerate(parts) if i == 0 or parts[i - 1] != part]
    for start in starts[1:]:
        axes.axvline(start - 0.5, color=GREY, linewidth=0.8, linestyle=":")
    ends = [*starts[1:], len(parts)]
    axes.set_xticks([(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)])
    axes.set_xticklabels([drawable(f"{parts[start]}, in network order") for start in starts])
    axes.set_xlim(-0.6, len(parts) - 0.4)
    axes.tick_params(axis="x", length=0)
    tidy(axes)


def dominance_picture(one: Audit) -> Picture | None:
    """ρ by depth with the bands; None without a base."""
    rows = [row for row in _in_order(one.rows) if row.dominance is not None]
    if not rows:
        return None
    values = [row.dominance or 0.0 for row in rows]
    return Picture(
        name="dominance over the base",
        draw=functools.partial(_draw_dominance, rows, values),
        alt=f"σ_max(ΔW) / σ_max(W) of {len(rows)} modules in network order, {min(values):.3g} to {max(values):.3g}.",
        columns=("module", "dominance", "norm_ratio", "sigma_max", "base_sigma_max"),
        rows=[(row.module, row.dominance, row.effective_lr_scale, row.sigma_max, row.base_sigma_max) for row in rows],
    )


def _draw_dominance(rows: Sequence[LoRAAdapterMetrics], values: Sequence[float]) -> Figure:
    figure = Figure(figsize=(8.5, 3.0), layout="constrained")
    axes = figure.subplots()
    top = max(1.1 * max(values), 0.12)
    for name, end in BANDS.items():
        if end > top:  # words outside the axes would take their room
            break
        axes.axhline(end, color=GREY, linewidth=0.7, linestyle="--")
        axes.text(len(rows) - 0.4, end, f"{name} up to {end:g} ", ha="right", va="bottom", fontsize=6.5, color=GREY)
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        (mark,) = axes.plot([place], [value], "o", color=BLUE, markersize=3.5)
        if len(rows) <= _TIPS:
            tip(mark, f"{row.module}: ρ {value:.3g}, ‖ΔW‖ {row.effective_lr_scale or 0:.3g} of ‖W‖")
    _parts(axes, rows)
    axes.set_ylim(0, top)
    axes.set_ylabel("ρ = σ_max(ΔW) / σ_max(W)")
    return figure


def steps_picture(one: Audit) -> Picture | None:
    """Use of the rank and σ₁ over the checkpoints; None of a file that stands alone."""
    if len(one.snapshots) < 2:
        return None
    steps = [snapshot.step or 0 for snapshot in one.snapshots]
    used = _over_steps(one, "rank_utilization")
    sigma = _over_steps(one, "sigma_max")
    first, last = (_percent(float(np.median(values))) for values in (used[0], used[-1]))
    return Picture(
        name="over the training",
        draw=functools.partial(draw_steps, steps, used, sigma, one.unit),
        alt=f"The median module's use of its rank over {one.unit}s {steps[0]} to {steps[-1]}: {first} to {last}.",
        columns=(one.unit, "used_median", "used_least", "used_most", "sigma_max_median"),
        rows=[
            (step, *map(float, (np.median(u), min(u), max(u), np.median(s))))
            for step, u, s in zip(steps, used, sigma, strict=True)
        ],
    )


def _over_steps(one: Audit, metric: str) -> list[list[float]]:
    """The modules' values at every step; one NaN, and nothing else, where no module has any."""
    found = []
    for snapshot in one.snapshots:
        values = [getattr(row, metric) for row in snapshot.rows.values()]
        found.append([value for value in values if value is not None] or [float("nan")])
    return found


def _percent(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.0%}"


def draw_steps(
    steps: Sequence[int], used: Sequence[Sequence[float]], sigma: Sequence[Sequence[float]], unit: str = "step"
) -> Figure:
    """Use of the rank and σ₁ of ΔW over the steps: the median, and from the lowest to the highest.

    Args:
        steps: of the looks.
        used: effective rank / r at each of them, of all modules, or the lowest, the median and the highest of them.
        sigma: σ₁ of ΔW in the same way.
        unit: what the steps count.
    """
    figure = Figure(figsize=(8.5, 2.8), layout="constrained")
    places = [float(step) for step in steps]  # a name may say more than an int of numpy's holds
    for axes, values, label, (colour, marker) in zip(
        figure.subplots(1, 2), (used, sigma), ("effective rank / r", "σ₁ of ΔW"), SERIES, strict=False
    ):
        low, middle, high = (np.array([np.quantile(one, q) for one in values]) for q in (0, 0.5, 1))
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0, label="all modules")
        axes.plot(places, middle, marker=marker, color=colour, markersize=4, label="median")
        axes.set_xlabel(unit)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.legend(loc="best")
        tidy(axes)
    return figure
