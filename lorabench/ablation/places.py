"""Where in the network a layer sits, read from its name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lorabench.adapters.reading.naming import parse_key
from lorabench.errors import LorabenchError

__all__ = ["GROUPINGS", "Depth", "Place", "by_depth", "groups", "place"]

GROUPINGS = ("block", "attention", "projection", "factor", "depth")
"""What layers can be grouped by."""

Depth = tuple[int, int, str, tuple[int, ...]]
"""Sorts in network order: component (text encoders first), stage (down, mid, up), container, numbers."""

_THIRDS = ("first third", "middle third", "last third")
_UNNAMED = "other"

_ROOTS = frozenset({"base_model", "model", "unet", "transformer", "diffusion_model"})
_STAGES = {
    word: stage
    for stage, words in {
        0: "down_blocks input_blocks encoder double_blocks transformer_blocks joint_blocks noise_refiner txtfusion",
        2: "up_blocks output_blocks decoder single_blocks single_transformer_blocks",
    }.items()
    for word in words.split()
}
_INPUT, _MIDDLE, _OUTPUT = -1, 1, 3

_UNET = re.compile(
    r"(?P<stage>(?:down_blocks|up_blocks|input_blocks|output_blocks)\.(?P<number>\d+)|mid_block|middle_block)"
    r"(?:\.(?:(?P<kind>[a-z_]*s)\.)?(?P<index>\d+)(?=\.))?(?:\.transformer_blocks\.(?P<inner>\d+))?\."
)
_NUMBERED = re.compile(r"\w+?\.\d+(?:\.(?:blocks|layers)\.\d+)?(?=\.)")
_COUNTED = re.compile(r"(?:unet|text_encoder\w*|w)[._](\d+)")
_INPUTS = re.compile(r"(?:^|[._])(?:in|first|embed|embedd\w+|emb|wte|wpe|embed_\w+)(?:[._]|$)")
_ORDER_IN_BLOCK = {"resnets": 0, "attentions": 1, "motion_modules": 2, "downsamplers": 99, "upsamplers": 99}

_ATTENTION = re.compile(r"(?!adaln|norm)(?:\w*_)?(?:attn|attention)\d*(?:_\w+)?|\w*Attention|crossattention")
_FEED_FORWARD = re.compile(r"(?!adaln|norm)(?:\w*_)?(?:mlp|ffn?|feed_forward|moe)(?:_\w+)?|DenseReluDense")
_PROJECTIONS = {
    name: projection
    for projection, names in {
        "q": "to_q q_proj q query wq",
        "k": "to_k k_proj k key wk",
        "v": "to_v v_proj v value wv",
        "out": "to_out out_proj o_proj output_proj",
    }.items()
    for name in names.split()
}
_OUT_OF_ATTENTION = frozenset({"o", "wo", "out", "proj", "c_proj", "dense"})
_PROJECTION_ORDER = ("q", "k", "v", "out")


@dataclass(frozen=True)
class Place:
    """Where a layer sits; a field is "" where the name does not say.

    Attributes:
        module: the module's canonical name.
        block: the block of the network, such as "down_blocks.0.attentions.1", "layers.12" or
            "text_encoder.layers.5"; of names that only count modules (cloneofsimo, SAM), the module itself.
        depth: sorts in network order; modules outside every block come first if their name speaks of an input or
            an embedding, otherwise last.
        attention: the attention as the model calls it ("attn1", "self_attn", "img_attn"), or the feed-forward part
            ("mlp", "ff").
        projection: "q", "k", "v", "out", else the model's own name ("fc1", "gate_proj", "net.0.proj").
        factor: "down" or "up"; "" for a module.
    """

    module: str
    block: str
    depth: Depth
    attention: str
    projection: str
    factor: str


def place(layer: str) -> Place:
    """Where the layer `<module>.lora.down.weight` or `.up.weight` sits, or the module of that name.

    >>> place("model.layers.12.self_attn.q_proj.lora.down.weight").projection
    'q'
    """
    parsed = parse_key(layer)
    module, factor = (parsed.module, parsed.part) if parsed.is_layer else (layer, "")
    counted = _COUNTED.fullmatch(module)
    if counted:
        return Place(module, module, (_component(module), _MIDDLE, "", (int(counted[1]),)), "", "", factor)
    block, depth, rest = _block(module)
    attention, projection = _inside(rest)
    return Place(module, block, depth, attention, projection, factor)


def by_depth(layers: Sequence[str]) -> tuple[str, ...]:
    """The layers in network order: text encoders, then down, mid, up; in a block q, k, v, out, each down before up."""
    return tuple(sorted(layers, key=_order))


def groups(layers: Sequence[str], by: str) -> dict[str, tuple[str, ...]]:
    """The layers by what they have in common, groups and layers in network order; "other" where a name does not say.

    Args:
        layers: names of layers or modules.
        by: one of `GROUPINGS`; "depth" is the first, the middle and the last third of the blocks.

    Raises:
        LorabenchError: `by` is none of them.
    """
    if by not in GROUPINGS:
        raise LorabenchError(f"grouping by {by!r}: layers can be grouped by {', '.join(GROUPINGS)}. Take one of these.")
    ordered = by_depth(layers)
    thirds = _thirds(ordered) if by == "depth" else {}
    found: dict[str, list[str]] = {}
    for layer in ordered:
        name = thirds[layer] if by == "depth" else getattr(place(layer), by) or _UNNAMED
        found.setdefault(name, []).append(layer)
    return {name: tuple(members) for name, members in found.items()}


def _thirds(ordered: Sequence[str]) -> dict[str, str]:
    """Which third of the network every layer is in; what stands outside the blocks joins the third beside it."""
    places = [place(layer) for layer in ordered]
    in_blocks = any(spot.block for spot in places)
    spots = list(dict.fromkeys(spot.block if in_blocks else spot.module for spot in places))
    blocks = [spot for spot in spots if spot]
    number = {block: 3 * i // len(blocks) for i, block in enumerate(blocks)}
    found, last = {}, 0
    for layer, spot in zip(ordered, places, strict=True):
        last = number.get(spot.block if in_blocks else spot.module, 0 if spot.depth[1] == _INPUT else last)
        found[layer] = _THIRDS[last]
    return found


def _block(module: str) -> tuple[str, Depth, str]:
    """The block's name, its depth, and what follows it in the module's name."""
    unet = _UNET.search(module)
    if unet:
        kind, index = unet["kind"] or "", int(unet["index"] or 0)
        last = _ORDER_IN_BLOCK.get(kind, 1)
        order = (int(unet["number"] or 0), max(index, last) if last == 99 else index, last, int(unet["inner"] or 0))
        block = module[unet.start() : unet.end() - 1]
        block = block.removesuffix(f".transformer_blocks.{unet['inner']}")
        return block, (_component(module), _stage(unet["stage"]), "", order), module[unet.end() :]
    numbered = _NUMBERED.search(module)
    if numbered is None:
        stage = _INPUT if _INPUTS.search(module) else _OUTPUT
        return "", (_component(module), stage, "", ()), _without_root(module)
    block = _without_root(module[: numbered.end()]).replace("text_model.encoder.", "")
    numbers = tuple(int(number) for number in re.findall(r"\.(\d+)", module[numbered.start() : numbered.end()]))
    container = re.sub(r"\d+", "", block)
    return block, (_component(module), _stage(block), container, numbers), module[numbered.end() + 1 :]


def _component(module: str) -> int:
    """Text encoders are passed first, then encoders of pictures, then the model itself."""
    text = re.match(r"(?:prior_)?text_encoder(?:_(\d+))?\.", module)
    if text or re.match(r"text_model\.", module):
        return int(text[1] or 1) if text else 1
    return 8 if "vision" in module.split(".encoder")[0] else 9


def _stage(block: str) -> int:
    return next((_STAGES[word] for word in block.split(".") if word in _STAGES), _MIDDLE)


def _without_root(name: str) -> str:
    """The name without the leading words that all modules of a model share."""
    words = name.split(".")
    while len(words) > 1 and words[0] in _ROOTS and not words[1].isdecimal():
        words = words[1:]
    return ".".join(words)


def _inside(rest: str) -> tuple[str, str]:
    """Attention or feed-forward part, and projection, from what follows the block in a module's name."""
    words = rest.split(".")
    attention = next((i for i, word in enumerate(words[:-1]) if _ATTENTION.fullmatch(word)), None)
    forward = next((i for i, word in enumerate(words[:-1]) if _FEED_FORWARD.fullmatch(word)), None)
    at = attention if attention is not None else forward
    part = "" if at is None else words[at]
    last = next((word for word in reversed(words) if not word.isdecimal()), "")
    if attention is not None and last in _OUT_OF_ATTENTION:
        return part, "out"
    if (attention is not None or forward is None) and last in _PROJECTIONS:
        return part, _PROJECTIONS[last]
    own = ".".join(words[0 if at is None else at + 1 :])
    own = re.sub(r"^experts\.\d+\.", "", own)
    return part, f"{part}.{own}" if own.isdecimal() else own


def _order(layer: str) -> tuple[Depth, int, str, int, list[tuple[int, str]], str]:
    spot = place(layer)
    attends = _ATTENTION.fullmatch(spot.attention) is not None
    known = spot.projection in _PROJECTION_ORDER
    projection = _PROJECTION_ORDER.index(spot.projection) if known else len(_PROJECTION_ORDER)
    part = spot.attention if attends else f"~{spot.attention}"  # "~" sorts behind letters
    return spot.depth, 0 if attends else 1, part, projection, _natural(spot.module), spot.factor


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in re.split(r"(\d+)", name)]
