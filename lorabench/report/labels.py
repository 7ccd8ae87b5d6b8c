"""Short names of layers for pictures; tables have the whole names."""

from collections import Counter
from collections.abc import Sequence

from lorabench.adapters.places import Place, block_labels, place

__all__ = ["LINE", "MOST_LINES", "layer_labels", "unit_label"]

LINE = 0.125
"""Inches a layer in a picture with a line each: room for a label of 6.5 points."""

MOST_LINES = 320
"""Labels in such a picture; of more layers some go without."""


def layer_labels(layers: Sequence[str]) -> list[str]:
    """A short label of each layer, or its whole name where the short one would be another layer's too."""
    places = [place(layer) for layer in layers]
    blocks, _ = block_labels([where.block for where in places])
    blocks = [label if where.block else "" for where, label in zip(places, blocks, strict=True)]
    short = [_label(where, block) for where, block in zip(places, blocks, strict=True)]
    for longer in (
        _with_inner(places, blocks),
        [unit_label(layer) for layer in layers],
    ):
        count = Counter(short)
        short = [label if label and count[label] == 1 else other for label, other in zip(short, longer, strict=True)]
    return short


def unit_label(unit: str) -> str:
    """The module and the factor of a layer, the name of a module, or that all layers are one unit."""
    if unit == "all":
        return "all layers as one unit"
    where = place(unit)
    return f"{where.module} ·{where.factor}".removesuffix(" ·")


def _label(where: Place, block: str) -> str:
    words = (block, where.attention, where.projection, f"·{where.factor}".removesuffix("·"))
    return " ".join(word for word in words if word)


def _with_inner(places: Sequence[Place], blocks: Sequence[str]) -> list[str]:
    """SDXL has up to ten transformer blocks in one block: their number, as in "up 0.1#9"."""
    return [
        _label(where, block if where.inner is None else f"{block}#{where.inner}")
        for where, block in zip(places, blocks, strict=True)
    ]
