"""The axis that runs through all modules of an adapter, from input to output."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.transforms import blended_transform_factory

from lorabench.adapters.drawing.names import drawable, shortened
from lorabench.adapters.drawing.places import block_labels, spot
from lorabench.adapters.drawing.style import GREY

__all__ = ["MODULE_LABELS", "depth_axis", "depth_width"]

MODULE_LABELS = 40
"""Up to so many modules are each named; of more, the blocks are."""

_INCHES_A_LABEL = 0.145
_INCHES_A_LETTER = 0.061  # at 7 points


def depth_width(count: int) -> float:
    """Inches of a figure with so many modules along x."""
    return min(max(0.22 * count + 2.5, 8.0), 13.0)


def depth_axis(
    axes: Axes, modules: Sequence[str], width: float | int, labels: bool = True, groups: bool = True
) -> None:
    """Ticks where blocks begin, lines and names where parts of the network do.

    Args:
        axes: x is the index into `modules`.
        modules: in depth order.
        width: inches of the axes, about.
        labels: whether to name the ticks; of panels that share x the lowest alone needs it.
        groups: whether to name the parts above the panel, below its title, which must be set before.
    """
    axes.set_xlim(-0.5, len(modules) - 0.5)
    spots = [spot(module) for module in modules]
    ticks, names = _ticks(modules, width)
    axes.set_xticks(ticks, names if labels else [""] * len(ticks), rotation=90)
    axes.tick_params(axis="x", length=2 if labels else 0)
    keys = [(one.part, "" if "–" in one.block else one.stage) for one in spots]
    starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    if len(starts) == 1 or len(starts) > 24:
        return
    if groups:
        axes.set_title(axes.get_title(loc="left"), pad=15)
    inch = width / len(modules)
    above = blended_transform_factory(axes.transData, axes.transAxes)
    shown = ""
    for start, stop in zip(starts, [*starts[1:], len(modules)], strict=True):
        if start:
            axes.axvline(start - 0.5, color="0.75", linewidth=0.8, zorder=0.5)
        part, stage = keys[start]
        short = stage.removesuffix("_blocks").removesuffix("_block").rpartition(".")[2]
        wishes = (short,) if part in (shown, "model") else (f"{part} {short}".strip(), part)
        room = int((stop - start) * inch / _INCHES_A_LETTER)
        name = next((wish for wish in wishes if len(wish) <= room), "")
        if groups and name:
            axes.text(start - 0.4, 1.01, drawable(name), transform=above, fontsize=7, color=GREY, va="bottom")
            shown = part


def _ticks(modules: Sequence[str], width: float | int) -> tuple[list[int], list[str]]:
    """As many places and names as there is room for."""
    spots = [spot(module) for module in modules]
    if len(modules) <= MODULE_LABELS:
        blocks, _ = block_labels([one.block for one in spots])
        names = [_module_label(one.block, label, one.kind) for one, label in zip(spots, blocks, strict=True)]
        return list(range(len(modules))), [drawable(shortened(name, 32)) for name in names]
    keys = [(one.part, one.block) for one in spots]
    starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    blocks, _ = block_labels([keys[i][1] for i in starts])
    gap = _INCHES_A_LABEL * len(modules) / width
    ticks: list[int] = []
    names = []
    for start, label in zip(starts, blocks, strict=True):
        if not ticks or start - ticks[-1] >= gap:
            ticks.append(start)
            names.append(drawable(shortened(label, 24)))
    return ticks, names


def _module_label(block: str, label: str, kind: str) -> str:
    if "–" in block:
        return str(int(block.partition("–")[0]) + int(kind))
    return f"{label} {kind}" if block else kind
