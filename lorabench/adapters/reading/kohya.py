"""Kohya's underscored module names, back and forth: `lora_unet_conv_in` <-> `unet.conv_in`."""

import re
from collections.abc import Iterable, Mapping

__all__ = ["counts_text_encoders", "from_kohya", "to_kohya"]

_COMPONENTS = {
    "lora_unet": "unet",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
    "lora_te3": "text_encoder_3",
    "lora_transformer": "transformer",
    "lora_prior_unet": "prior_unet",
    "lora_prior_te": "prior_text_encoder",
}
_PREFIXES = {component: prefix for prefix, component in _COMPONENTS.items() if prefix != "lora_te1"}

# SDXL's, FLUX's and SD 3's own names, and SDXL's U-Net in diffusers': SD 1 and 2 have one transformer block in each.
_LATER = re.compile(
    r"^(?:text_encoder_[23]\.|transformer\.|unet\.(?:(?:double|single|joint|input|output)_blocks\.|middle_block\."
    r"|label_emb\.|add_embedding\.|(?:.*\.)?transformer_blocks\.[1-9]))"
)
_LATER_BASE = re.compile(r"^(?:sdxl|flux|sd_?3|stable-diffusion-(?:xl|v?3))", re.IGNORECASE)

# Parts of module names that hold an underscore themselves, and the single words that stand between them.
_TEXT = """
down_blocks up_blocks mid_block input_blocks output_blocks middle_block transformer_blocks
single_transformer_blocks double_blocks single_blocks joint_blocks layerwise_blocks
temporal_transformer_blocks in_layers out_layers emb_layers skip_connection time_embed label_emb
time_embedding add_embedding time_emb_proj conv_in conv_out conv_shortcut proj_in proj_out proj_mlp
out_proj q_proj k_proj v_proj o_proj output_proj gate_proj up_proj down_proj c_attn c_proj c_fc to_q to_k
to_v to_out to_qkv to_kv to_add_out add_q_proj add_k_proj add_v_proj to_k_ip to_v_ip linear_1 linear_2
linear_in linear_out self_attn cross_attn img_attn txt_attn img_mlp txt_mlp img_mod txt_mod img_in txt_in
time_in vector_in guidance_in in_layer out_layer final_layer last_layer adaLN_modulation
adaln_modulation_self_attn adaln_modulation_cross_attn adaln_modulation_mlp query_norm key_norm
norm1_context norm2_context norm_out norm_q norm_k ff_context context_embedder x_embedder t_embedder
y_embedder time_text_embed timestep_embedder guidance_embedder text_embedder image_embedder
caption_projection pos_embed patch_embed text_model vision_model text_projection token_embedding
position_embedding final_layer_norm layer_norm layer_norm1 layer_norm2 attention_norm context_block
x_block k_img v_img wi_0 wi_1 llm_adapter SelfAttention DenseReluDense EncDecAttention adapter attentions
attention attn attn1 attn2 block blocks context conv conv1 conv2 decoder down downsamplers embeddings
encoder fc1 fc2 ff ffn first gate key last layer layer1 layer2 layers lin linear linear1 linear2 mlp model
modulation motion_modules net norm norm1 norm2 norm3 op out proj qkv query refiner resnets tmlp tproj
transformer txtfusion projector refiner_blocks up upsamplers value w1 w2 w3 wk wo wq wv emb embed heads
head shared final
"""
_WORDS = frozenset(_TEXT.split())
_LONGEST = max(word.count("_") + 1 for word in _WORDS)


def from_kohya(name: str) -> str:
    """The dotted module name of a kohya name; any other name comes back as it is.

    Underscores become dots around digits and around the words that are known; what the vocabulary does not
    know keeps its underscores.

    >>> from_kohya("lora_unet_transformer_blocks_0_attn1_to_out_0")
    'unet.transformer_blocks.0.attn1.to_out.0'
    """
    for prefix, component in _COMPONENTS.items():
        if name.startswith(f"{prefix}_") and "." not in name:
            return ".".join([component, *_segments(name[len(prefix) + 1 :].split("_"))])
    return name


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
    said = (metadata.get(key, "") for key in ("ss_base_model_version", "modelspec.architecture"))
    return any(map(_LATER_BASE.match, said)) or any(map(_LATER.match, names))


def to_kohya(module: str, *, several_text_encoders: bool = False) -> str | None:
    """The kohya name of a dotted module name, or None where reading it back would give another name.

    Args:
        module: the canonical name, `unet.transformer_blocks.0.attn1.to_q`.
        several_text_encoders: whether the first is `lora_te1` and not `lora_te` (see `counts_text_encoders`).
    """
    component, _, rest = module.partition(".")
    if component not in _PREFIXES or not rest:
        return None
    prefix = "lora_te1" if component == "text_encoder" and several_text_encoders else _PREFIXES[component]
    name = f"{prefix}_{rest.replace('.', '_')}"
    return name if from_kohya(name) == module else None


def _segments(tokens: list[str]) -> list[str]:
    found: list[str] = []
    unknown: list[str] = []
    at = 0
    while at < len(tokens):
        width = _known(tokens, at)
        if width == 0:
            unknown.append(tokens[at])
            at += 1
            continue
        if unknown:
            found.append("_".join(unknown))
            unknown = []
        found.append("_".join(tokens[at : at + width]))
        at += width
    return [*found, "_".join(unknown)] if unknown else found


def _known(tokens: list[str], at: int) -> int:
    """How many tokens from `at` make the longest known word; 0 where none does."""
    for width in range(min(_LONGEST, len(tokens) - at), 0, -1):
        if "_".join(tokens[at : at + width]) in _WORDS:
            return width
    return 1 if tokens[at].isdigit() else 0
