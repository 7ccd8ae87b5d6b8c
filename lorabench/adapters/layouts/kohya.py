"""kohya's layout: `lora_unet_<module>.lora_down.weight` with an α tensor, the dots of names flattened."""

import re
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

from lorabench.adapters.layouts.base import NUMBER, TensorKeys, WrittenLayout
from lorabench.adapters.names.identity import flattened, identity, split_part

__all__ = ["LAYOUT", "counts_text_encoders", "from_kohya"]

_WORDS = {
    "lora_unet": "unet",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
    "lora_te3": "text_encoder_3",
    "lora_transformer": "transformer",
    "lora_prior_unet": "prior_unet",
    "lora_prior_te": "prior_text_encoder",
}
_PREFIXES = {
    "denoiser": "lora_unet",  # of whatever sort: sd-scripts, musubi-tuner and OneTrainer call transformers so too
    "text_encoder": "lora_te",
    "text_encoder_2": "lora_te2",
    "text_encoder_3": "lora_te3",
    "prior": "lora_prior_unet",
    "prior_text_encoder": "lora_prior_te",
}

# SDXL's, FLUX's and SD 3's own names, and SDXL's U-Net in diffusers': SD 1 and 2 have one transformer block in each.
_LATER = re.compile(
    r"^(?:text_encoder_[23]\.|transformer\.|unet\.(?:(?:double|single|joint|input|output)_blocks\.|middle_block\."
    r"|label_emb\.|add_embedding\.|(?:.*\.)?transformer_blocks\.[1-9]))"
)
_LATER_BASE = re.compile(r"^(?:sdxl|flux|sd_?3|stable-diffusion-(?:xl|v?3))", re.IGNORECASE)


def from_kohya(name: str) -> tuple[str, str] | None:
    """The part's word and the flattened name in a kohya name, which does not say its dots; None for any other.

    >>> from_kohya("lora_unet_transformer_blocks_0_attn1_to_out_0")
    ('unet', 'transformer_blocks_0_attn1_to_out_0')
    """
    if "." in name:
        return None
    for prefix, word in _WORDS.items():
        if name.startswith(f"{prefix}_") and len(name) > len(prefix) + 1:
            return word, flattened(name[len(prefix) + 1 :])
    return ("", flattened(name.removeprefix("lycoris_"))) if name.startswith("lycoris_") else None


def counts_text_encoders(modules: Iterable[str], metadata: Mapping[str, str]) -> bool:
    """Whether trainers call this adapter's first text encoder `lora_te1`, as for SDXL, SD 3 and FLUX, not `lora_te`.

    A CLIP encoder is counted where a second or third one, a later U-Net or a transformer stands beside it, or the
    metadata names such a base model.

    Args:
        modules: canonical names.
        metadata: of the file; kohya's and ModelSpec's words for the base model.

    >>> counts_text_encoders(["text_encoder.text_model.x", "unet.double_blocks.0.img_attn.qkv"], {})
    True
    >>> counts_text_encoders(["text_encoder.text_model.x", "unet.mid_block.attentions.0.proj_in"], {})
    False
    """
    names = list(modules)
    if not any(name.startswith("text_encoder.text_model.") for name in names):
        return any(name.startswith(("text_encoder_2.", "text_encoder_3.")) for name in names)
    bases = (metadata.get(key, "") for key in ("ss_base_model_version", "modelspec.architecture"))
    return any(map(_LATER_BASE.match, bases)) or any(map(_LATER.match, names))


class Kohya(WrittenLayout):
    """One file with an α a module. A name without a part of a pipeline keeps its dots: nothing would find it."""

    name: ClassVar[str] = "kohya"
    place: ClassVar[int] = 4
    title: ClassVar[str] = "kohya's names, lora_unet_x.lora_down.weight"
    alpha: ClassVar[Literal["folded", "tensor", "config"]] = "tensor"
    own: ClassVar[frozenset[str]] = frozenset({"kohya", "lycoris"})
    carries: ClassVar[frozenset[str]] = own
    nearest_to: ClassVar[frozenset[str]] = own
    hashed: ClassVar[bool] = True
    needs_dots: ClassVar[bool] = False
    original_names: ClassVar[bool] = True
    patterns: ClassVar[tuple[re.Pattern[str], ...]] = (
        re.compile(r"^(?P<module>.+?)[._]lora_(?P<part>down|up|mid)[._]weight" + NUMBER),
        re.compile(r"^(?P<module>.+?)\.(?P<part>alpha)$"),
        re.compile(r"^(?P<module>(?:lora|lycoris)_[^.]+)_(?P<part>alpha)$"),
    )

    def spell(self, modules: Mapping[str, str], metadata: Mapping[str, str]) -> dict[str, str]:
        """The flattened names; two modules that would get one name both keep their dots."""
        counted = counts_text_encoders(modules, metadata)
        names = {module: _spelled(module, counted) for module in modules}
        times: dict[str, int] = {}
        for name in names.values():
            times[name] = times.get(name, 0) + 1
        return {module: name if times[name] == 1 else module for module, name in names.items()}

    def keys(self, module: str, embedding: bool, names: Mapping[str, str]) -> TensorKeys:  # noqa: ARG002
        """With α beside the pair."""
        stem = names[module]
        return TensorKeys(f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha")


def _spelled(module: str, counted: bool) -> str:
    part, rest = identity(module).part, split_part(module)[1]
    if part not in _PREFIXES:
        return module
    prefix = "lora_te1" if part == "text_encoder" and counted else _PREFIXES[part]
    return f"{prefix}_{rest.replace('.', '_')}"


LAYOUT = Kohya()
