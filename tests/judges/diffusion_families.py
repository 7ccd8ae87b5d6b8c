"""Small random denoisers of diffusers' families, each with its own LoRA loader but without the rest of a pipeline."""

import copy
import functools
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders import lora_pipeline
from safetensors.torch import save_file
from torch import Tensor, nn

RANK = 2
Pair = tuple[Tensor, Tensor]
"""down [r, d_in] and up [d_out, r]."""


@dataclass(frozen=True)
class Family:
    """One denoiser of diffusers.

    Attributes:
        model: the class's name.
        sizes: its arguments, small.
        loader: the mixin that its pipelines load LoRA files by.
        kohya: whether the toolkit must be able to split its flattened names.
    """

    model: str
    sizes: Mapping[str, Any]
    loader: str
    kohya: bool = True


_FLUX = {
    "patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 12, "axes_dims_rope": (4, 4, 8),
}  # fmt: skip
FAMILIES = {
    "flux": Family(
        "FluxTransformer2DModel", _FLUX | {"pooled_projection_dim": 12, "guidance_embeds": True}, "FluxLoraLoaderMixin"
    ),
    "chroma": Family(
        "ChromaTransformer2DModel",
        _FLUX | {"approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 2},
        "FluxLoraLoaderMixin",
    ),
    "sd3": Family(
        "SD3Transformer2DModel",
        {
            "sample_size": 8, "patch_size": 1, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8,
            "num_attention_heads": 4, "caption_projection_dim": 32, "joint_attention_dim": 12,
            "pooled_projection_dim": 24, "out_channels": 4, "pos_embed_max_size": 8, "dual_attention_layers": (0,),
        },
        "SD3LoraLoaderMixin",
    ),
    "qwen-image": Family(
        "QwenImageTransformer2DModel",
        {
            "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 12, "axes_dims_rope": (8, 4, 4),
        },
        "QwenImageLoraLoaderMixin",
    ),
    "z-image": Family(
        "ZImageTransformer2DModel",
        {
            "all_patch_size": (2,), "all_f_patch_size": (1,), "in_channels": 4, "dim": 32, "n_layers": 2,
            "n_refiner_layers": 2, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 12, "axes_dims": [8, 4, 4],
            "axes_lens": [64, 32, 32],
        },
        "ZImageLoraLoaderMixin",
    ),
    "hunyuan-video": Family(
        "HunyuanVideoTransformer3DModel",
        {
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 2,
            "num_single_layers": 2, "num_refiner_layers": 2, "patch_size": 1, "patch_size_t": 1,
            "guidance_embeds": True, "text_embed_dim": 16, "pooled_projection_dim": 8, "rope_axes_dim": (2, 4, 4),
        },
        "HunyuanVideoLoraLoaderMixin",
    ),
    "wan": Family(
        "WanTransformer3DModel",
        {
            "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
            "out_channels": 4, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32,
        },
        "WanLoraLoaderMixin",
    ),
    "ltx": Family(
        "LTXVideoTransformer3DModel",
        {
            "in_channels": 8, "out_channels": 8, "patch_size": 1, "patch_size_t": 1, "num_attention_heads": 4,
            "attention_head_dim": 8, "cross_attention_dim": 32, "num_layers": 2, "caption_channels": 16,
        },
        "LTXVideoLoraLoaderMixin",
    ),
    "lumina2": Family(
        "Lumina2Transformer2DModel",
        {
            "sample_size": 4, "patch_size": 2, "in_channels": 4, "hidden_size": 24, "num_layers": 2,
            "num_refiner_layers": 1, "num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 2,
            "axes_dim_rope": (4, 2, 2), "axes_lens": (128, 128, 128), "cap_feat_dim": 8,
        },
        "Lumina2LoraLoaderMixin", kohya=False,
    ),
    "auraflow": Family(
        "AuraFlowTransformer2DModel",
        {
            "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 1,
            "attention_head_dim": 8, "num_attention_heads": 4, "caption_projection_dim": 32, "joint_attention_dim": 12,
            "out_channels": 4, "pos_embed_max_size": 16,
        },
        "AuraFlowLoraLoaderMixin", kohya=False,
    ),
    "cogvideox": Family(
        "CogVideoXTransformer3DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
            "time_embed_dim": 4, "text_embed_dim": 16, "num_layers": 2, "sample_width": 8, "sample_height": 8,
            "sample_frames": 5, "max_text_seq_length": 8,
        },
        "CogVideoXLoraLoaderMixin", kohya=False,
    ),
    "sana": Family(
        "SanaTransformer2DModel",
        {
            "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 4,
            "num_cross_attention_heads": 2, "cross_attention_head_dim": 4, "cross_attention_dim": 8,
            "caption_channels": 8, "sample_size": 8,
        },
        "SanaLoraLoaderMixin", kohya=False,
    ),
}  # fmt: skip
ORIGINAL: dict[str, Sequence[str]] = {
    "flux": (
        "double_blocks.0.img_attn.qkv", "double_blocks.0.img_attn.proj", "double_blocks.1.txt_mlp.0",
        "double_blocks.1.img_mod.lin", "single_blocks.0.linear1", "single_blocks.1.linear2",
    ),
    "hunyuan-video": (
        "double_blocks.0.img_attn_qkv", "double_blocks.0.img_attn_proj", "double_blocks.1.txt_mlp.fc1",
        "single_blocks.0.linear1", "single_blocks.1.linear2", "single_blocks.0.modulation.linear",
        "txt_in.individual_token_refiner.blocks.0.self_attn_qkv",
    ),
    "wan": (
        "blocks.0.self_attn.q", "blocks.0.self_attn.o", "blocks.1.cross_attn.k", "blocks.1.ffn.0", "blocks.0.ffn.2",
        "text_embedding.0", "time_projection.1",
    ),
    "z-image": (
        "noise_refiner.0.attention.qkv", "context_refiner.1.feed_forward.w2", "layers.0.attention.out",
        "layers.1.adaLN_modulation.0",
    ),
    "sd3": (
        "joint_blocks.0.x_block.attn.qkv", "joint_blocks.1.context_block.mlp.fc1", "joint_blocks.0.x_block.attn2.proj",
    ),
    "chroma": (
        "distilled_guidance_layer.layers.0.in_layer", "distilled_guidance_layer.in_proj", "double_blocks.0.txt_attn.qkv"
    ),
    "lumina2": ("noise_refiner.0.attention.qkv", "layers.1.feed_forward.w3", "cap_embedder.1"),
}  # fmt: skip
"""Modules as the model's own repository names them; shapes do not matter where only names are matched."""


@functools.cache
def denoiser(family: str) -> nn.Module:
    """Never changed: copied by whoever loads something into it."""
    torch.manual_seed(21)
    made: nn.Module = getattr(diffusers, FAMILIES[family].model)(**FAMILIES[family].sizes)
    return made.eval()


@functools.cache
def pairs_of(family: str) -> dict[str, Pair]:
    """A random pair for one linear layer of every sort that the model's blocks have, of the last block."""
    generator = torch.Generator().manual_seed(22)
    layers = {name: layer for name, layer in denoiser(family).named_modules() if isinstance(layer, nn.Linear)}
    blocks = [name for name in layers if any(part.isdigit() for part in name.split(".")[:-1])]
    last = {re.sub(r"\.\d+\.", ".#.", name, count=1): name for name in blocks}
    sizes = {name: (layers[name].in_features, layers[name].out_features) for name in last.values()}
    return {name: _pair(generator, *size) for name, size in sizes.items()}


def original_pairs(family: str) -> dict[str, Pair]:
    generator = torch.Generator().manual_seed(23)
    return {name: _pair(generator, 12, 36 if name.endswith("qkv") else 12) for name in ORIGINAL[family]}


def _pair(generator: torch.Generator, d_in: int, d_out: int) -> Pair:
    return torch.randn(RANK, d_in, generator=generator) / 8, torch.randn(d_out, RANK, generator=generator) / 8


NAMINGS = ("transformer.", "diffusion_model.", "pipe.dit.", "base_model.model.", "lora_unet_", "lora_transformer_")


def write(path: Path, pairs: Mapping[str, Pair], naming: str, alpha: float | None = None) -> Path:
    """One file under a prefix, flattened with an α of its own where the prefix is kohya's; without α, α = r."""
    tensors = {}
    for name, (down, up) in pairs.items():
        if naming.startswith("lora_"):
            key, letters = naming + name.replace(".", "_"), ("lora_down", "lora_up")
            tensors[f"{key}.alpha"] = torch.tensor(float(alpha or RANK))
        else:
            key, letters = naming + name, ("lora_A", "lora_B")
        tensors |= {f"{key}.{letters[0]}.weight": down, f"{key}.{letters[1]}.weight": up}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, str(path))
    return path


def write_by_diffusers(family: str, folder: Path, alpha: float | None) -> Path:
    """As diffusers' training scripts save it; with α, by its metadata (`transformer.lora_alpha`, ...)."""
    from peft import LoraConfig, get_peft_model_state_dict

    model = copy.deepcopy(denoiser(family))
    pairs = pairs_of(family)
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=alpha or RANK, target_modules=list(pairs)))
    with torch.no_grad():
        for name, (down, up) in pairs.items():
            layer = model.get_submodule(name)
            layer.lora_A["default"].weight.copy_(down)
            layer.lora_B["default"].weight.copy_(up)
    metadata = {"transformer_lora_adapter_metadata": model.peft_config["default"].to_dict()} if alpha else {}
    loader = getattr(lora_pipeline, FAMILIES[family].loader)
    loader.save_lora_weights(str(folder), transformer_lora_layers=get_peft_model_state_dict(model), **metadata)
    return folder / "pytorch_lora_weights.safetensors"


def changes_by_diffusers(family: str, path: Path) -> dict[str, Tensor]:
    """W' − W of every weight that differs after the family's own loader has loaded and fused the file."""
    loader = getattr(lora_pipeline, FAMILIES[family].loader)
    model = copy.deepcopy(denoiser(family))
    members = {"components": {"transformer": model}, "transformer": model, "hf_device_map": None}
    members |= dict.fromkeys(("text_encoder", "text_encoder_2"))
    pipeline = type("Pipeline", (loader,), members)()
    before = {name: value.double().clone() for name, value in model.state_dict().items()}
    complaints = _Complaints()
    logger = logging.getLogger("diffusers")
    logger.addHandler(complaints)
    try:
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    finally:
        logger.removeHandler(complaints)
    assert not complaints.texts, complaints.texts
    model.fuse_lora()
    after = {name.replace(".base_layer", ""): value.double() for name, value in model.state_dict().items()}
    differences = {name: after[name] - value for name, value in before.items()}
    return {name.removesuffix(".weight"): change for name, change in differences.items() if change.any()}


class _Complaints(logging.Handler):
    """What diffusers warned of: missing and unexpected keys are logged, not raised."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "associated to NoneType" not in text:  # there is no text encoder here
            self.texts.append(text)
