"""What the original models' modules are called in diffusers, whose fused projections are split there."""

import re
from functools import lru_cache
from typing import Literal, NamedTuple

__all__ = ["FLATTENED_BY_KOHYA", "KEPT_BY_KOHYA", "Rule", "fused_as", "renamed", "rules"]


class Rule(NamedTuple):
    """One module of an original model, and what it is in diffusers; `#` stands for a block's number.

    Attributes:
        original: its name.
        parts: diffusers' names, one after another in the rows of ΔW.
        how: "split": rows are d_in for the query, the same for key and value in equal parts, and what is left for a
            fourth part; "grouped": the same, but grouped queries leave key and value fewer rows; "swap": one module,
            whose halves (shift and scale) change places; "same": one module.
    """

    original: str
    parts: tuple[str, ...]
    how: Literal["same", "split", "grouped", "swap"] = "same"


def _attention(original: str, stem: str, names: str, how: Literal["split", "grouped"] = "split") -> Rule:
    return Rule(original, tuple(f"{stem}.{name}" for name in names.split()), how)


_QKV, _ADDED = "to_q to_k to_v", "add_q_proj add_k_proj add_v_proj"


def _stream_blocks(one: str, separator: str, mlp: tuple[str, str], modulation: str) -> list[Rule]:
    """Double and single blocks of FLUX' kind; `separator` stands before qkv and proj."""
    rules = []
    for stream, added, context in (("img", "", ""), ("txt", "add", "_context")):
        block, attention = f"{one}.#", "transformer_blocks.#.attn"
        out = f"{attention}.to_add_out" if added else f"{attention}.to_out.0"
        rules += [
            _attention(f"{block}.{stream}_attn{separator}qkv", attention, _ADDED if added else _QKV),
            Rule(f"{block}.{stream}_attn{separator}proj", (out,)),
            Rule(f"{block}.{stream}_mlp.{mlp[0]}", (f"transformer_blocks.#.ff{context}.net.0.proj",)),
            Rule(f"{block}.{stream}_mlp.{mlp[1]}", (f"transformer_blocks.#.ff{context}.net.2",)),
            Rule(f"{block}.{stream}_mod.{modulation}", (f"transformer_blocks.#.norm1{context}.linear",)),
        ]
    single = "single_transformer_blocks.#"
    fused = tuple(f"{single}.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))
    return [
        *rules,
        Rule("single_blocks.#.linear1", fused, "split"),
        Rule("single_blocks.#.linear2", (f"{single}.proj_out",)),
        Rule(f"single_blocks.#.modulation.{modulation}", (f"{single}.norm.linear",)),
    ]


def _embedder(original: str, diffusers: str, first: str, second: str) -> list[Rule]:
    return [
        Rule(f"{original}.{first}", (f"{diffusers}.linear_1",)),
        Rule(f"{original}.{second}", (f"{diffusers}.linear_2",)),
    ]


_TIME = "time_text_embed"
_FINAL = [
    Rule("final_layer.linear", ("proj_out",)),
    Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), "swap"),
]
_FLUX = [
    *_stream_blocks("double_blocks", ".", ("0", "2"), "lin"),
    Rule("img_in", ("x_embedder",)),
    Rule("txt_in", ("context_embedder",)),
    *_embedder("time_in", f"{_TIME}.timestep_embedder", "in_layer", "out_layer"),
    *_embedder("vector_in", f"{_TIME}.text_embedder", "in_layer", "out_layer"),
    *_embedder("guidance_in", f"{_TIME}.guidance_embedder", "in_layer", "out_layer"),
    *_FINAL,
]
_REFINER, _REFINED = "txt_in.individual_token_refiner.blocks.#", "context_embedder.token_refiner.refiner_blocks.#"
_LUMINA_BLOCKS = ("layers.#", "noise_refiner.#", "context_refiner.#")


_WAN_BLOCKS = ("blocks.#", "vace_blocks.#")


def _wan_attention(original: str, diffusers: str) -> list[Rule]:
    pairs = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
    return [
        Rule(f"{block}.{original}.{old}", (f"{block}.{diffusers}.{new}",))
        for block in _WAN_BLOCKS
        for old, new in pairs.items()
    ]


_RULES: dict[str, list[Rule]] = {
    "flux": _FLUX,
    "chroma": [
        *(rule for rule in _FLUX if "mod" not in rule.original and not rule.original.endswith("_layer")),
        *_embedder("distilled_guidance_layer.layers.#", "distilled_guidance_layer.layers.#", "in_layer", "out_layer"),
        Rule("distilled_guidance_layer.in_proj", ("distilled_guidance_layer.in_proj",)),
        Rule("distilled_guidance_layer.out_proj", ("distilled_guidance_layer.out_proj",)),
    ],
    "hunyuan-video": [
        *_stream_blocks("double_blocks", "_", ("fc1", "fc2"), "linear"),
        Rule("img_in.proj", ("x_embedder.proj",)),
        Rule("txt_in.input_embedder", ("context_embedder.proj_in",)),
        *_embedder("txt_in.t_embedder.mlp", f"context_embedder.{_TIME}.timestep_embedder", "0", "2"),
        *_embedder("txt_in.c_embedder", f"context_embedder.{_TIME}.text_embedder", "linear_1", "linear_2"),
        _attention(f"{_REFINER}.self_attn_qkv", f"{_REFINED}.attn", _QKV),
        Rule(f"{_REFINER}.self_attn_proj", (f"{_REFINED}.attn.to_out.0",)),
        Rule(f"{_REFINER}.mlp.fc1", (f"{_REFINED}.ff.net.0.proj",)),
        Rule(f"{_REFINER}.mlp.fc2", (f"{_REFINED}.ff.net.2",)),
        Rule(f"{_REFINER}.adaLN_modulation.1", (f"{_REFINED}.norm_out.linear",)),
        *_embedder("time_in.mlp", f"{_TIME}.timestep_embedder", "0", "2"),
        *_embedder("guidance_in.mlp", f"{_TIME}.guidance_embedder", "0", "2"),
        *_embedder("vector_in", f"{_TIME}.text_embedder", "in_layer", "out_layer"),
        *_FINAL,
    ],
    "wan": [
        *_wan_attention("self_attn", "attn1"),
        *_wan_attention("cross_attn", "attn2"),
        Rule("blocks.#.cross_attn.k_img", ("blocks.#.attn2.add_k_proj",)),
        Rule("blocks.#.cross_attn.v_img", ("blocks.#.attn2.add_v_proj",)),
        *(Rule(f"{block}.ffn.0", (f"{block}.ffn.net.0.proj",)) for block in _WAN_BLOCKS),
        *(Rule(f"{block}.ffn.2", (f"{block}.ffn.net.2",)) for block in _WAN_BLOCKS),
        Rule("vace_blocks.#.before_proj", ("vace_blocks.#.proj_in",)),
        Rule("vace_blocks.#.after_proj", ("vace_blocks.#.proj_out",)),
        Rule("vace_patch_embedding", ("vace_patch_embedding",)),
        *_embedder("text_embedding", "condition_embedder.text_embedder", "0", "2"),
        *_embedder("time_embedding", "condition_embedder.time_embedder", "0", "2"),
        Rule("time_projection.1", ("condition_embedder.time_proj",)),
        Rule("img_emb.proj.1", ("condition_embedder.image_embedder.ff.net.0.proj",)),
        Rule("img_emb.proj.3", ("condition_embedder.image_embedder.ff.net.2",)),
        Rule("head.head", ("proj_out",)),
        Rule("patch_embedding", ("patch_embedding",)),
    ],
    "sd3": [
        _attention("joint_blocks.#.x_block.attn.qkv", "transformer_blocks.#.attn", _QKV),
        _attention("joint_blocks.#.x_block.attn2.qkv", "transformer_blocks.#.attn2", _QKV),
        _attention("joint_blocks.#.context_block.attn.qkv", "transformer_blocks.#.attn", _ADDED),
        Rule("joint_blocks.#.x_block.attn.proj", ("transformer_blocks.#.attn.to_out.0",)),
        Rule("joint_blocks.#.x_block.attn2.proj", ("transformer_blocks.#.attn2.to_out.0",)),
        Rule("joint_blocks.#.context_block.attn.proj", ("transformer_blocks.#.attn.to_add_out",)),
        Rule("joint_blocks.#.x_block.mlp.fc1", ("transformer_blocks.#.ff.net.0.proj",)),
        Rule("joint_blocks.#.x_block.mlp.fc2", ("transformer_blocks.#.ff.net.2",)),
        Rule("joint_blocks.#.context_block.mlp.fc1", ("transformer_blocks.#.ff_context.net.0.proj",)),
        Rule("joint_blocks.#.context_block.mlp.fc2", ("transformer_blocks.#.ff_context.net.2",)),
        Rule("joint_blocks.#.x_block.adaLN_modulation.1", ("transformer_blocks.#.norm1.linear",)),
        Rule("joint_blocks.#.context_block.adaLN_modulation.1", ("transformer_blocks.#.norm1_context.linear",)),
        Rule("context_embedder", ("context_embedder",)),
        *_embedder("t_embedder.mlp", f"{_TIME}.timestep_embedder", "0", "2"),
        *_embedder("y_embedder.mlp", f"{_TIME}.text_embedder", "0", "2"),
        *_FINAL,
    ],
    "lumina2": [
        *(_attention(f"{block}.attention.qkv", f"{block}.attn", _QKV, "grouped") for block in _LUMINA_BLOCKS),
        *(Rule(f"{block}.attention.out", (f"{block}.attn.to_out.0",)) for block in _LUMINA_BLOCKS),
        *(
            Rule(f"{block}.feed_forward.w{i}", (f"{block}.feed_forward.linear_{i}",))
            for block in _LUMINA_BLOCKS
            for i in (1, 2, 3)
        ),
        *(Rule(f"{block}.adaLN_modulation.1", (f"{block}.norm1.linear",)) for block in _LUMINA_BLOCKS[:2]),
    ],
    "z-image": [
        *(_attention(f"{block}.attention.qkv", f"{block}.attention", _QKV) for block in _LUMINA_BLOCKS),
        *(Rule(f"{block}.attention.out", (f"{block}.attention.to_out.0",)) for block in _LUMINA_BLOCKS),
    ],
}
"""Family -> rules. A family that is not here has no other names in diffusers, or nobody wrote down which."""

KEPT_BY_KOHYA = frozenset({"chroma", "flux", "hunyuan-video", "lumina2", "sd3", "wan"})
"""Families whose trainers flatten the original names, not diffusers'."""

FLATTENED_BY_KOHYA = frozenset({"anima", "krea2", "qwen-image", "z-image"})
"""Families whose trainers flatten diffusers' names."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def rules(family: str) -> list[Rule]:
    """The rules of a family, by its key; none where its names are the same everywhere."""
    return _RULES.get(family, [])


def renamed(family: str, name: str) -> tuple[tuple[str, ...], str] | None:
    """Diffusers' names of an original module, and how its rows become theirs; None where no rule has it.

    >>> renamed("flux", "double_blocks.7.txt_attn.proj")
    (('transformer_blocks.7.attn.to_add_out',), 'same')
    """
    for template, numbers in _templates(name):
        rule = _by_original(family).get(template)
        if rule is not None:
            return tuple(_filled(part, numbers) for part in rule.parts), rule.how
    return None


def fused_as(family: str, name: str) -> tuple[str, int, Rule] | None:
    """The original module that a module of diffusers is in, which of its parts it is, and the rule; None for no rule.

    >>> fused_as("wan", "blocks.0.attn2.to_v")[:2]
    ('blocks.0.cross_attn.v', 0)
    """
    for template, numbers in _templates(name):
        place = _by_part(family).get(template)
        if place is not None:
            rule, part = place
            return _filled(rule.original, numbers), part, rule
    return None


def _templates(name: str) -> list[tuple[str, list[str]]]:
    """The name with its first number open, which is a block's, and as it is."""
    match = _NUMBER.search(name)
    exact = (name, list[str]())
    return [exact] if match is None else [(f"{name[: match.start()]}#{name[match.end() :]}", [match[0]]), exact]


def _filled(template: str, numbers: list[str]) -> str:
    for number in numbers:
        template = template.replace("#", number, 1)
    return template


@lru_cache
def _by_original(family: str) -> dict[str, Rule]:
    return {rule.original: rule for rule in rules(family)}


@lru_cache
def _by_part(family: str) -> dict[str, tuple[Rule, int]]:
    return {part: (rule, i) for rule in rules(family) for i, part in enumerate(rule.parts)}
