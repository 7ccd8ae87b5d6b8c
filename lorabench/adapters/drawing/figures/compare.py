"""Two adapters side by side: direction and size of ΔW, module by module."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from lorabench.adapters import drawing
from lorabench.adapters.drawing.subject import Subject
from lorabench.adapters.places import by_depth
from lorabench.errors import LorabenchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ADAPTERS", "PATTERN", "Similarity", "draw", "measure"]

ADAPTERS, PATTERN = 2, False


@dataclass(frozen=True)
class Similarity:
    """Two adapters A and B, over the modules that both have in the same shape, in depth order.

    Attributes:
        labels: short names of the two files.
        modules: A's names.
        cosine: [n], ⟨ΔW_A, ΔW_B⟩ / (‖ΔW_A‖·‖ΔW_B‖); NaN where either is untrained.
        norm: [2, n], ‖ΔW‖_F of A and of B.
        alone: modules that one of them has, A's and B's.
        other_shape: modules that both have in different shapes.
    """

    labels: tuple[str, str]
    modules: tuple[str, ...]
    cosine: Float64[np.ndarray, " n"]
    norm: Float64[np.ndarray, "2 n"]
    alone: tuple[tuple[str, ...], tuple[str, ...]]
    other_shape: tuple[str, ...]

    @property
    def ratio(self) -> Float64[np.ndarray, " n"]:
        """[n], ‖ΔW_B‖ / ‖ΔW_A‖; NaN where either is untrained."""
        ratio = np.full(len(self.modules), np.nan)
        np.divide(self.norm[1], self.norm[0], out=ratio, where=(self.norm > 0).all(axis=0))
        return ratio


def measure(first: Subject, second: Subject) -> Sequence[Similarity]:
    """What `compare` finds of the two.

    Raises:
        LorabenchError: no module is in both, under one name and in one shape.
    """
    from lorabench.adapters.comparing.whole import compare
    from lorabench.adapters.merging.aligning import file_labels

    compared = compare(first.adapter, second.adapter)
    modules = {module.module: module for module in compared.modules}
    if not modules:
        raise LorabenchError(
            f"{first.adapter.path} and {second.adapter.path} have no module of one name and shape in common "
            f"({len(compared.shapes_differ)} of one name). Compare adapters of one base model."
        )
    names = by_depth(list(modules))
    label, other_label = file_labels([first.adapter.path, second.adapter.path])
    return [
        Similarity(
            labels=(label, other_label),
            modules=names,
            cosine=np.array([modules[name].cosine for name in names], dtype=np.float64),  # None becomes NaN
            norm=np.array([modules[name].norms for name in names]).T,
            alone=(compared.only_a, compared.only_b),
            other_shape=tuple(compared.shapes_differ),
        )
    ]


def draw(page: Similarity) -> "Figure":
    """Cosine, norm ratio and norms by depth."""
    panels = drawing.panels
    width = panels.depth_width(len(page.modules))
    names = [panels.shortened(label, 50) for label in page.labels]
    figure = panels.new_figure(width, 9.6, f"A: {names[0]}\nB: {names[1]}\n{_counts(page)}")
    cosine, ratio, norm = figure.subplots(3, 1, height_ratios=(1.2, 1.0, 1.0))
    _cosine(cosine, page, 0.9 * width)
    _ratio(ratio, page, 0.9 * width)
    _norms(norm, page, 0.9 * width)
    return figure


def _counts(page: Similarity) -> str:
    words = [f"{drawing.panels.counted(len(page.modules))} compared"]
    for name, modules in zip("AB", page.alone, strict=True):
        words += [f"{len(modules)} in {name} alone"] if modules else []
    words += [f"{len(page.other_shape)} of different shapes"] if page.other_shape else []
    return "; ".join(words)


def _cosine(axes: "Axes", page: Similarity, width: float) -> None:
    trained = np.isfinite(page.cosine)
    mean = f"; mean {page.cosine[trained].mean() + 0.0:.2g}" if trained.any() else ""
    axes.set_title(f"cosine of the two ΔW (1: the same direction, 0: unrelated){mean}")
    for (name, mine), (colour, marker) in zip(
        drawing.panels.families(page.modules, len(drawing.panels.SERIES)).items(), drawing.panels.SERIES, strict=False
    ):
        label = drawing.panels.drawable(drawing.panels.shortened(name, 28))
        axes.plot(mine, page.cosine[list(mine)], marker, color=colour, markersize=4.5, label=label)
    axes.axhline(0, color=drawing.panels.GREY, linewidth=0.8)
    low, high = (float(page.cosine[trained].min()), float(page.cosine[trained].max())) if trained.any() else (0.0, 1.0)
    high = 1.05 if high > 0.5 else max(1.2 * high, 0.02)  # unrelated adapters would be one flat line
    axes.set_ylim(min(1.2 * low, -0.05 * high), high)
    drawing.panels.hatch(axes, ~trained)
    handles, _ = axes.get_legend_handles_labels()
    patch = [] if trained.all() else [drawing.panels.untrained_patch("untrained in A or B: no cosine, no ratio")]
    axes.legend(
        handles=[*handles, *patch], loc="upper left", bbox_to_anchor=(0, -0.02), ncols=max(int(width // 1.9), 2),
        borderaxespad=0,
    )  # fmt: skip
    drawing.panels.tidy(axes)
    drawing.panels.depth_axis(axes, page.modules, width, labels=False)


def _ratio(axes: "Axes", page: Similarity, width: float) -> None:
    trained = np.isfinite(page.ratio)
    axes.set_title("norm ratio ‖ΔW_B‖/‖ΔW_A‖")
    if not trained.any():
        drawing.panels.words_instead(axes, "no module is trained in both")
        return
    x = np.arange(len(page.modules))
    axes.vlines(x[trained], 1.0, page.ratio[trained], color=drawing.panels.BLUE, linewidth=1.0)
    axes.plot(x[trained], page.ratio[trained], "o", color=drawing.panels.BLUE, markersize=3.5)
    axes.axhline(1, color=drawing.panels.GREY, linewidth=0.8)
    low, high = float(page.ratio[trained].min()), float(page.ratio[trained].max())
    axes.set_ylim(min(low / 1.2, 0.8), max(high * 1.2, 1.25))
    drawing.panels.log_axis(axes, "y")
    drawing.panels.hatch(axes, ~trained)
    drawing.panels.tidy(axes)
    drawing.panels.depth_axis(axes, page.modules, width, labels=False, groups=False)


def _norms(axes: "Axes", page: Similarity, width: float) -> None:
    axes.set_title("norms ‖ΔW‖_F")
    x = np.arange(len(page.modules))
    positive = np.where(page.norm > 0, page.norm, np.nan)
    for values, name, colour, marker in zip(
        positive, "AB", (drawing.panels.BLUE, drawing.panels.ORANGE), "os", strict=True
    ):
        axes.plot(x, values, marker, color=colour, markersize=3.5, linestyle="-", linewidth=0.6, label=name)
    if np.isfinite(positive).any():
        axes.set_ylim(np.nanmin(positive) / 1.3, np.nanmax(positive) * 1.3)
        drawing.panels.log_axis(axes, "y")
    drawing.panels.hatch(axes, (page.norm == 0).any(axis=0))
    axes.legend(loc="upper right", ncols=2)
    drawing.panels.tidy(axes)
    drawing.panels.depth_axis(axes, page.modules, width, groups=False)
