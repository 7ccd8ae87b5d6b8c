"""Distributions of weights: of both factors, and of ΔW by sampling its entries."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from lorabench.adapters import drawing
from lorabench.adapters.drawing.subject import Subject

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ADAPTERS", "PATTERN", "SAMPLES", "Distribution", "Distributions", "draw", "measure", "sampled_delta"]

ADAPTERS, PATTERN = 1, False

SAMPLES = 16_384
"""Values of one matrix that are looked at, at most; a smaller factor is taken whole."""

_TOGETHER, _FEWEST = 2**20, 2048  # of all modules together, and of one where they are many
_BINS = 101
_LOG_BINS = 60
_FINE = 4096


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
        nothing: Bool[np.ndarray, " n"] = self.zeros == 1
        return nothing


@dataclass(frozen=True)
class Distributions:
    """What the picture shows.

    Attributes:
        name: of the file.
        modules: in depth order.
        matrices: of down, up and ΔW.
    """

    name: str
    modules: tuple[str, ...]
    matrices: tuple[Distribution, Distribution, Distribution]


def measure(subject: Subject) -> Sequence[Distributions]:
    """The distributions of down, up and ΔW, of a sample that is always the same."""
    generator = np.random.default_rng(0)
    samples: dict[str, list[Float64[np.ndarray, " n"]]] = {"down": [], "up": [], "ΔW": []}
    sizes: dict[str, list[int]] = {what: [] for what in samples}
    # Large modules have more samples, but not in proportion: the small ones have a column in the picture too.
    roots = np.sqrt([np.prod(subject.adapter.modules[name].shape, dtype=np.float64) for name in subject.modules])
    counts = np.clip(_TOGETHER * roots / roots.sum(), _FEWEST, SAMPLES).astype(np.int64)
    for name, count in zip(subject.modules, counts.tolist(), strict=True):
        down, up, scale = subject.factors(name)
        for what, matrix in (("down", down), ("up", up)):
            samples[what].append(_sampled(matrix.ravel(), count, generator))
            sizes[what].append(matrix.size)
        samples["ΔW"].append(sampled_delta(down, up, scale, count, generator))
        sizes["ΔW"].append(len(up) * down.shape[1])
    of_down, of_up, of_delta = (_distribution(what, samples[what], sizes[what]) for what in samples)
    return [Distributions(subject.title, subject.modules, (of_down, of_up, of_delta))]


def sampled_delta(
    down: Float64[np.ndarray, "r d_in"],
    up: Float64[np.ndarray, "d_out r"],
    scale: float,
    count: int,
    generator: np.random.Generator,
) -> Float64[np.ndarray, " count"]:
    """So many entries of ΔW at random places (with repetition), each a product of one row and one column."""
    rows, columns = generator.integers(len(up), size=count), generator.integers(down.shape[1], size=count)
    entries: Float64[np.ndarray, " count"] = scale * np.einsum("nr,nr->n", up[rows], down.T[columns])
    return entries


def _sampled(values: Float64[np.ndarray, " n"], most: int, generator: np.random.Generator) -> Float64[np.ndarray, " m"]:
    return values if len(values) <= most else values[generator.integers(len(values), size=most)]


def _distribution(what: str, samples: list[Any], sizes: list[int]) -> Distribution:
    counts = np.array([len(values) for values in samples])
    values = np.concatenate(samples)
    owner = np.repeat(np.arange(len(samples)), counts)
    weight = (np.array(sizes) / counts / sum(sizes))[owner]
    there = values != 0
    logs = np.log10(np.abs(values[there]))
    limit = 10 ** _upper(logs, weight[there]) if len(logs) else 1.0
    edges = np.linspace(-limit, limit, _BINS + 1)
    density = np.bincount(_bins(values, -limit, limit, _BINS), weight, minlength=_BINS + 2)[1:-1]
    low, high = (float(np.percentile(logs, 1)), float(logs.max())) if len(logs) else (-1.0, 0.0)
    log_edges = np.linspace(low, high + 1e-9 + 0.01 * (high - low), _LOG_BINS + 1)
    rows = _bins(logs, low, float(log_edges[-1]), _LOG_BINS)
    cells = np.bincount(rows * len(samples) + owner[there], minlength=(_LOG_BINS + 2) * len(samples))
    return Distribution(
        what=what,
        edges=edges,
        density=density / np.diff(edges),
        log_edges=log_edges,
        by_module=cells.reshape(_LOG_BINS + 2, -1)[1:-1] / counts,
        std=float(np.sqrt(np.sum(weight * values**2))),
        zeros=1.0 - np.bincount(owner[there], minlength=len(samples)) / counts,
    )


def _upper(logs: Float64[np.ndarray, " n"], weight: Float64[np.ndarray, " n"]) -> float:
    """What 0.1 % of the weight or less lies above, to a fraction of a per cent of the values."""
    low, high = float(logs.min()), float(logs.max()) + 1e-9
    above = np.bincount(_bins(logs, low, high, _FINE), weight, minlength=_FINE + 2)
    beyond = np.cumsum(above[::-1])[::-1]
    return low + (high - low) * int(np.sum(beyond[1:] > 0.001)) / _FINE


def _bins(values: Float64[np.ndarray, " n"], low: float, high: float, count: int) -> Int64[np.ndarray, " n"]:
    """The bin of each value, from 1; 0 and count + 1 for those outside. Far faster than `np.histogram`."""
    bins = np.floor((values - low) * (count / (high - low))).astype(np.int64)
    bins[values == high] = count - 1
    return np.clip(bins, -1, count) + 1


def draw(page: Distributions) -> "Figure":
    """A histogram of each matrix over all modules, above the distribution of |value| along the depth."""
    modules = page.modules
    width = drawing.panels.depth_width(len(modules)) + 1.0
    what = f"distribution of the weights of {drawing.panels.counted(len(modules))}"
    figure = drawing.panels.new_figure(width, 10.5, page.name, what)
    layout: list[Any] = [
        [f"all {matrix.what}" for matrix in page.matrices],
        *[[matrix.what] * 3 for matrix in page.matrices],
    ]
    panels: dict[str, Axes] = figure.subplot_mosaic(layout, height_ratios=(1.3, 1, 1, 1))
    for matrix, colour in zip(
        page.matrices, (drawing.panels.BLUE, drawing.panels.ORANGE, drawing.panels.GREEN), strict=True
    ):
        _histogram(panels[f"all {matrix.what}"], matrix, colour)
        _by_depth(figure, panels[matrix.what], matrix, modules, 0.86 * width)
    if any(matrix.empty.any() for matrix in page.matrices):
        figure.legend(
            handles=[drawing.panels.untrained_patch("all values are 0 (untrained)")], loc="outside upper right"
        )
    return figure


def _histogram(axes: "Axes", values: Distribution, colour: str) -> None:
    axes.set_title(f"{values.what}: RMS {values.std:.3g}, {_percent(values.zeros.mean())} zeros")
    if values.empty.all():
        drawing.panels.words_instead(axes, "all values are 0")
        return
    floor = float(values.density[values.density > 0].min()) / 1.5
    axes.stairs(np.maximum(values.density, floor), values.edges, fill=True, color=colour, alpha=0.8, baseline=floor)
    axes.set_ylim(floor, float(values.density.max()) * 1.6)
    drawing.panels.log_axis(axes, "y")
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("value")
    axes.set_ylabel("density")
    drawing.panels.tidy(axes)


def _percent(share: float | int) -> str:
    return "under 0.1 %" if 0 < share < 0.001 else f"{100 * share:.3g} %"


def _by_depth(
    figure: "Figure", axes: "Axes", values: Distribution, modules: tuple[str, ...], width: float | int
) -> None:
    axes.set_title(f"|{values.what}| by depth")
    if values.empty.all():
        drawing.panels.words_instead(axes, "all values are 0")
        return
    edges = values.log_edges
    image = axes.imshow(
        np.where(values.by_module > 0, 100 * values.by_module, np.nan), origin="lower", aspect="auto", cmap="viridis",
        interpolation="nearest", extent=(-0.5, len(modules) - 0.5, edges[0], edges[-1]),
    )  # fmt: skip
    drawing.panels.hatch(axes, values.empty)
    axes.set_ylabel("log₁₀ |value|")
    figure.colorbar(image, ax=axes, pad=0.01, aspect=20).set_label("% of values")
    drawing.panels.depth_axis(axes, modules, width, labels=values.what == "ΔW", groups=values.what == "down")
