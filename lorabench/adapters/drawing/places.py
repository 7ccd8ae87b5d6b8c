"""Where in the network a module sits, as far as its name tells: for the axes of pictures."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lorabench.adapters.reading.naming import component

__all__ = ["Spot", "block_labels", "families", "in_depth", "kinds_in_order", "spot"]

_ROW = 12
"""Modules that a name only counts ("unet.48", "w_003") are shown in rows of so many."""

_COUNTED = re.compile(r"(?:w_)?(\d+)")
# From here on a name speaks of what is inside one block.
_INSIDE = re.compile(
    r"(?:\w+_)?(?:attn|attention|mlp|ffn?|feed_forward|moe)\d*(?:_\w+)?|\w*Attention|DenseReluDense|crossattention"
)
_INPUTS = """
conv_in time_embedding time_embed time_in add_embedding label_emb img_in txt_in vector_in guidance_in x_embedder
t_embedder context_embedder time_text_embed embeddings embed_tokens wte wpe emb token_embedding
"""
_FIRST = frozenset(_INPUTS.split())
_LATE = frozenset({"up_blocks", "output_blocks", "decoder", "single_transformer_blocks", "single_blocks"})
_LAST = frozenset({"conv_out", "norm_out", "proj_out", "final_layer", "lm_head", "head", "classifier", "score"})
_PROJECTIONS = ("q", "k", "v", "qkv", "out")
_PROJECTION = {
    "q": "to_q q_proj q query wq",
    "k": "to_k k_proj k key wk",
    "v": "to_v v_proj v value wv",
    "qkv": "to_qkv qkv c_attn query_key_value in_proj",
    "out": "to_out out_proj o_proj o wo",
}
_ORDER = {word: _PROJECTIONS.index(name) for name, words in _PROJECTION.items() for word in words.split()}


@dataclass(frozen=True)
class Spot:
    """Where a module sits.

    Attributes:
        part: "unet", "text_encoder", ...; "model" where the name does not say.
        block: "down_blocks.0.attentions.1.transformer_blocks.0", "layers.12"; "" outside all blocks.
        kind: what it is inside its block, "attn1.to_q"; for names that only count, the place in a row of 12.
    """

    part: str
    block: str
    kind: str

    @property
    def stage(self) -> str:
        """The first word of the block without numbers ("down_blocks"), "" outside all blocks."""
        return re.split(r"\.\d+|(?<=_block)\.", self.block)[0] if self.block else ""


def spot(module: str) -> Spot:
    """Where the module of this canonical name sits.

    >>> spot("unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0")
    Spot(part='unet', block='down_blocks.0.attentions.1.transformer_blocks.0', kind='attn1.to_out')
    >>> spot("text_encoder.17")
    Spot(part='text_encoder', block='12–23', kind='+5')
    """
    part = component(module)
    rest = module if part == "model" else module.partition(".")[2]
    counted = _COUNTED.fullmatch(rest)
    if counted:
        number = int(counted[1])
        start = number - number % _ROW
        return Spot(part, f"{start}–{start + _ROW - 1}", f"+{number - start}")
    words = rest.split(".")
    stop = next((i for i, word in enumerate(words) if _INSIDE.fullmatch(word)), len(words) - 1)
    numbers = [i for i, word in enumerate(words) if word.isdecimal() and i < stop]
    if not numbers:
        return Spot(part, "", rest)
    block = re.sub(r"(\bblock\.\d+)\.layer\.\d+$", r"\1", ".".join(words[: numbers[-1] + 1]))  # T5's sub-layers
    return Spot(part, block, re.sub(r"\b(to_out)\.0$", r"\1", ".".join(words[numbers[-1] + 1 :])))


def in_depth(modules: Sequence[str]) -> tuple[str, ...]:
    """The modules from the network's input to its output, where names tell; otherwise their order stays.

    Parts of a model stay together in the order in which they come.
    """
    spots = {module: spot(module) for module in modules}
    parts = list(dict.fromkeys(one.part for one in spots.values()))
    return tuple(sorted(modules, key=lambda module: (parts.index(spots[module].part), _stage(module, spots[module]))))


def kinds_in_order(kinds: Sequence[str]) -> tuple[str, ...]:
    """Kinds of projection, those of one attention together, in it q, k, v, out; counted ones by number."""
    return tuple(sorted(set(kinds), key=_kind_order))


def families(modules: Sequence[str], most: int) -> dict[str, tuple[int, ...]]:
    """The modules' places by kind, for colours: by the kind's first word where kinds are too many, the rarest as one.

    Args:
        modules: names.
        most: families that can be told apart.

    Returns:
        Kind ("attn1.to_q", or "attn1", or "other"; "module" where names only count) -> indices into `modules`.
    """
    names = [spot(module).kind for module in modules]
    if any(name.startswith("+") for name in names):
        return {"module": tuple(range(len(names)))}
    if len(set(names)) > most:
        names = [name.split(".")[0] for name in names]
    order = list(kinds_in_order(names))
    if len(order) > most:
        common = {name for name, _ in Counter(names).most_common(most - 1)}
        names = [name if name in common else "other" for name in names]
        order = [name for name in order if name in common] + ["other"]
    return {kind: tuple(i for i, name in enumerate(names) if name == kind) for kind in order}


def block_labels(blocks: Sequence[str]) -> tuple[list[str], str]:
    """Short labels of blocks, and what they count: `(["0", "1"], "layers")`.

    Where all blocks are of one list the numbers alone are enough, otherwise "down 0.1#3" is the transformer block 3
    of the attention 1 of the down block 0.
    """
    named = [block for block in blocks if block]
    if named and all("–" in block for block in named):
        return [block or "other" for block in blocks], "number in the file's list"
    lists = {re.sub(r"\d+", "·", block) for block in named}
    if len(lists) == 1:
        numbers = [".".join(re.findall(r"\d+", block)) or "other" for block in blocks]
        return numbers, " · ".join(words.rpartition(".")[2] for words in lists.pop().rstrip(".·").split(".·."))
    return [_short(block) if block else "other" for block in blocks], ""


def _short(block: str) -> str:
    label = re.sub(r"(?:^|\.)(?:model|encoder|text_model|transformer)(?=\.)", "", block).lstrip(".")
    label = re.sub(r"\.attentions\.(\d+)", r".\1", label)
    label = re.sub(r"\.(?:transformer_blocks|blocks)\.(\d+)", r"#\1", label)
    label = re.sub(r"_blocks?\b", "", label)
    label = re.sub(r"\.(resnet|downsampler|upsampler)s\.(\d+)", r" \1 \2", label)
    return re.sub(r"^([a-z_]+)\.(?=\d)", r"\1 ", label)


def _stage(module: str, where: Spot) -> int:
    words = module.split(".")
    if where.block:
        return 1 if any(word in _LATE for word in words[:3]) else 0
    if any(word in _FIRST for word in words):
        return -1
    return 2 if any(word in _LAST for word in words) else 0


def _kind_order(kind: str) -> tuple[int, str, int, int, str]:
    words = kind.split(".")
    if kind.startswith("+"):
        return 0, "", int(kind), 0, ""
    place = next((_ORDER[word] for word in reversed(words) if word in _ORDER), len(_PROJECTIONS))
    attends = place < len(_PROJECTIONS) or "attn" in kind or "attention" in kind.lower()
    return 0 if attends else 1, words[0] if len(words) > 1 else "", place, 0, kind
