"""What a tensor's key in an adapter file says: which module, which part of it, in which naming scheme."""

import re
from dataclasses import dataclass
from functools import lru_cache

from lorabench.adapters.reading.kohya import from_kohya

__all__ = ["FACTORS", "ParsedKey", "component", "is_layer_key", "layer_names", "parse_key"]

FACTORS = ("down", "up", "mid", "alpha")
"""The parts that a ΔW is made of; every other part is a kind that cannot be analysed."""

_COMPONENTS = frozenset(
    {"unet", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "prior_unet", "prior_text_encoder"}
)
_NUMBER = r"(?P<number>\.\d+)?$"
_PEFT_PREFIX = "base_model.model."
_ROLE = {"A": "down", "B": "up", "a": "down", "b": "up"}
_STREAM = {"1": "img_attn", "2": "txt_attn"}

_SCHEMES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("kohya", re.compile(r"^(?P<module>.+?)\.lora_(?P<part>down|up|mid)\.weight" + _NUMBER)),
    (
        "diffusers",
        re.compile(r"^(?P<module>.+?)\.lora(?:_linear_layer)?\.(?P<part>down|up|mid)\.weight" + _NUMBER),
    ),
    (
        "xlabs",
        re.compile(r"^(?P<module>.+)\.processor\.(?P<tail>qkv|proj)_lora(?P<stream>[12])\.(?P<part>down|up)\.weight$"),
    ),
    (
        "diffusers-old",
        re.compile(r"^(?P<module>.+)\.processor\.(?P<tail>\w+?)_lora\.(?P<part>down|up)\.weight" + _NUMBER),
    ),
    ("peft", re.compile(r"^(?P<module>.+?)\.lora_(?P<part>[AB])(?:\.[^.]+)?\.weight" + _NUMBER)),
    ("peft-embedding", re.compile(r"^(?P<module>.+?)\.lora_embedding_(?P<part>[AB])(?:\.[^.]+){0,2}$")),
    ("loralib", re.compile(r"^(?P<module>.+?)\.lora_(?P<part>[AB])(?:\.(?!bias$)[^.\d][^.]*)?" + _NUMBER)),
    ("mlx", re.compile(r"^(?P<module>.+?)\.lora_(?P<part>[ab])$")),
    ("sam", re.compile(r"^(?:.+\.)?w_(?P<part>[ab])_(?P<tail>\d+)$")),
    ("cloneofsimo", re.compile(r"^(?P<module>\w+):(?P<tail>\d+):(?P<part>down|up)$")),
    ("kohya", re.compile(r"^(?P<module>.+?)\.(?P<part>alpha)$")),
)

# In this order: the first pattern that is found names the kind; what stands before it is the module.
_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("adalora", re.compile(r"\.lora_E(\.|$)|\.ranknum(\.|$)")),
    ("dora", re.compile(r"\.lora_magnitude_vector(\.|$)|\.dora_scale$")),
    ("loha", re.compile(r"\.hada_")),
    ("lokr", re.compile(r"\.lokr_")),
    ("ia3", re.compile(r"\.ia3_l(\.|$)|\.on_input$")),
    ("unilora", re.compile(r"\.?unilora_")),
    ("oft", re.compile(r"\.b?oft_")),
    ("vera", re.compile(r"\.?vera_(lambda|[AB])")),
    ("vblora", re.compile(r"\.?vblora_")),
    ("glora", re.compile(r"\.[ab][12]\.weight$")),
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
        module: the canonical, dotted name of the module that the tensor belongs to.
        part: one of `FACTORS`, or the kind of what cannot be analysed: "adalora", "dora" (a magnitude
            vector), "loha", "lokr", "ia3", "unilora", "oft", "vera", "vblora", "glora", "full_diff",
            "textual_inversion", "bias", "full_weight" (saved beside the adapter), "other".
        scheme: "diffusers", "diffusers-old", "peft", "peft-embedding", "kohya", "loralib", "mlx" (transposed
            factors), "sam", "cloneofsimo", "xlabs"; "" for a kind that cannot be analysed.
    """

    module: str
    part: str
    scheme: str

    @property
    def is_layer(self) -> bool:
        """Whether the tensor is a down or an up matrix."""
        return self.part in ("down", "up")


@lru_cache(maxsize=2**16)
def parse_key(key: str) -> ParsedKey:
    """What one tensor's key says; every key has an answer.

    >>> parse_key("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight")
    ParsedKey(module='unet.mid_block.attentions.0.proj_in', part='down', scheme='kohya')
    >>> parse_key("base_model.model.h.0.attn.lora_magnitude_vector").part
    'dora'
    """
    for scheme, pattern in _SCHEMES:
        match = pattern.match(key)
        if match:
            return _factor(key, scheme, match.groupdict())
    for kind, pattern in _KINDS:
        match = pattern.search(key)
        if match:
            return ParsedKey(_module(key[: match.start()]), kind, "")
    raise AssertionError(key)


def is_layer_key(column: str) -> bool:
    """Whether the name of a column or tensor is that of a LoRA layer (a down or an up matrix) in any scheme.

    >>> is_layer_key("unet.mid_block.attentions.0.to_q.lora.down.weight.80"), is_layer_key("category_label")
    (True, False)
    """
    return parse_key(column).is_layer


def component(module: str) -> str:
    """The part of a model that a canonical module name belongs to; "model" where the name does not say.

    >>> component("text_encoder_2.text_model.encoder.layers.0.mlp.fc1"), component("h.0.attn.c_attn")
    ('text_encoder_2', 'model')
    """
    first = module.split(".")[0]
    return first if first in _COMPONENTS else "model"


def layer_names(module: str) -> tuple[str, str]:
    """The canonical names of a module's two layers, down and up."""
    return f"{module}.lora.down.weight", f"{module}.lora.up.weight"


def _factor(key: str, scheme: str, found: dict[str, str | None]) -> ParsedKey:
    part = str(found["part"])
    module = _module(found.get("module") or "") + (found.get("number") or "")
    tail = found.get("tail")
    if scheme == "xlabs":
        module = f"{module}.{_STREAM[str(found['stream'])]}.{tail}"
    elif scheme == "diffusers-old":
        module = f"{module}.to_out.0" if tail == "to_out" else f"{module}.{tail}"
    elif scheme == "sam":
        module = f"w_{tail}"
    elif scheme == "cloneofsimo":
        module = f"{module}.{tail}"
    elif scheme == "loralib" and key.startswith(_PEFT_PREFIX):
        scheme = "peft"
    return ParsedKey(module, _ROLE.get(part, part), scheme)


def _module(prefix: str) -> str:
    return from_kohya(prefix.removeprefix(_PEFT_PREFIX))
