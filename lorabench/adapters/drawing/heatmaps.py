"""Heat maps of weights: both factors and ΔW's blocks, a line of three panels for each module."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.drawing.names import drawable, shortened, titled
from lorabench.adapters.drawing.places import in_depth
from lorabench.adapters.drawing.style import UNTRAINED, new_figure, say
from lorabench.errors import LorabenchError
from lorabench.lowrank import frobenius_norm

__all__ = ["PAGE", "WeightMap", "block_rms", "chosen_modules", "strongest_of_bins", "weight_map", "weights_figures"]

PAGE = 8
"""Modules on a page."""

_BINS, _CELLS = 384, 48
_WHAT = ("down [r × inputs]", "up, transposed [r × outputs]", "RMS of ΔW in blocks\n[outputs × inputs]")
_COLOURS = ("RdBu_r", "RdBu_r", "viridis")


@dataclass(frozen=True)
class WeightMap:
    """What is drawn of one module.

    Attributes:
        down: [r, bins], of each bin of columns the weight of the largest magnitude.
        up: [r, bins], the same of up transposed.
        delta: [cells, cells], root mean square of ΔW in a block of rows (outputs) and columns (inputs).
    """

    down: Float64[np.ndarray, "r down_bins"]
    up: Float64[np.ndarray, "r up_bins"]
    delta: Float64[np.ndarray, "out_cells in_cells"]


def chosen_modules(adapter: Adapter, pattern: str | None) -> tuple[str, ...]:
    """The modules that fit the pattern in depth order; without one, the `PAGE` of the largest ‖ΔW‖_F, strongest first.

    Raises:
        LorabenchError: none fits.
    """
    names = in_depth(list(adapter.modules))
    if pattern is None:
        norm = {
            name: frobenius_norm(module.down, module.up, module.scale).item()
            for name, module in adapter.modules.items()
        }
        return tuple(sorted(names, key=lambda name: -norm[name])[:PAGE])
    found = tuple(name for name in names if fnmatchcase(name, pattern))
    if not found:
        raise LorabenchError(
            f"{adapter.path}: no module fits --modules {pattern!r}. Its {len(names)} modules are called "
            f'{", ".join(names[:3])}, ...; a pattern has stars: "*{names[0].rpartition(".")[2]}".'
        )
    return found


def weight_map(module: LoraModule) -> WeightMap:
    """The three panels of a module."""
    return WeightMap(
        down=strongest_of_bins(module.down.double(), _BINS).numpy(),
        up=strongest_of_bins(module.up.double().mT, _BINS).numpy(),
        delta=block_rms(module, _CELLS).numpy(),
    )


def strongest_of_bins(matrix: Float64[Tensor, "rows cols"], most: int) -> Float64[Tensor, "rows bins"]:
    """At most so many bins of neighbouring columns, and of each the value of the largest magnitude, with its sign."""
    parts = torch.tensor_split(matrix, min(most, matrix.shape[1]), dim=1)
    return torch.cat([part.gather(1, part.abs().argmax(dim=1, keepdim=True)) for part in parts], dim=1)


def block_rms(module: LoraModule, most: int) -> Float64[Tensor, "out_cells in_cells"]:
    """Root mean square of ΔW in at most `most` × `most` blocks of neighbouring rows and columns.

    The energy of a block is Σ (up_Iᵀ·up_I) ∘ (down_J·down_Jᵀ): r×r matrices alone, no dense ΔW.
    """
    ups = torch.tensor_split(module.up.double(), min(most, module.shape[0]))
    downs = torch.tensor_split(module.down.double(), min(most, module.shape[1]), dim=1)
    gram_up = torch.stack([(part.mT @ part).flatten() for part in ups])
    gram_down = torch.stack([(part @ part.mT).flatten() for part in downs])
    sizes = torch.tensor([len(part) for part in ups])[:, None] * torch.tensor([part.shape[1] for part in downs])
    found: Tensor = abs(module.scale) * ((gram_up @ gram_down.mT).clamp_min(0) / sizes).sqrt()
    return found


def weights_figures(adapter: Adapter, pattern: str | None = None) -> list[Figure]:
    """Pages of `PAGE` modules; all pages share their colour limits, which the strongest 0.5 % may exceed."""
    names = chosen_modules(adapter, pattern)
    maps = {name: weight_map(adapter.modules[name]) for name in names}
    limits = tuple(
        _limit([getattr(one, panel) for one in maps.values()]) for panel in ("down", "up", "delta")
    )  # of each panel its own: the gauge shifts size between down and up
    pages = [names[start : start + PAGE] for start in range(0, len(names), PAGE)]
    what = "the strongest modules" if pattern is None else f"modules {shortened(pattern, 30)}"
    figures = []
    for number, page in enumerate(pages, 1):
        count = f", page {number} of {len(pages)}" if len(pages) > 1 else ""
        title = titled(adapter, f"weights of {what} ({len(names)} of {len(adapter.modules)}){count}")
        figures.append(_page(adapter, page, maps, limits, title))
    return figures


def _limit(maps: Sequence[Float64[np.ndarray, "..."]]) -> float:
    values = np.abs(np.concatenate([one.ravel() for one in maps]))
    return float(np.percentile(values, 99.5)) or float(values.max()) or 1.0


def _page(
    adapter: Adapter, names: Sequence[str], maps: Mapping[str, WeightMap], limits: tuple[float, ...], title: str
) -> Figure:
    figure = new_figure(12.5, 1.3 * len(names) + 1.5, title)
    grid = figure.subplots(len(names), 3, squeeze=False, width_ratios=(1, 1, 0.42))
    for line, name in zip(grid, names, strict=True):
        module = adapter.modules[name]
        d_out, d_in = module.shape
        norm = frobenius_norm(module.down, module.up, module.scale).item()
        line[0].set_title(drawable(f"{shortened(name, 84)}   rank {module.rank}, ‖ΔW‖_F {norm:.3g}"), fontsize=8)
        _panel(line[0], maps[name].down, limits[0], (module.rank, d_in), "all 0")
        _panel(line[1], maps[name].up, limits[1], (module.rank, d_out), "all 0")
        _panel(line[2], maps[name].delta, limits[2], (d_out, d_in), UNTRAINED)
    for number, (limit, what, colours) in enumerate(zip(limits, _WHAT, _COLOURS, strict=True)):
        low = 0.0 if number == 2 else -limit
        mappable = ScalarMappable(Normalize(low, limit), colours)
        bar = figure.colorbar(
            mappable, ax=[line[number] for line in grid], location="bottom", aspect=40 if number < 2 else 17,
            pad=0.02, extend="max" if number == 2 else "both",
        )  # fmt: skip
        bar.set_label(what)
        bar.ax.locator_params(nbins=5 if number < 2 else 3)
    return figure


def _panel(
    axes: Axes, values: Float64[np.ndarray, "rows cols"], limit: float, shape: tuple[int, int], nothing: str
) -> None:
    """One heat map; the axes count rows and columns of the matrix itself, not of the bins."""
    rows, columns = shape
    delta = nothing == UNTRAINED
    if values.any():
        axes.imshow(
            values, aspect="auto", interpolation="nearest", cmap=_COLOURS[2 if delta else 0],
            vmin=0 if delta else -limit, vmax=limit, extent=(0, columns, rows, 0),
        )  # fmt: skip
        axes.set_xticks([0, columns], ["0", str(columns)])
        axes.set_yticks([0, rows], ["0", str(rows)])
        first, last = axes.get_xticklabels()
        first.set_horizontalalignment("left")  # neighbouring panels' numbers would touch
        last.set_horizontalalignment("right")
        return
    axes.set_facecolor("0.93")
    say(axes, nothing)
