"""Block strength: ‖ΔW‖_F by block and by kind of projection."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from lorabench.adapters.adapter import Adapter
from lorabench.adapters.drawing.names import counted, drawable, shortened, titled
from lorabench.adapters.drawing.places import block_labels, in_depth, kinds_in_order, spot
from lorabench.adapters.drawing.style import BLUE, new_figure, tidy, untrained_patch
from lorabench.lowrank import frobenius_norm

__all__ = ["BlockStrength", "block_strength", "blocks_figure"]

_ROW, _COLUMN = 0.16, 0.42  # inches
_MOST_ROWS = 110


@dataclass(frozen=True)
class BlockStrength:
    """‖ΔW‖_F in one part of a model.

    Attributes:
        part: "unet", "text_encoder", ...
        blocks: names of the rows, in depth order; "" stands for what is outside all blocks.
        kinds: names of the columns, "attn1.to_q", ...
        norm: [b, k]; NaN where a block has no such module; 0 where it is untrained.
    """

    part: str
    blocks: tuple[str, ...]
    kinds: tuple[str, ...]
    norm: Float64[np.ndarray, "b k"]

    @property
    def untrained(self) -> Bool[np.ndarray, "b k"]:
        """[b, k], whether there is a module and its ΔW is 0."""
        found: Bool[np.ndarray, "b k"] = self.norm == 0
        return found

    @property
    def total(self) -> Float64[np.ndarray, " b"]:
        """[b], √Σ‖ΔW‖_F² over the modules of a block."""
        found: Float64[np.ndarray, " b"] = np.sqrt(np.nansum(self.norm**2, axis=1))
        return found


def block_strength(adapter: Adapter) -> tuple[BlockStrength, ...]:
    """‖ΔW‖_F of every module, sorted into blocks and kinds, a table for each part of the model."""
    spots = {name: spot(name) for name in in_depth(list(adapter.modules))}
    found = []
    for part in dict.fromkeys(one.part for one in spots.values()):
        mine = {name: one for name, one in spots.items() if one.part == part}
        blocks = tuple(dict.fromkeys(one.block for one in mine.values()))
        inside = kinds_in_order([one.kind for one in mine.values() if one.block])
        kinds = inside + kinds_in_order([one.kind for one in mine.values() if one.kind not in inside])
        norm = np.full((len(blocks), len(kinds)), np.nan)
        for name, one in mine.items():
            module = adapter.modules[name]
            row, column = blocks.index(one.block), kinds.index(one.kind)
            norm[row, column] = frobenius_norm(module.down, module.up, module.scale).item()
        found.append(BlockStrength(part, blocks, kinds, norm))
    return tuple(found)


def blocks_figure(adapter: Adapter) -> Figure:
    """A heat map blocks × kinds for each part of the model, beside the blocks' totals; one colour scale for all."""
    tables = block_strength(adapter)
    gaps = " (white: no such module)" if any(np.isnan(table.norm).any() for table in tables) else ""
    columns = max(len(table.kinds) for table in tables)
    heights = [_ROW * min(max(len(table.blocks), 3), _MOST_ROWS) + 0.25 for table in tables]
    width = min(max(_COLUMN * columns + 5.0, 7.5), 22.0)
    figure = new_figure(
        width, sum(heights) + 1.9 * len(tables) + 1.0, titled(adapter, f"strength of the blocks, ‖ΔW‖_F{gaps}")
    )
    grid = figure.subplots(
        len(tables), 2, squeeze=False, sharey="row", height_ratios=heights, width_ratios=(_COLUMN * columns + 1, 2.2)
    )
    values = np.concatenate([table.norm[np.isfinite(table.norm)] for table in tables])
    limits = _limits(values[values > 0])
    for (heat, bars), table in zip(grid, tables, strict=True):
        _heat(heat, table, limits)
        _totals(bars, table)
    image = grid[0][0].images[0]
    bar = figure.colorbar(image, ax=list(grid[:, 0]), location="bottom", extend="both", aspect=40, shrink=0.9, pad=0.02)
    bar.locator = LogLocator(subs=(1, 2, 5), numticks=12)
    bar.formatter = FuncFormatter(lambda value, _: f"{value:g}")
    bar.ax.xaxis.set_minor_formatter(NullFormatter())
    bar.update_ticks()
    bar.set_label("‖ΔW‖_F of a module (arrows: the weakest and the strongest 1 %)")
    if any(table.untrained.any() for table in tables):
        figure.legend(handles=[untrained_patch()], loc="outside lower right")
    return figure


def _limits(values: Float64[np.ndarray, " n"]) -> LogNorm:
    """One giant among hundreds must not leave the others without colour, nor small differences seem large."""
    high = float(np.percentile(values, 99)) if len(values) else 1.0
    low = float(np.percentile(values, 1)) if len(values) else 1.0
    return LogNorm(min(low, high / 3), high)


def _heat(axes: Axes, table: BlockStrength, limits: LogNorm) -> None:
    trained = np.where(table.untrained, np.nan, table.norm)
    axes.imshow(trained, cmap="viridis", norm=limits, aspect="auto", interpolation="nearest")
    for row, column in np.argwhere(table.untrained):
        axes.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="0.93", hatch="////", edgecolor="0.6", linewidth=0)
        )
    labels, lists = block_labels(table.blocks)
    step = -(-len(labels) // _MOST_ROWS)
    shown = [drawable(shortened(label, 36)) for label in labels[::step]]
    axes.set_yticks(range(0, len(labels), step), shown)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(-0.5, len(table.kinds) - 0.5)
    steps = -(-len(table.kinds) // 44)
    kinds = [drawable(shortened(kind, 30)) for kind in table.kinds[::steps]]
    axes.set_xticks(range(0, len(table.kinds), steps), kinds, rotation=90)
    axes.spines[:].set_visible(False)
    axes.set_ylabel(drawable(shortened(f"block ({lists})" if lists else "block", 8 + 2 * len(labels))))
    present = int(np.isfinite(table.norm).sum())
    axes.set_title(f"{table.part}: {counted(present)}" if table.part != "model" else counted(present))


def _totals(axes: Axes, table: BlockStrength) -> None:
    axes.barh(np.arange(len(table.blocks)), table.total, color=BLUE, height=0.75)
    axes.tick_params(axis="y", labelleft=False, left=False)
    axes.set_xlim(0, float(table.total.max()) * 1.05 or 1.0)
    axes.locator_params(axis="x", nbins=4)
    axes.set_title("all of a block, √Σ‖ΔW‖²")
    tidy(axes, "x")
