"""A picture of the latent space of a learned representation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lorabench.pictures import SERIES, tidy
from lorabench.report.labels import unit_label
from lorabench.report.numbers import number, percent
from lorabench.report.style import wrapped
from lorabench.results import Result

__all__ = ["latent_figure"]

_OTHERS = ("0.78", "o")
_SIDE = 5.0  # inches a map
_PASSES = 6  # every class is drawn in so many turns, so that none lies on top of all others
_LONGEST = 30  # letters of a class's name


@dataclass(frozen=True)
class _Group:
    """Adapters that are drawn alike: a class, or all classes that are too few adapters for a colour."""

    label: str
    rows: Int64[np.ndarray, " m"]
    colour: str
    marker: str
    is_class: bool


def latent_figure(result: Result, name: str) -> Figure:
    """Adapters in the plane of the first two principal components of a latent space, by class, and the classes' means.

    A panel a map: all units together, and the best reconstructed unit. Of more than ten classes, the nine most
    frequent have colours.
    """
    found = result.learned[name]
    groups = _groups(result.classes, found["classes"])
    width = _SIDE * len(found["maps"]) + 2.4
    figure = Figure(figsize=(width, _SIDE + 0.9), layout="constrained")
    panels = figure.subplots(1, len(found["maps"]), squeeze=False).ravel()
    for axes, one in zip(panels, found["maps"], strict=True):
        _map(axes, one, groups)
        axes.set_title(_unit_title(one["unit"], found["units"]), fontsize=9)
    handles = [
        Line2D([], [], linestyle="", marker=g.marker, color=g.colour, markeredgecolor="0.2", markeredgewidth=0.4)
        for g in groups
    ]
    figure.legend(
        handles, [g.label for g in groups], fontsize=8, frameon=False, loc="outside right center",
        title=f"{result.target}\n(large: its mean)", title_fontsize=8, alignment="left",
    )  # fmt: skip
    shown, there = len(found["classes"]), sum(result.split[part] for part in ("train", "val", "test"))
    adapters = f"{shown} adapters" if shown == there else f"{shown} of {there} adapters"
    said = f"{adapters} of all splits; neither the training nor the plane knows the {result.target}"
    if found.get("supervised"):
        said = f"{adapters} of all splits; the training knew the {result.target} of training adapters, the plane none"
    title = [f"{result.dataset['name']}: what {name} makes of the weights", said]
    figure.suptitle(wrapped(title, width), fontsize=10)
    return figure


def _groups(classes: Sequence[str], codes: Sequence[int]) -> list[_Group]:
    """What has a colour of its own, in the order of classes, and the others last."""
    of = np.array(codes, dtype=np.int64)
    counts = np.bincount(of, minlength=len(classes))
    chosen = list(range(len(classes)))
    if len(classes) > len(SERIES):
        frequent = np.argsort(-counts, kind="stable")[: len(SERIES) - 1]
        chosen = sorted(frequent.tolist())
    found = [
        _Group(_short(classes[code]), np.flatnonzero(of == code), *style, True)
        for code, style in zip(chosen, SERIES, strict=False)
    ]
    others = np.flatnonzero(~np.isin(of, chosen))
    if len(others):
        found.append(_Group(f"{len(classes) - len(chosen)} other classes", others, *_OTHERS, False))
    return found


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1].rstrip()}…"


def _map(axes: Axes, one: Mapping[str, Any], groups: Sequence[_Group]) -> None:
    x, y = (np.array([number(value) for value in one[key]], dtype=np.float64) for key in ("x", "y"))
    area = float(np.clip(14000 / max(len(x), 1), 9, 36))
    for turn in range(_PASSES):
        for group in groups:
            rows = group.rows[turn::_PASSES]
            axes.scatter(
                x[rows], y[rows], s=area, c=group.colour, marker=group.marker, alpha=0.75, linewidths=0.25,
                edgecolors="0.2" if group.is_class else "none", zorder=2 if group.is_class else 1,
            )  # fmt: skip
    for group in groups:
        known = group.rows[np.isfinite(x[group.rows]) & np.isfinite(y[group.rows])]
        if group.is_class and len(known):
            axes.plot(
                x[known].mean(), y[known].mean(), group.marker, color=group.colour, markersize=10,
                markeredgecolor="black", markeredgewidth=1, zorder=3,
            )  # fmt: skip
    shares = [percent(share) for share in one["variance"]] + ["–", "–"]
    axes.set_xlabel(f"first principal component, {shares[0]} % of the variance", fontsize=8)
    axes.set_ylabel(f"second, {shares[1]} %", fontsize=8)
    axes.set_aspect("equal", adjustable="datalim")
    tidy(axes, "both")


def _unit_title(unit: str, units: Mapping[str, Mapping[str, Any]]) -> str:
    """What the map is of, and of one unit how well it is reconstructed, where it is."""
    if unit not in units and len(units) > 1:
        return f"all {len(units)} units together"
    unit = unit if unit in units else next(iter(units))
    if "reconstruction_error" not in units[unit]:
        best = f"lowest loss of {len(units)} units, " if len(units) > 1 else ""
        return f"{unit_label(unit)}\n{best}{min(map(number, units[unit]['learning_curve'])):.2f}"
    best = f"best reconstructed of {len(units)} units, " if len(units) > 1 else ""
    error = number(units[unit].get("reconstruction_error"))
    return f"{unit_label(unit)}\n{best}relative error {'–' if np.isnan(error) else f'{error:.2f}'}"
