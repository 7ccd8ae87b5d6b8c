"""What a tensor's key in an adapter file says: which module, which part of it, in which naming scheme."""

import re
from dataclasses import dataclass
from functools import lru_cache

from lorabench.adapters.kinds import kinds
from lorabench.adapters.layouts import layouts
from lorabench.adapters.layouts.kohya import from_kohya
from lorabench.adapters.names.families import dotted
from lorabench.adapters.names.identity import component, has_peft_prefix, joined, unwrap

__all__ = ["FACTORS", "KEPT", "ParsedKey", "component", "is_added", "is_layer_key", "layer_names", "parse_key"]

FACTORS = ("down", "up", "mid", "alpha")
"""The parts that a ΔW is made of; every other part is a kind that cannot be analysed."""

KEPT = ("bias", "full_diff", "full_weight", "textual_inversion", "token_delta")
"""Kinds that no rank nor scale changes: a file of the same layout carries them whole."""

_ADDED = re.compile(r"\.lora(_B|_up|\.up)(\.\w+)?\.bias$|\.diff(_b)?$|\.[wb]_norm$")

# After the kinds that are read, in this order: the first pattern that is found names the kind; what stands before it is
# the module.
_UNREAD: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("ia3", re.compile(r"\.ia3_l(\.|$)|\.on_input$")),
    ("unilora", re.compile(r"\.?unilora_")),
    ("oft", re.compile(r"\.b?oft_")),
    ("vera", re.compile(r"\.?vera_(lambda|[AB])")),
    ("vblora", re.compile(r"\.?vblora_")),
    ("glora", re.compile(r"\.[ab][12]\.weight$")),
    ("token_delta", re.compile(r"\.trainable_tokens_(delta|index)(\.|$)")),
    ("full_diff", re.compile(r"\.diff(_b)?$|\.set_weight$|\.[wb]_norm$")),
    ("textual_inversion", re.compile(r"^<.+>$|^bundle_emb\.|^emb_params$|^string_to_param")),
    ("bias", re.compile(r"(\.lora(_B|_up|\.up)?)?\.bias$")),
    ("full_weight", re.compile(r"\.weight$|\.scale$")),
    ("other", re.compile(r"$")),
)


@dataclass(frozen=True)
class ParsedKey:
    """What a key says.

    Attributes:
        module: the canonical name of the module that the tensor belongs to: its part's word, if any, and its dotted
            name without wrappers. Where the file flattened it and no table of names can split it, its underscores
            stay.
        part: one of `FACTORS`, the name of a kind (`kinds`; "dora" is a magnitude), or what cannot be analysed: "ia3",
            "unilora", "oft", "vera", "vblora", "glora", "token_delta", "full_diff", "textual_inversion", "bias",
            "full_weight" (saved beside the adapter), "other".
        scheme: the name of a layout (`layouts`); "" where the key alone does not say one.
        flat: for a name that the file flattened: its part's word ("" for none), and the rest in underscores.
        wrappers: what torch, accelerators and PEFT had put into the name.
    """

    module: str
    part: str
    scheme: str
    flat: tuple[str, str] | None = None
    wrappers: tuple[str, ...] = ()

    @property
    def is_layer(self) -> bool:
        """Whether the tensor is a down or an up matrix."""
        return self.part in ("down", "up")


@lru_cache(maxsize=2**16)
def parse_key(key: str) -> ParsedKey:
    """What one tensor's key says; every key has an answer.

    >>> parse_key("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight").module
    'unet.mid_block.attentions.0.proj_in'
    >>> parse_key("base_model.model.h.0.attn.lora_magnitude_vector").part
    'dora'
    """
    for layout in layouts().values():
        for pattern in layout.patterns:
            match = pattern.match(key)
            if match:
                module, part = layout.read(match)
                scheme = "peft" if layout.name == "loralib" and has_peft_prefix(key) else layout.name
                return _named(module, part, scheme)
    kind, match = next((kind, match) for kind, pattern in _patterns() if (match := pattern.search(key)))
    return _named(key[: match.start()], kind, "")


def is_added(key: str) -> bool:
    """Whether a tensor that is no factor is added to the base, as ΔW is, and does not take the place of its weights.

    >>> is_added("unet.conv_in.diff_b"), is_added("unet.conv_in.lora.up.bias"), is_added("classifier.bias")
    (True, True, False)
    """
    return bool(_ADDED.search(key))


def is_layer_key(column: str) -> bool:
    """Whether the name of a column or tensor is that of a LoRA layer (a down or an up matrix) in any scheme.

    >>> is_layer_key("unet.mid_block.attentions.0.to_q.lora.down.weight.80"), is_layer_key("category_label")
    (True, False)
    """
    return parse_key(column).is_layer


def layer_names(module: str) -> tuple[str, str]:
    """The canonical names of a module's two layers, down and up.

    >>> layer_names("h.0.attn.c_attn")
    ('h.0.attn.c_attn.lora.down.weight', 'h.0.attn.c_attn.lora.up.weight')
    """
    return f"{module}.lora.down.weight", f"{module}.lora.up.weight"


@lru_cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return (*((kind.name, kind.hint) for kind in kinds().values() if kind.hint), *_UNREAD)


def _named(raw: str, part: str, scheme: str) -> ParsedKey:
    kohya = from_kohya(raw)
    if kohya is None:
        name, wrappers = unwrap(raw)
        return ParsedKey(name, part, scheme, wrappers=wrappers)
    word, flat = kohya
    return ParsedKey(joined(word, dotted(flat) or flat), part, scheme, kohya, unwrap(raw).wrappers)
