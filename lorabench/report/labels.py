"""Short names of layers and blocks for pictures; tables have the whole names."""

import re
from collections import Counter
from collections.abc import Sequence

from lorabench.ablation.places import Place, place

__all__ = ["axis_of_blocks", "block_labels", "layer_labels", "unit_label"]

_SHORT = (
    (r"^(down|up|mid)_blocks?(?:\.(\d+))?\.attentions\.(\d+)$", r"\1 \2.\3"),
    (r"^(down|up|mid|input|output|middle)_blocks?\.", r"\1 "),
    (r"^single_transformer_blocks\.|^single_blocks\.", "single "),
    (r"^(transformer|double|joint)_blocks\.", r"\1 "),
    (r"^text_encoder(_\d+)?\.(?:encoder\.)?(?:layers|block)\.", r"text\1 "),
)


def block_labels(blocks: Sequence[str]) -> list[str]:
    """A short label of each block: its number alone where all are of one list."""
    if axis_of_blocks(blocks) != "block":
        return [block.rpartition(".")[2] for block in blocks]
    return [_short(block) for block in blocks]


def axis_of_blocks(blocks: Sequence[str]) -> str:
    """What the labels count, such as "block (layers)"; "block" where the blocks are of several lists."""
    lists = {re.sub(r"\.\d+$", "", block) for block in blocks}
    same = len(lists) == 1 and all(re.search(r"\.\d+$", block) for block in blocks)
    return f"block ({lists.pop()})" if same and not any(re.search(r"\.\d+\.", block) for block in blocks) else "block"


def layer_labels(layers: Sequence[str]) -> list[str]:
    """A short label of each layer, or its whole name where the short one would be another layer's too."""
    places = [place(layer) for layer in layers]
    blocks = block_labels([spot.block for spot in places])
    short = [_label(spot, block) for spot, block in zip(places, blocks, strict=True)]
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
    spot = place(unit)
    return f"{spot.module} ·{spot.factor}".removesuffix(" ·")


def _label(spot: Place, block: str) -> str:
    words = (block, spot.attention, spot.projection, f"·{spot.factor}".removesuffix("·"))
    return " ".join(word for word in words if word)


def _with_inner(places: Sequence[Place], blocks: Sequence[str]) -> list[str]:
    """SDXL has up to ten transformer blocks in one block: their number, as in "up 0.1#9"."""
    inner = [re.search(r"\.transformer_blocks\.(\d+)", spot.module.replace(spot.block, "")) for spot in places]
    return [
        _label(spot, f"{block}#{found[1]}" if found else block)
        for spot, block, found in zip(places, blocks, inner, strict=True)
    ]


def _short(block: str) -> str:
    for pattern, shorter in _SHORT:
        found, times = re.subn(pattern, shorter, block)
        if times:
            return found.replace(" .", " ")
    return block
