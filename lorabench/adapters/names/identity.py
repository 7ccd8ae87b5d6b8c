"""When two names are one module: wrappers and prefixes off, the part beside, separators flattened."""

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from lorabench.adapters.names.unet import converted

__all__ = [
    "DENOISER_WORDS",
    "PARTS",
    "Identity",
    "Unwrapped",
    "by_identity",
    "component",
    "flattened",
    "has_peft_prefix",
    "identity",
    "joined",
    "part_before_peft",
    "split_part",
    "unwrap",
]

PARTS = (
    "unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3", "prior_unet",
    "prior_text_encoder",
)  # fmt: skip
"""The parts of a pipeline, by diffusers' words."""

DENOISER_WORDS = ("diffusion_model", "model.diffusion_model", "pipe.dit", "dit")
"""Prefixes of a denoiser of either sort, by ComfyUI, the original checkpoints and DiffSynth."""

_PART_OF_WORD = {
    **{word: word for word in PARTS},
    **dict.fromkeys(("unet", "transformer", *DENOISER_WORDS), "denoiser"),
    "prior_unet": "prior",
    "transformer_2": "denoiser_2",  # Wan 2.2's second expert
}
_WORDS = sorted(_PART_OF_WORD, key=len, reverse=True)

# `transformer` is also what many language models call their own trunk.
_OWN_TRUNK = re.compile(r"transformer\.(h|wte|wpe|ln_f|layer|encoder|embedding|word_embeddings\w*)(\.|$)")

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module")
"""What torch.compile, FSDP, activation checkpointing and DeepSpeed put into the names of a model's modules."""
_WRAPPED = re.compile(rf"(?:^|[._])({'|'.join(_WRAPPERS)})(?=[._]|$)")  # a level of the name, or flattened with it
_PEFT = "base_model.model."
_PARALLEL = "module."  # of DataParallel and DistributedDataParallel, at the front alone
_HOLDERS = r"((?:(?:model|module)\.)*?)"  # what a training script calls the model that it holds
_AROUND_PEFT = re.compile(
    rf"^{_HOLDERS}(?:({'|'.join(map(re.escape, _WORDS))})\.)?{_HOLDERS}(?={re.escape(_PEFT)})"
)  # fmt: skip

_TEXT_LEVEL = re.compile(r"^text_model_(?=encoder_layers_|embeddings_|final_layer_norm)")


class Identity(NamedTuple):
    """What makes two modules one: equal identities are the same place in a base model.

    Attributes:
        part: "denoiser" (a U-Net or a transformer, whatever the file calls it), "denoiser_2", "text_encoder",
            "text_encoder_2", "text_encoder_3", "prior", "prior_text_encoder", or "" where the name does not say.
        flat: the name without wrappers and prefixes, its dots flattened to underscores; one spelling of names that
            have two (CLIP's level `text_model`, the original U-Net's blocks).
    """

    part: str
    flat: str


class Unwrapped(NamedTuple):
    """A name without wrappers, and which were taken off (PEFT's own `base_model.model.` once is none)."""

    name: str
    wrappers: tuple[str, ...]


def unwrap(name: str, *, held: bool = True) -> Unwrapped:
    """A module's name without what torch, accelerators and PEFT wrapped around its model.

    Args:
        name: of a module, or the key of a tensor.
        held: whether what a training script calls the model that it holds ("model.base_model.model...") is a wrapper
            too; in memory it may tell models apart.

    >>> unwrap("unet.base_model.model._orig_mod.mid_block.0._checkpoint_wrapped_module.to_q")
    Unwrapped(name='unet.mid_block.0.to_q', wrappers=('_checkpoint_wrapped_module', '_orig_mod'))
    >>> unwrap("base_model.model.base_model.model.h.0").wrappers
    ('base_model.model (twice)',)
    """
    taken = set(_WRAPPED.findall(name))
    if (
        not taken
        and not name.startswith((_PEFT, _PARALLEL))
        and f".{_PEFT}" not in name
        and "." + _PARALLEL not in name
    ):
        return Unwrapped(name, ())
    rest = _without_wrappers(name)
    word = next((word for word in _WORDS if rest.startswith((f"{word}.{_PEFT}", f"{word}.{_PARALLEL}"))), "")
    if held and (around := _AROUND_PEFT.match(rest)):
        word = around[2] or ""
        taken |= set(f"{around[1]}{around[3]}".split(".")) - {""}
        rest = rest[around.end() :]
    elif word:
        rest = rest.removeprefix(f"{word}.")
    counts = {_PEFT: 0, _PARALLEL: 0}
    while prefix := next((prefix for prefix in counts if rest.startswith(prefix)), ""):
        rest = rest.removeprefix(prefix)
        counts[prefix] += 1
    if counts[_PARALLEL]:
        taken.add("module")
    if counts[_PEFT] > 1:
        taken.add("base_model.model (twice)" if counts[_PEFT] == 2 else f"base_model.model ({counts[_PEFT]} times)")
    return Unwrapped(joined(word, rest), tuple(sorted(taken)))


def _without_wrappers(name: str) -> str:
    """Without the levels of a dotted name that torch and accelerators put into it."""
    return ".".join(segment for segment in name.split(".") if segment not in _WRAPPERS)


def part_before_peft(key: str) -> str:
    """The part's word that stands before PEFT's own prefix, where PEFT's own names have none; "" where none does.

    >>> part_before_peft("model.unet.base_model.model.mid_block.0.to_q"), part_before_peft("base_model.model.unet.to_q")
    ('unet', '')
    """
    if f".{_PEFT}" not in key:
        return ""
    around = _AROUND_PEFT.match(_without_wrappers(key))
    return (around[2] or "") if around else ""


def has_peft_prefix(key: str) -> bool:
    """Whether PEFT's own prefix is in a key, in front or behind what wraps or holds its model.

    >>> has_peft_prefix("text_encoder.base_model.model.h.0.attn"), has_peft_prefix("h.0.attn")
    (True, False)
    """
    return key.startswith("base_model.") or f".{_PEFT}" in key


def flattened(name: str) -> str:
    """A dotted name as kohya flattens it, without the wrappers that were flattened with it.

    >>> flattened("single_transformer_blocks.0.proj_out"), flattened("_orig_mod_blocks_0_ffn_0")
    ('single_transformer_blocks_0_proj_out', 'blocks_0_ffn_0')
    """
    flat = name.replace(".", "_")
    for wrapper in _WRAPPERS:
        flat = flat.replace(f"{wrapper}_", "")
    return flat


def split_part(name: str) -> tuple[str, str]:
    """A name's word for the part of a pipeline, "" where it has none, and the rest of it.

    >>> split_part("model.diffusion_model.blocks.0.attn"), split_part("transformer.h.0.attn")
    (('model.diffusion_model', 'blocks.0.attn'), ('', 'transformer.h.0.attn'))
    """
    for word in _WORDS:
        if name.startswith(f"{word}.") and len(name) > len(word) + 1:
            return ("", name) if _OWN_TRUNK.match(name) else (word, name[len(word) + 1 :])
    return "", name


def joined(word: str, rest: str) -> str:
    """A name with its part's word in front, where there is one."""
    return f"{word}.{rest}" if word else rest


def component(name: str) -> str:
    """The part of a pipeline that a module belongs to, by the file's own word; "model" where the name does not say.

    >>> component("text_encoder_2.text_model.encoder.layers.0.mlp.fc1"), component("h.0.attn.c_attn")
    ('text_encoder_2', 'model')
    """
    return split_part(name)[0] or "model"


@lru_cache(maxsize=2**16)
def identity(name: str) -> Identity:
    """The identity of a module, by any of its names without a tensor's suffix.

    >>> identity("diffusion_model.blocks.0.self_attn.q") == identity("transformer.blocks_0_self_attn_q")
    True
    >>> identity("unet.input_blocks.4.1.proj_in") == identity("unet.down_blocks.1.attentions.0.proj_in")
    True
    """
    word, rest = split_part(name)
    flat = flattened(rest)
    part = _PART_OF_WORD.get(word, "")
    if part in ("denoiser", ""):
        flat = converted(flat, "_")
    if "text_encoder" in part:
        flat = _TEXT_LEVEL.sub("", flat)
    return Identity(part, flat)


def by_identity(names: Iterable[str]) -> dict[tuple[str, ...], str]:
    """What decides whether two files' modules are one -> the name, for all names of one file.

    Modules of one file whose flattened names are equal stay two: there the dots decide.

    >>> list(by_identity(["unet.a.b_c", "unet.a_b.c", "unet.d"]))
    [('denoiser', 'a_b_c', 'a.b_c'), ('denoiser', 'a_b_c', 'a_b.c'), ('denoiser', 'd')]
    """
    names = list(names)
    times = Counter(map(identity, names))
    keys = {name: identity(name) for name in names}
    return {tuple(key) if times[key] == 1 else (*key, split_part(name)[1]): name for name, key in keys.items()}
