"""Distributions of weights: of both factors, and of ΔW by sampling its entries."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.drawing.depth import depth_axis, depth_width
from lorabench.adapters.drawing.names import counted, titled
from lorabench.adapters.drawing.places import in_depth
from lorabench.adapters.drawing.style import (
    BLUE,
    GREEN,
    ORANGE,
    hatch,
    log_axis,
    new_figure,
    say,
    tidy,
    untrained_patch,
)

__all__ = ["SAMPLES", "Distribution", "distributions", "histogram_figure", "sampled_delta"]

SAMPLES = 16_384
"""Values of one matrix that are looked at; a smaller factor is taken whole."""

_BINS = 101
_LOG_BINS = 60


@dataclass(frozen=True)
class Distribution:
    """How the values of one matrix ("down", "up" or "ΔW") are distributed, over all modules and in each.

    Attributes:
        what: "down", "up" or "ΔW".
        edges: [bins + 1], symmetric about 0; 0.1 % of the values or fewer lie beyond.
        density: [bins], over all modules, each weighted by its size; its integral is the share within the edges.
        log_edges: [rows + 1], of log₁₀|value|.
        by_module: [rows, n], share of a module's values in each; a column of zeros for an all-zero matrix.
        std: of all values about their mean 0, √(mean of squares).
        zeros: [n], share of exact zeros in each module.
    """

    what: str
    edges: Float64[np.ndarray, " edges"]
    density: Float64[np.ndarray, " bins"]
    log_edges: Float64[np.ndarray, " log_edges"]
    by_module: Float64[np.ndarray, "rows n"]
    std: float
    zeros: Float64[np.ndarray, " n"]

    @property
    def empty(self) -> Bool[np.ndarray, " n"]:
        """[n], whether all values that were looked at are 0."""
        found: Bool[np.ndarray, " n"] = self.zeros == 1
        return found


def distributions(adapter: Adapter, seed: int = 0) -> tuple[tuple[str, ...], tuple[Distribution, ...]]:
    """The modules in depth order, and the distributions of down, up and ΔW.

    Args:
        adapter: what `load` gives.
        seed: of what is sampled.
    """
    modules = in_depth(list(adapter.modules))
    generator = torch.Generator().manual_seed(seed)
    takers: dict[str, Callable[[LoraModule], tuple[Tensor, int]]] = {
        "down": lambda module: (_sampled(module.down, generator), module.down.numel()),
        "up": lambda module: (_sampled(module.up, generator), module.up.numel()),
        "ΔW": lambda module: (sampled_delta(module, SAMPLES, generator), module.shape[0] * module.shape[1]),
    }
    found = []
    for what, take in takers.items():
        taken = [take(adapter.modules[name]) for name in modules]
        found.append(_distribution(what, [values.double().numpy() for values, _ in taken], [size for _, size in taken]))
    return modules, tuple(found)


def sampled_delta(module: LoraModule, count: int, generator: torch.Generator) -> Float64[Tensor, " count"]:
    """So many entries of ΔW at random places (with repetition), each a product of one row and one column."""
    rows = torch.randint(module.shape[0], (count,), generator=generator)
    columns = torch.randint(module.shape[1], (count,), generator=generator)
    up, down = module.up.double()[rows], module.down.double().mT[columns]
    found: Tensor = module.scale * (up * down).sum(1)
    return found


def _sampled(matrix: Tensor, generator: torch.Generator) -> Tensor:
    values = matrix.flatten()
    if values.numel() <= SAMPLES:
        return values
    return values[torch.randint(values.numel(), (SAMPLES,), generator=generator)]


def _distribution(what: str, values: list[Any], sizes: list[int]) -> Distribution:
    everything = np.concatenate(values)
    weights = np.concatenate([np.full(len(one), size / len(one)) for one, size in zip(values, sizes, strict=True)])
    weights /= weights.sum()
    order = np.argsort(np.abs(everything))
    reached = np.searchsorted(np.cumsum(weights[order]), 0.999)
    limit = float(np.abs(everything[order[min(int(reached), len(order) - 1)]])) or float(np.abs(everything).max())
    edges = np.linspace(-1, 1, _BINS + 1) * (limit or 1.0)
    counts, _ = np.histogram(everything, edges, weights=weights)
    nonzero = np.abs(everything[everything != 0])
    low, high = np.log10(np.percentile(nonzero, [1, 100])) if len(nonzero) else (-1.0, 0.0)
    log_edges = np.linspace(low, high + 1e-9 + 0.01 * (high - low), _LOG_BINS + 1)
    columns = [np.histogram(np.log10(np.abs(one[one != 0])), log_edges)[0] / len(one) for one in values]
    return Distribution(
        what=what,
        edges=edges,
        density=counts / np.diff(edges),
        log_edges=log_edges,
        by_module=np.stack(columns, axis=1),
        std=float(np.sqrt(np.sum(weights * everything**2))),
        zeros=np.array([np.mean(one == 0) for one in values]),
    )


def histogram_figure(adapter: Adapter) -> Figure:
    """A histogram of each matrix over all modules, above the distribution of |value| along the depth."""
    modules, found = distributions(adapter)
    width = depth_width(len(modules)) + 1.0
    figure = new_figure(width, 10.5, titled(adapter, f"distribution of the weights of {counted(len(modules))}"))
    layout: list[Any] = [[f"all {one.what}" for one in found], *[[one.what] * len(found) for one in found]]
    panels: dict[str, Axes] = figure.subplot_mosaic(layout, height_ratios=(1.3, 1, 1, 1))
    for one, colour in zip(found, (BLUE, ORANGE, GREEN), strict=True):
        _histogram(panels[f"all {one.what}"], one, colour)
        _by_depth(figure, panels[one.what], one, modules, 0.86 * width)
    if any(one.empty.any() for one in found):
        figure.legend(handles=[untrained_patch("all values are 0 (untrained)")], loc="outside upper right")
    return figure


def _histogram(axes: Axes, found: Distribution, colour: str) -> None:
    axes.set_title(f"{found.what}: RMS {found.std:.3g}, {_percent(found.zeros.mean())} zeros")
    if found.empty.all():
        say(axes, "all values are 0")
        return
    floor = float(found.density[found.density > 0].min()) / 1.5
    axes.stairs(np.maximum(found.density, floor), found.edges, fill=True, color=colour, alpha=0.8, baseline=floor)
    axes.set_ylim(floor, float(found.density.max()) * 1.6)
    log_axis(axes, "y")
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("value")
    axes.set_ylabel("density")
    tidy(axes)


def _percent(share: float | int) -> str:
    return "under 0.1 %" if 0 < share < 0.001 else f"{100 * share:.3g} %"


def _by_depth(figure: Figure, axes: Axes, found: Distribution, modules: tuple[str, ...], width: float | int) -> None:
    axes.set_title(f"|{found.what}| by depth")
    if found.empty.all():
        say(axes, "all values are 0")
        return
    edges = found.log_edges
    image = axes.imshow(
        np.where(found.by_module > 0, 100 * found.by_module, np.nan), origin="lower", aspect="auto", cmap="viridis",
        interpolation="nearest", extent=(-0.5, len(modules) - 0.5, edges[0], edges[-1]),
    )  # fmt: skip
    hatch(axes, found.empty)
    axes.set_ylabel("log₁₀ |value|")
    figure.colorbar(image, ax=axes, pad=0.01, aspect=20).set_label("% of values")
    depth_axis(axes, modules, width, labels=found.what == "ΔW", groups=found.what == "down")
