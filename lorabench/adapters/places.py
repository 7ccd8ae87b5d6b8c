"""Where in the network a module lies, read from its name: part, block, place in the block, and the order of them all.

The order is that in which data pass: text encoders, encoders of pictures, then the denoiser or language model from
its input to its output; in a block attention before the rest, and q, k, v before out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lorabench.adapters.names.identity import component
from lorabench.errors import LorabenchError

__all__ = [
    "GROUPINGS",
    "Depth",
    "Place",
    "block_labels",
    "by_depth",
    "groups",
    "kinds_in_order",
    "module_type",
    "place",
]

GROUPINGS = ("block", "attention", "projection", "factor", "depth")
"""What layers can be grouped by."""

Depth = tuple[int, int, str, tuple[int, ...]]
"""Sorts in network order: part, stage (inputs, refiners, down, mid, up, outputs), container, numbers."""

_THIRDS = ("first third", "middle third", "last third")
_UNNAMED = "other"

_LAYER = re.compile(r"(?P<module>.+?)\.lora\.(?P<factor>down|up)\.weight(?P<number>\.\d+)?")
_MODEL_ITSELF, _VISION = 9, 7
_PART_ORDER = {"prior_unet": 8, "transformer_2": 10}

_ROOTS = frozenset({"base_model", "model", "unet", "prior_unet", "transformer", "transformer_2", "diffusion_model"})
_INPUT, _REFINER, _DOWN, _MIDDLE, _UP, _OUTPUT = -2, -1, 0, 1, 2, 3
_STAGES = {
    word: stage
    for stage, words in {
        # What prepares text, noise or modulation before the blocks proper.
        _REFINER: "noise_refiner context_refiner siglip_refiner token_refiner individual_token_refiner txtfusion "
        "distilled_guidance_layer",
        _DOWN: "down_blocks input_blocks encoder double_blocks transformer_blocks joint_blocks",
        _UP: "up_blocks output_blocks decoder single_blocks single_transformer_blocks",
    }.items()
    for word in words.split()
}
_OUTPUTS = re.compile(
    r"(?:^|\.)(?:all_)?(?:final_layer|norm_out|proj_out|conv_out|lm_head|head|classifier|score)(?:\.|$)"
)
_INPUTS = re.compile(
    r"(?:^|[._])(?:in|first|embed|embedd\w+|emb|wte|wpe|embed_\w+|time_projection|modulation(?:_\w+)?)(?:[._]|$)"
)

_UNET = re.compile(
    r"(?P<stage>(?:down_blocks|up_blocks|input_blocks|output_blocks)\.(?P<number>\d+)|mid_block|middle_block)"
    r"(?:\.(?:(?P<kind>[a-z_]*s)\.)?(?P<index>\d+)(?=\.))?(?:\.transformer_blocks\.(?P<inner>\d+))?\."
)
_NUMBERED = re.compile(r"\w+?\.\d+(?:\.(?:blocks|layers)\.\d+)?(?=\.)")
_COUNTED = re.compile(r"(?:unet|text_encoder\w*|w)[._](\d+)")
_ORDER_IN_STAGE = {"resnets": 0, "attentions": 1, "motion_modules": 2, "downsamplers": 99, "upsamplers": 99}

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
_PROJECTION_ORDER = {"q": 0, "k": 1, "v": 2, "out": 4}
_OTHER_PROJECTION = 3  # q, k and v in one, and those of a second stream

_SHORTER = (
    (r"^(down|up|mid)_blocks?(?:\.(\d+))?\.attentions\.(\d+)", r"\1 \2.\3"),
    (r"^(down|up|mid|input|output|middle)_blocks?\.", r"\1 "),
    (r"^single_(?:transformer_)?blocks\.", "single "),
    (r"^(transformer|double|joint)_blocks\.", r"\1 "),
    (r"^text_encoder(_\d+)?\.(?:encoder\.)?(?:layers|block)\.", r"text\1 "),
    (r"^(?:.*\.)?(\w+_refiner|distilled_guidance)(?:_layer)?\.(?:(?:refiner_)?blocks\.|layers\.)?", r"\1 "),
    (r"\.(resnet|downsampler|upsampler)s\.(\d+)", r" \1 \2"),
)


@dataclass(frozen=True)
class Place:
    """Where a layer or a module lies; a field is "" where the name does not say.

    Attributes:
        module: the module's canonical name.
        factor: "down" or "up"; "" for a module.
        part: "unet", "transformer", "text_encoder", "text_encoder_2", ...; "model" where the name does not say.
        block: the block of the network, such as "down_blocks.0.attentions.1", "layers.12" or
            "text_encoder.layers.5"; of names that only count modules (cloneofsimo, SAM), the module itself.
        inner: which transformer block of a U-Net's block, of which SDXL has up to ten; None where there is none.
        depth: sorts in network order; modules outside every block come first if their name speaks of an input or
            an embedding, otherwise last.
        attention: the attention as the model calls it ("attn1", "self_attn", "img_attn"), or the feed-forward part
            ("mlp", "ff").
        projection: "q", "k", "v", "out", else the model's own name ("fc1", "gate_proj", "net.0.proj").
        kind: what stands behind the block, "attn1.to_q": the same for the same modules of all blocks.
    """

    module: str
    factor: str
    part: str
    block: str
    inner: int | None
    depth: Depth
    attention: str
    projection: str
    kind: str

    @property
    def counted(self) -> bool:
        """Whether the name only counts modules."""
        return self.block == self.module

    @property
    def stage(self) -> str:
        """The block's list of blocks, "down_blocks"; "" outside all blocks and where names only count."""
        if not self.block or self.counted:
            return ""
        return re.split(r"\.\d+|(?<=_block)\.", self.block.removeprefix(f"{self.part}."))[0]


def place(name: str) -> Place:
    """Where the layer `<module>.lora.down.weight` or `.up.weight` lies, or the module of that name.

    >>> found = place("unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0")
    >>> found.part, found.block, found.inner, found.kind
    ('unet', 'down_blocks.0.attentions.1', 0, 'attn1.to_out')
    >>> place("model.layers.12.self_attn.q_proj.lora.down.weight").projection
    'q'
    """
    layer = _LAYER.fullmatch(name)
    module, factor = (layer["module"] + (layer["number"] or ""), layer["factor"]) if layer else (name, "")
    part, order = _part(module)
    counted = _COUNTED.fullmatch(module)
    if counted:
        return Place(module, factor, part, module, None, (order, _MIDDLE, "", (int(counted[1]),)), "", "", counted[1])
    unet = _UNET.search(module)
    block, inner, (stage, container, numbers), rest = _in_unet(module, unet) if unet else _in_list(module)
    attention, projection = _inside(rest)
    kind = re.sub(r"\b(to_out)\.0$", r"\1", re.sub(r"^layer\.\d+\.", "", rest))  # T5 numbers its sub-layers
    return Place(module, factor, part, block, inner, (order, stage, container, numbers), attention, projection, kind)


def module_type(name: str) -> str:
    """What a module is part of, by its name: "attention", "feed-forward", or "other" where it does not say.

    >>> module_type("model.layers.0.self_attn.q_proj"), module_type("h.0.mlp.c_fc"), module_type("lm_head")
    ('attention', 'feed-forward', 'other')
    """
    part = place(name).attention
    if not part:
        return "other"
    return "attention" if _ATTENTION.fullmatch(part) else "feed-forward"


def by_depth(names: Sequence[str]) -> tuple[str, ...]:
    """The layers or modules in network order, each down before up, whatever order they come in."""
    return tuple(sorted(names, key=_order))


def kinds_in_order(kinds: Sequence[str]) -> tuple[str, ...]:
    """Different kinds (see `Place`), those of one attention together, in it q, k, v, out; the rest behind.

    >>> kinds_in_order(["ff.net.2", "attn1.to_out", "attn1.to_q", "ff.net.2"])
    ('attn1.to_q', 'attn1.to_out', 'ff.net.2')
    """
    return tuple(sorted(set(kinds), key=lambda kind: _order_in_block(*_inside(kind), kind)))


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
    members: dict[str, list[str]] = {}
    for layer in ordered:
        name = thirds[layer] if by == "depth" else getattr(place(layer), by) or _UNNAMED
        members.setdefault(name, []).append(layer)
    return {name: tuple(layers) for name, layers in members.items()}


def block_labels(blocks: Sequence[str]) -> tuple[list[str], str]:
    """Short labels of blocks, and what they count: `(["0", "1"], "layers")`; "" where of several lists.

    Where all are of one list their numbers are enough; otherwise "down 0.1" is attention 1 of the down block 0.
    Modules outside all blocks, which have "" for a block, are "other".

    >>> block_labels(["stages.0.blocks.3", "stages.1.blocks.0"])
    (['0.3', '1.0'], 'stages · blocks')
    """
    inside = [block for block in blocks if block]
    if inside and all(_COUNTED.fullmatch(block) for block in inside):
        return [re.split(r"[._]", block)[-1] or _UNNAMED for block in blocks], "number in the file's list"
    lists = {re.sub(r"\.\d+", ".·", block) for block in inside}
    if len(lists) == 1 and "·" in (name := lists.pop()) and not _UNET.match(f"{inside[0]}."):
        numbers = [".".join(re.findall(r"(?<=\.)\d+", block)) or _UNNAMED for block in blocks]
        return numbers, " · ".join(words.rpartition(".")[2] for words in name.rstrip(".·").split(".·."))
    return [_short(block) if block else _UNNAMED for block in blocks], ""


def _short(block: str) -> str:
    for pattern, shorter in _SHORTER:
        block = re.sub(pattern, shorter, block)
    return block.replace(" .", " ").strip()


def _thirds(ordered: Sequence[str]) -> dict[str, str]:
    """Which third of the network every layer is in; what lies outside the blocks joins the third beside it."""
    places = [place(layer) for layer in ordered]
    in_blocks = any(where.block for where in places)
    keys = [where.block if in_blocks else where.module for where in places]
    blocks = [key for key in dict.fromkeys(keys) if key]
    number = {block: 3 * i // len(blocks) for i, block in enumerate(blocks)}
    thirds, last = {}, 0
    for layer, key, where in zip(ordered, keys, places, strict=True):
        last = number.get(key, 0 if where.depth[1] < _DOWN else last)
        thirds[layer] = _THIRDS[last]
    return thirds


def _part(module: str) -> tuple[str, int]:
    """The part of a pipeline, and when data reach it: text encoders first, then encoders of pictures."""
    name = component(module)
    text = re.match(r"(?:prior_)?text_encoder(?:_(\d+))?\.", module)
    if text or module.startswith("text_model."):
        return name, int(text[1] or 1) if text else 1
    vision = "vision" in module.split(".encoder")[0]
    return name, _VISION if vision else _PART_ORDER.get(name, _MODEL_ITSELF)


_Found = tuple[str, int | None, tuple[int, str, tuple[int, ...]], str]
"""A block's name, the transformer block in it, stage, container and numbers, and what follows in the module's name."""


def _in_unet(module: str, unet: re.Match[str]) -> _Found:
    kind, index = unet["kind"] or "", int(unet["index"] or 0)
    last = _ORDER_IN_STAGE.get(kind, 1)
    numbers = (int(unet["number"] or 0), max(index, last) if last == 99 else index, last, int(unet["inner"] or 0))
    block = module[unet.start() : unet.end() - 1].removesuffix(f".transformer_blocks.{unet['inner']}")
    inner = None if unet["inner"] is None else int(unet["inner"])
    return block, inner, (_stage(unet["stage"]), "", numbers), module[unet.end() :]


def _in_list(module: str) -> _Found:
    """A block of one of the lists that a transformer has; its name without the roots that all modules share."""
    numbered = _NUMBERED.search(module)
    if numbered is None:
        return "", None, (_outside(module), "", ()), _without_root(module)
    block = _without_root(module[: numbered.end()]).replace("text_model.encoder.", "")
    numbers = tuple(int(number) for number in re.findall(r"\.(\d+)", numbered[0]))
    return block, None, (_stage(block), re.sub(r"\d+", "", block), numbers), module[numbered.end() + 1 :]


def _outside(module: str) -> int:
    if any(_STAGES.get(word) == _REFINER for word in module.split(".")):
        return _REFINER
    return _INPUT if _INPUTS.search(module) and not _OUTPUTS.search(module) else _OUTPUT


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


_Natural = list[tuple[int, str]]


def _order(name: str) -> tuple[Depth, tuple[int, str, int, _Natural], str]:
    where = place(name)
    return where.depth, _order_in_block(where.attention, where.projection, where.module), where.factor


def _order_in_block(attention: str, projection: str, name: str) -> tuple[int, str, int, _Natural]:
    attends = _ATTENTION.fullmatch(attention or projection) is not None
    part = attention if attends else f"~{attention}"  # "~" sorts behind letters
    natural = [(int(word), "") if word.isdecimal() else (-1, word) for word in re.split(r"(\d+)", name)]
    when = -1 if projection == "proj_in" else 0 if attends else 1  # into a U-Net's attention, and the rest of a block
    return when, part, _PROJECTION_ORDER.get(projection, _OTHER_PROJECTION), natural
