"""Block strength: ‖ΔW‖_F by block and by kind of projection."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float64

from lorabench.adapters import drawing
from lorabench.adapters.drawing.subject import Subject
from lorabench.adapters.places import Place, block_labels, kinds_in_order, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

__all__ = ["ADAPTERS", "PATTERN", "BlockStrength", "block_strength", "draw", "measure"]

ADAPTERS, PATTERN = 1, False

_ROW, _COLUMN = 0.16, 0.42  # inches
_MOST_ROWS = 110
_COUNTED_IN_A_ROW = 12  # modules that a name only counts ("unet.48", "w_003")


@dataclass(frozen=True)
class BlockStrength:
    """‖ΔW‖_F in one part of a model.

    Attributes:
        part: "unet", "text_encoder", ...
        rows: of each row the block, and which transformer block of it where there are several; in depth order. ""
            stands for what is outside all blocks, "12–23" for names that only count.
        kinds: names of the columns, "attn1.to_q", ...
        norm: [b, k]; NaN where a block has no such module; 0 where it is untrained.
    """

    part: str
    rows: tuple[tuple[str, int | None], ...]
    kinds: tuple[str, ...]
    norm: Float64[np.ndarray, "b k"]

    @property
    def untrained(self) -> Bool[np.ndarray, "b k"]:
        """[b, k], whether there is a module and its ΔW is 0."""
        zero: Bool[np.ndarray, "b k"] = self.norm == 0
        return zero

    @property
    def total(self) -> Float64[np.ndarray, " b"]:
        """[b], √Σ‖ΔW‖_F² over the modules of a block."""
        total: Float64[np.ndarray, " b"] = np.sqrt(np.nansum(self.norm**2, axis=1))
        return total


def measure(subject: Subject) -> Sequence[tuple[str, tuple[BlockStrength, ...]]]:
    """The file's name, and a table for each part of the model."""
    return [(subject.title, block_strength(subject))]


def block_strength(subject: Subject) -> tuple[BlockStrength, ...]:
    """‖ΔW‖_F of every module, sorted into blocks and kinds, a table for each part of the model."""
    norms = dict(zip(subject.modules, subject.spectra.norm, strict=True))
    places = {name: place(name) for name in subject.modules}
    parts = dict.fromkeys(where.part for where in places.values())
    return tuple(
        _table(part, {name: where for name, where in places.items() if where.part == part}, norms) for part in parts
    )


def _table(part: str, places: "dict[str, Place]", norms: dict[str, float]) -> BlockStrength:
    several = {where.block for where in places.values() if where.inner}
    cells = {name: _cell(where, where.block in several) for name, where in places.items()}
    rows = tuple(dict.fromkeys(row for row, _ in cells.values()))
    inside = kinds_in_order([kind for (block, _), kind in cells.values() if block])
    kinds = inside + kinds_in_order([kind for _, kind in cells.values() if kind not in inside])
    norm = np.full((len(rows), len(kinds)), np.nan)
    for name, (row, kind) in cells.items():
        norm[rows.index(row), kinds.index(kind)] = norms[name]
    return BlockStrength(part, rows, kinds, norm)


def _cell(where: Place, several: bool) -> tuple[tuple[str, int | None], str]:
    """Row and column; a U-Net's block with several transformer blocks in it has a row for each."""
    if where.counted:
        number = int(where.kind)
        start = number - number % _COUNTED_IN_A_ROW
        return (f"{start}–{start + _COUNTED_IN_A_ROW - 1}", None), f"+{number - start}"
    return (where.block, where.inner if several else None), where.kind


def row_labels(rows: Sequence[tuple[str, int | None]]) -> tuple[list[str], str]:
    """Short labels of the rows, and what they count (see `block_labels`)."""
    if any("–" in block for block, _ in rows):
        return [block or "other" for block, _ in rows], "number in the file's list"
    labels, lists = block_labels([block for block, _ in rows])
    return [
        label if inner is None else f"{label}#{inner}" for label, (_, inner) in zip(labels, rows, strict=True)
    ], lists


def draw(page: tuple[str, tuple[BlockStrength, ...]]) -> "Figure":
    """A heat map blocks × kinds for each part of the model, beside the blocks' totals; one colour scale for all."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    name, tables = page
    gaps = " (white: no such module)" if any(np.isnan(table.norm).any() for table in tables) else ""
    columns = max(len(table.kinds) for table in tables)
    heights = [_ROW * min(max(len(table.rows), 3), _MOST_ROWS) + 0.25 for table in tables]
    width = min(max(_COLUMN * columns + 5.0, 7.5), 22.0)
    height = sum(heights) + 1.9 * len(tables) + 1.0
    figure = drawing.panels.new_figure(width, height, name, f"strength of the blocks, ‖ΔW‖_F{gaps}")
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
    label = "‖ΔW‖_F of a module (arrows: the weakest and the strongest 1\u00a0%)"
    bar.set_label(fill(label, max(24, int(12 * (_COLUMN * columns + 1)))))
    if any(table.untrained.any() for table in tables):
        figure.legend(handles=[drawing.panels.untrained_patch()], loc="outside lower right")
    return figure


def _limits(values: Float64[np.ndarray, " n"]) -> "LogNorm":
    """One giant among hundreds must not leave the others without colour, nor small differences seem large."""
    from matplotlib.colors import LogNorm

    high = float(np.percentile(values, 99)) if len(values) else 1.0
    low = float(np.percentile(values, 1)) if len(values) else 1.0
    return LogNorm(min(low, high / 3), high)


def _heat(axes: "Axes", table: BlockStrength, limits: "LogNorm") -> None:
    from matplotlib.patches import Rectangle

    trained = np.where(table.untrained, np.nan, table.norm)
    axes.imshow(trained, cmap="viridis", norm=limits, aspect="auto", interpolation="nearest")
    for row, column in np.argwhere(table.untrained):
        axes.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="0.93", hatch="////", edgecolor="0.6", linewidth=0)
        )
    labels, lists = row_labels(table.rows)
    step = -(-len(labels) // _MOST_ROWS)
    shown = [drawing.panels.drawable(drawing.panels.shortened(label, 36)) for label in labels[::step]]
    axes.set_yticks(range(0, len(labels), step), shown)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(-0.5, len(table.kinds) - 0.5)
    steps = -(-len(table.kinds) // 44)
    kinds = [drawing.panels.drawable(drawing.panels.shortened(kind, 30)) for kind in table.kinds[::steps]]
    axes.set_xticks(range(0, len(table.kinds), steps), kinds, rotation=90)
    axes.spines[:].set_visible(False)
    fits = lists and len(lists) < 4 * len(labels)  # what a word is cut down to says less than none
    axes.set_ylabel(drawing.panels.drawable(f"block ({lists})") if fits else "block")
    present = int(np.isfinite(table.norm).sum())
    axes.set_title(
        f"{table.part}: {drawing.panels.counted(present)}" if table.part != "model" else drawing.panels.counted(present)
    )


def _totals(axes: "Axes", table: BlockStrength) -> None:
    axes.barh(np.arange(len(table.rows)), table.total, color=drawing.panels.BLUE, height=0.75)
    axes.tick_params(axis="y", labelleft=False, left=False)
    axes.set_xlim(0, float(table.total.max()) * 1.05 or 1.0)
    axes.locator_params(axis="x", nbins=4)
    axes.set_title("all of a block, √Σ‖ΔW‖²")
    drawing.panels.tidy(axes, "x")
