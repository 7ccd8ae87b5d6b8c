"""Which family of base models an adapter fits, as far as the names and widths of its modules tell."""

import re
from collections.abc import Sequence
from functools import lru_cache

from lorabench.adapters.reading.table import ModuleRow

__all__ = ["guess_family"]

# In this order; the first whose expression is found in a module's name.
_BY_NAME: tuple[tuple[str, str], ...] = (
    (r"(^|\.)single_transformer_blocks\.|(^|\.)double_blocks\.|(^|\.)single_blocks\.", "FLUX"),
    (r"(^|\.)transformer_blocks\.\d+\.(img_mlp|txt_mlp)\.", "Qwen-Image"),
    (r"(^|\.)joint_blocks\.|(^|\.)transformer_blocks\.\d+\.(attn\.add_[kqv]_proj|ff_context)", "Stable Diffusion 3"),
    (r"(^|\.)blocks\.\d+\.(self_attn|cross_attn)\.(q|k|v|o)(\.|$)|\.ffn\.[02]$", "Wan video"),
    (r"(^|\.)h\.\d+\.attn\.attention\.", "GPT-Neo"),
    (r"(^|\.)h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_proj|mlp\.c_fc)", "GPT-2"),
    (r"(^|\.)h\.\d+\.self_attention\.query_key_value", "BLOOM or Falcon"),
    (r"(^|\.)gpt_neox\.", "GPT-NeoX"),
    (r"(^|\.)decoder\.layers\.\d+\.(self_attn|encoder_attn)\.", "OPT, BART or Whisper"),
    (r"(^|\.)(encoder|decoder)\.block\.\d+\.layer\.", "T5"),
    (r"(^|\.)encoder\.layer\.\d+\.attention\.(self|attention)\.", "BERT, RoBERTa or ViT"),
    (r"(^|\.)text_model\.encoder\.layers\.\d+\.", "CLIP text encoder"),
    (r"^model\.layers\.\d+\.|(^|\.)layers\.\d+\.(self_attn|mlp)\.", "Llama, Mistral, Qwen or Gemma"),
    (r"^stages\.\d+\.blocks\.\d+\.", "ConvNeXt"),
    (r"^w_\d+$", "Segment Anything (ViT)"),
)
_COMPILED = tuple((re.compile(pattern), family) for pattern, family in _BY_NAME)
_CROSS = (".attn2.to_k", ".attn2.to_v")
_UNET = re.compile(r"(^|\.)(down_blocks|mid_block|up_blocks)\.")
_XL = "Stable Diffusion XL"
_BY_CROSS_ATTENTION = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: f"{_XL} refiner", 2048: _XL}
_STABLE = "Stable Diffusion (a U-Net)"


def guess_family(rows: Sequence[ModuleRow]) -> tuple[str, str] | None:
    """A family, and in words what it was told by; None where nothing tells.

    A U-Net's generation is told by the width of its text embedding, the input of `attn2.to_k`: 768, 1024 or 2048.
    """
    unet = [row for row in rows if row.part == "unet" or _is_in_unet(row.module)]
    for row in unet:
        width = _width(row) if row.module.endswith(_CROSS) else 0
        if width:
            family = _BY_CROSS_ATTENTION.get(width, _STABLE)
            return family, f"tensors: {row.module} is {width} wide"
    for row in [row for row in rows if not row.part.startswith("text_encoder")] or rows:
        named = _named(row.module)
        if named is not None:
            return named, f"tensors: a module is named {row.module}"
    if any(row.part == "text_encoder_2" for row in rows) and unet:
        return _XL, "tensors: there is a second text encoder"
    # cloneofsimo's lists number the modules; the widest text embedding is still seen
    widths = {_width(row) for row in unet}
    known = [width for width in (768, 1024) if width in widths]
    if known and {320, 640} <= widths:
        return _BY_CROSS_ATTENTION[known[0]], f"tensors: some modules are {known[0]} wide"
    return (_STABLE, f"tensors: a module is named {unet[0].module}") if unet else None


@lru_cache(maxsize=2**16)
def _is_in_unet(module: str) -> bool:
    return _UNET.search(module) is not None


@lru_cache(maxsize=2**16)
def _named(module: str) -> str | None:
    return next((family for pattern, family in _COMPILED if pattern.search(module)), None)


def _width(row: ModuleRow) -> int:
    """d_in; 0 where the factors do not say it."""
    if row.kind == "lokr":
        first, second = (row.shapes.get(part) or row.shapes.get(f"{part}_b", ()) for part in ("w1", "w2"))
        return _second(first) * _second(second)
    return _second(row.shapes.get("w1_b" if row.kind == "loha" else "down", ()))


def _second(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) >= 2 else 0
