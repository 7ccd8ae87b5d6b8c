"""Panels along the network's depth: one an attention kind and projection, those outside the blocks last."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorabench.adapters.places import Place, block_labels, by_depth, place
from lorabench.pictures import tidy

__all__ = ["DepthPanel", "depth_panels"]

_MOST_LABELS = 80
_MOST_INCHES = 15.0
_OUTSIDE = "outside the blocks"


@dataclass(frozen=True)
class _Axis:
    """Where along x the layers of some panels stand.

    Attributes:
        at: layer -> its place along x, from 0.
        labels: of every place.
        title: what the labels count.
    """

    at: Mapping[str, int]
    labels: Sequence[str]
    title: str

    @property
    def inches(self) -> float:
        """The width that the labels need."""
        return min(max(0.19 * len(self.labels) + 0.9, 3.0), _MOST_INCHES)


@dataclass(frozen=True)
class DepthPanel:
    """One panel.

    Attributes:
        axes: where to draw; title and labels along x are there.
        layers: what belongs into it, in network order.
        axis: where along x.
    """

    axes: Axes
    layers: Sequence[str]
    axis: _Axis

    def places(self, layers: Sequence[str]) -> Float64[np.ndarray, " n"]:
        """Where along x these stand; those that share a place stand side by side."""
        at = np.array([self.axis.at[layer] for layer in layers])
        found = at.astype(np.float64)
        for spot in set(at.tolist()):
            same = np.flatnonzero(at == spot)
            if len(same) > 1:
                found[same] += np.linspace(-0.3, 0.3, len(same))
        return found

    def is_line(self, layers: Sequence[str]) -> bool:
        """Whether these have an order that a line may follow: blocks, and one layer each."""
        return self.axis.title != "module" and len({self.axis.at[layer] for layer in layers}) == len(layers)


def depth_panels(layers: Sequence[str]) -> tuple[Figure, list[DepthPanel]]:
    """A figure with the panels of these layers or modules; all share y."""
    members = _members(by_depth(layers))
    names = list(members)
    axis = _axis([layer for name, inside in members.items() if name != _OUTSIDE for layer in inside])
    outside = _axis(members.get(_OUTSIDE, ()))
    inches = max(axis.inches, outside.inches)
    columns = _columns(names, inches)
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(max(inches * columns + 0.5, 6.5), 2.1 * lines + 2.1), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    found = []
    for number, name in enumerate(names):
        panel = DepthPanel(grid[number], members[name], outside if name == _OUTSIDE else axis)
        panel.axes.set_title(name, fontsize=9)
        tidy(panel.axes, "y")
        lowest = number + columns >= len(names) or names[number + columns] == _OUTSIDE
        _label_axis(panel, max(len(axis.labels), len(outside.labels)), lowest or name == _OUTSIDE)
        found.append(panel)
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    return figure, found


def _members(layers: Sequence[str]) -> dict[str, list[str]]:
    """Layers by attention kind and projection, those outside the blocks last."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        spot = place(layer)
        found.setdefault(_panel_name(spot), []).append(layer)
    if _OUTSIDE in found:
        found[_OUTSIDE] = found.pop(_OUTSIDE)
    return found


def _panel_name(spot: Place) -> str:
    if not spot.block:
        return _OUTSIDE
    part = "" if spot.projection.startswith(f"{spot.attention}.") else spot.attention
    return " · ".join(word for word in (part, spot.projection) if word) or "layers"


def _axis(layers: Sequence[str]) -> _Axis:
    """A place for every depth of the network, in order."""
    places = {layer: place(layer) for layer in by_depth(layers)}
    if not any(spot.block for spot in places.values()):
        modules = list(dict.fromkeys(spot.module for spot in places.values()))
        at_module = {layer: modules.index(spot.module) for layer, spot in places.items()}
        return _Axis(at_module, [place(module).projection or module for module in modules], "module")
    spots = list(dict.fromkeys((spot.block, spot.depth) for spot in places.values()))
    at = {spot: number for number, spot in enumerate(spots)}
    blocks = [block for block, _ in spots]
    names, lists = block_labels(blocks)
    # A block of several depths (SDXL has up to ten transformer blocks in one) is named at its first.
    labels = [
        label if number == blocks.index(block) else ""
        for number, (block, label) in enumerate(zip(blocks, names, strict=True))
    ]
    title = f"block ({lists})" if lists else "block"
    return _Axis({layer: at[spot.block, spot.depth] for layer, spot in places.items()}, labels, title)


def _columns(names: Sequence[str], inches: float) -> int:
    """As many panels side by side as an attention kind has projections, where they fit."""
    fit = max(int(_MOST_INCHES // inches), 1)
    kinds = [name.partition(" · ")[0] for name in names]
    each = {kinds.count(kind) for kind in kinds}
    count = each.pop() if len(each) == 1 else 0
    return count if 1 < count <= fit else min(fit, 2 if len(names) <= 8 else 3, len(names))


def _label_axis(panel: DepthPanel, places: int, named: bool) -> None:
    axes, axis = panel.axes, panel.axis
    axes.set_xlim(-0.6, places - 0.4)
    step = -(-len(axis.labels) // _MOST_LABELS)
    ticks = [i for i, label in enumerate(axis.labels) if label][::step]
    labels = [axis.labels[i] for i in ticks] if named else [""] * len(ticks)
    longest = max((len(label) for label in labels), default=0)
    axes.set_xticks(ticks, labels, rotation=0 if longest <= 2 else 90, fontsize=7)
    if named:
        axes.set_xlabel(axis.title, fontsize=8)
