"""Two adapters side by side: direction and size of ΔW, module by module."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorabench.adapters.adapter import Adapter
from lorabench.adapters.components import file_labels
from lorabench.adapters.drawing.depth import depth_axis, depth_width
from lorabench.adapters.drawing.names import counted, drawable, shortened
from lorabench.adapters.drawing.places import families, in_depth
from lorabench.adapters.drawing.style import (
    BLUE,
    GREY,
    ORANGE,
    SERIES,
    hatch,
    log_axis,
    new_figure,
    say,
    tidy,
    untrained_patch,
)
from lorabench.errors import LorabenchError
from lorabench.lowrank import frobenius_norm, inner_product

__all__ = ["Similarity", "compare_figure", "similarity"]


@dataclass(frozen=True)
class Similarity:
    """Two adapters A and B, over the modules that both have in the same shape, in depth order.

    Attributes:
        modules: names.
        cosine: [n], ⟨ΔW_A, ΔW_B⟩ / (‖ΔW_A‖·‖ΔW_B‖); NaN where either is untrained.
        norm: [2, n], ‖ΔW‖_F of A and of B.
        alone: modules that one of them has, A's and B's.
        other_shape: modules that both have in different shapes.
    """

    modules: tuple[str, ...]
    cosine: Float64[np.ndarray, " n"]
    norm: Float64[np.ndarray, "2 n"]
    alone: tuple[tuple[str, ...], tuple[str, ...]]
    other_shape: tuple[str, ...]

    @property
    def ratio(self) -> Float64[np.ndarray, " n"]:
        """[n], ‖ΔW_B‖ / ‖ΔW_A‖; NaN where either is untrained."""
        found = np.full(len(self.modules), np.nan)
        np.divide(self.norm[1], self.norm[0], out=found, where=(self.norm > 0).all(axis=0))
        return found


def similarity(first: Adapter, second: Adapter) -> Similarity:
    """Cosines and norms of two adapters' modules, from r×r products.

    Raises:
        LorabenchError: they have no module of one name and shape in common.
    """
    both = [name for name in in_depth(list(first.modules)) if name in second.modules]
    same = tuple(name for name in both if first.modules[name].shape == second.modules[name].shape)
    if not same:
        raise LorabenchError(
            f"{first.path} and {second.path} have no module of one name and shape in common "
            f"({len(both)} of one name). Compare adapters of one base model."
        )
    norm, inner = np.zeros((2, len(same))), np.zeros(len(same))
    for i, name in enumerate(same):
        a, b = first.modules[name], second.modules[name]
        norm[:, i] = [frobenius_norm(one.down, one.up, one.scale).item() for one in (a, b)]
        inner[i] = inner_product((a.down, a.up, a.scale), (b.down, b.up, b.scale)).item()
    cosine = np.full(len(same), np.nan)
    there = (norm > 0).all(axis=0)
    cosine[there] = np.clip(inner[there] / norm[0, there] / norm[1, there], -1.0, 1.0)
    alone = (
        tuple(name for name in first.modules if name not in second.modules),
        tuple(name for name in second.modules if name not in first.modules),
    )
    return Similarity(same, cosine, norm, alone, tuple(name for name in both if name not in same))


def compare_figure(first: Adapter, second: Adapter) -> Figure:
    """Cosine, norm ratio and norms by depth."""
    found = similarity(first, second)
    width = depth_width(len(found.modules))
    names = [drawable(shortened(name, 50)) for name in file_labels([first.path, second.path])]
    figure = new_figure(width, 9.6, f"A: {names[0]}\nB: {names[1]}\n{_counts(found)}")
    cosine, ratio, norm = figure.subplots(3, 1, height_ratios=(1.2, 1.0, 1.0))
    _cosine(cosine, found, 0.9 * width)
    _ratio(ratio, found, 0.9 * width)
    _norms(norm, found, 0.9 * width)
    return figure


def _counts(found: Similarity) -> str:
    words = [f"{counted(len(found.modules))} compared"]
    for name, modules in zip("AB", found.alone, strict=True):
        words += [f"{len(modules)} in {name} alone"] if modules else []
    words += [f"{len(found.other_shape)} of different shapes"] if found.other_shape else []
    return "; ".join(words)


def _cosine(axes: Axes, found: Similarity, width: float) -> None:
    known = np.isfinite(found.cosine)
    mean = f"; mean {found.cosine[known].mean() + 0.0:.2g}" if known.any() else ""
    axes.set_title(f"cosine of the two ΔW (1: the same direction, 0: unrelated){mean}")
    for (name, mine), (colour, marker) in zip(families(found.modules, len(SERIES)).items(), SERIES, strict=False):
        label = drawable(shortened(name, 28))
        axes.plot(mine, found.cosine[list(mine)], marker, color=colour, markersize=4.5, label=label)
    axes.axhline(0, color=GREY, linewidth=0.8)
    low, high = (float(found.cosine[known].min()), float(found.cosine[known].max())) if known.any() else (0.0, 1.0)
    high = 1.05 if high > 0.5 else max(1.2 * high, 0.02)  # unrelated adapters would be one flat line
    axes.set_ylim(min(1.2 * low, -0.05 * high), high)
    hatch(axes, ~known)
    handles, _ = axes.get_legend_handles_labels()
    patch = [] if known.all() else [untrained_patch("untrained in A or B: no cosine, no ratio")]
    axes.legend(
        handles=[*handles, *patch], loc="upper left", bbox_to_anchor=(0, -0.02), ncols=max(int(width // 1.9), 2),
        borderaxespad=0,
    )  # fmt: skip
    tidy(axes)
    depth_axis(axes, found.modules, width, labels=False)


def _ratio(axes: Axes, found: Similarity, width: float) -> None:
    known = np.isfinite(found.ratio)
    axes.set_title("norm ratio ‖ΔW_B‖/‖ΔW_A‖")
    if not known.any():
        say(axes, "no module is trained in both")
        return
    x = np.arange(len(found.modules))
    axes.vlines(x[known], 1.0, found.ratio[known], color=BLUE, linewidth=1.0)
    axes.plot(x[known], found.ratio[known], "o", color=BLUE, markersize=3.5)
    axes.axhline(1, color=GREY, linewidth=0.8)
    low, high = float(found.ratio[known].min()), float(found.ratio[known].max())
    axes.set_ylim(min(low / 1.2, 0.8), max(high * 1.2, 1.25))
    log_axis(axes, "y")
    hatch(axes, ~known)
    tidy(axes)
    depth_axis(axes, found.modules, width, labels=False, groups=False)


def _norms(axes: Axes, found: Similarity, width: float) -> None:
    axes.set_title("norms ‖ΔW‖_F")
    x = np.arange(len(found.modules))
    positive = np.where(found.norm > 0, found.norm, np.nan)
    for values, name, colour, marker in zip(positive, "AB", (BLUE, ORANGE), "os", strict=True):
        axes.plot(x, values, marker, color=colour, markersize=3.5, linestyle="-", linewidth=0.6, label=name)
    if np.isfinite(positive).any():
        axes.set_ylim(np.nanmin(positive) / 1.3, np.nanmax(positive) * 1.3)
        log_axis(axes, "y")
    hatch(axes, (found.norm == 0).any(axis=0))
    axes.legend(loc="upper right", ncols=2)
    tidy(axes)
    depth_axis(axes, found.modules, width, groups=False)
