"""Stable Diffusion 1.5 and XL with their text encoders: every layout that diffusers reads changes all parts by ΔW."""

import copy
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import lora_pipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.judges.judging import MARKS, asked, assert_near

pytestmark = MARKS
RANK, ALPHA = 2, 3.0
KOHYA_PARTS = {
    "sd15": {"unet": "lora_unet", "text_encoder": "lora_te"},
    "sdxl": {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
}
LOADERS = {"sd15": "StableDiffusionLoraLoaderMixin", "sdxl": "StableDiffusionXLLoraLoaderMixin"}
LAYERS = ("attn1.to_q", "attn2.to_k", "attn1.to_out.0", "net.0.proj", "proj_in", "conv1")
TEXT_LAYERS = ("q_proj", "out_proj", "fc1")  # diffusers asks out_proj for the rank


@functools.cache
def _parts(base: str) -> dict[str, nn.Module]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(31)
    text: dict[str, Any] = {
        "hidden_size": 12, "intermediate_size": 14, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50,
        "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1, "projection_dim": 12,
    }  # fmt: skip
    unet: dict[str, Any] = {
        "block_out_channels": (8, 16), "layers_per_block": 1, "sample_size": 8, "in_channels": 4, "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "norm_num_groups": 4, "attention_head_dim": 2,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 12,
    }  # fmt: skip
    if base == "sd15":
        return {"unet": UNet2DConditionModel(**unet), "text_encoder": CLIPTextModel(CLIPTextConfig(**text))}
    unet |= {
        "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 36, "cross_attention_dim": 24, "transformer_layers_per_block": (1, 2),
    }  # fmt: skip
    return {
        "unet": UNet2DConditionModel(**unet),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**text)),
    }


@functools.cache
def _pairs(base: str) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """(part, layer of the model) -> down and up, a convolution's with its kernel."""
    generator, pairs = torch.Generator().manual_seed(32), {}
    for part, model in _parts(base).items():
        endings = LAYERS if part == "unet" else TEXT_LAYERS
        for name, layer in model.named_modules():
            if not isinstance(layer, (nn.Linear, nn.Conv2d)) or not name.endswith(endings):
                continue
            d_out, *inner = layer.weight.shape
            down = torch.randn(RANK, *inner, generator=generator) / 8
            up = torch.randn(d_out, RANK, *([1, 1] if len(inner) > 1 else []), generator=generator) / 8
            pairs[part, name] = (down, up)
    return pairs


def _level(part: str, name: str) -> str:
    """Files call a layer of CLIP as transformers did before 5."""
    return name if part == "unet" or name.startswith("text_model.") else f"text_model.{name}"


def _write(base: str, naming: str, path: Path) -> float:
    """The file, and the scale that it says."""
    tensors: dict[str, Tensor] = {}
    for (part, name), (down, up) in _pairs(base).items():
        name = _level(part, name)
        if naming == "kohya":
            key = f"{KOHYA_PARTS[base][part]}_{name.replace('.', '_')}"
            tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        elif naming == "diffusers":
            word = "lora" if part == "unet" else "lora_linear_layer"  # as diffusers itself did
            tensors |= {f"{part}.{name}.{word}.down.weight": down, f"{part}.{name}.{word}.up.weight": up}
        else:
            tensors |= {f"{part}.{name}.lora_A.weight": down, f"{part}.{name}.lora_B.weight": up}
    save_file(tensors, str(path))
    return ALPHA / RANK if naming == "kohya" else 1.0


def _changes(base: str, path: Path) -> dict[tuple[str, str], Tensor]:
    parts = {part: copy.deepcopy(model) for part, model in _parts(base).items()}
    pipeline = type("Pipeline", (getattr(lora_pipeline, LOADERS[base]),), {"components": parts, **parts})()
    pipeline.hf_device_map = None
    before = {part: {k: v.double().clone() for k, v in model.state_dict().items()} for part, model in parts.items()}
    texts: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("diffusers").addHandler(handler)
    try:
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    finally:
        logging.getLogger("diffusers").removeHandler(handler)
    assert not texts, texts
    pipeline.fuse_lora(components=list(parts))
    changes = {}
    for part, model in parts.items():
        after = {name.replace(".base_layer", ""): value.double() for name, value in model.state_dict().items()}
        for name, value in before[part].items():
            if not torch.equal(after[name], value):
                changes[part, name.removesuffix(".weight")] = after[name] - value
    return changes


def _assert_changes(base: str, path: Path, scale: float) -> None:
    changes: Mapping[tuple[str, str], Tensor] = _changes(base, path)
    pairs = _pairs(base)
    assert changes.keys() == pairs.keys()
    for key, (down, up) in pairs.items():
        delta = scale * up.flatten(1).double() @ down.flatten(1).double()
        assert_near(changes[key].flatten(1), delta, f"ΔW of {key}", 5e-6)


NAMINGS = ("kohya", "diffusers", "diffusers-peft")


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("base", LOADERS)
def test_the_judge_loads_it_itself(base: str, naming: str, tmp_path: Path) -> None:
    scale = _write(base, naming, tmp_path / "a.safetensors")
    _assert_changes(base, tmp_path / "a.safetensors", scale)


@pytest.mark.parametrize("layout", NAMINGS)
@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("base", LOADERS)
def test_diffusers_loads_every_part(base: str, naming: str, layout: str, tmp_path: Path) -> None:
    scale = _write(base, naming, tmp_path / "a.safetensors")
    asked("convert", tmp_path / "a.safetensors", "-o", tmp_path / "ours.safetensors", "--to", layout)
    _assert_changes(base, tmp_path / "ours.safetensors", scale)


@pytest.mark.parametrize("base", LOADERS)
def test_merging_the_namings_is_merging_one(base: str, tmp_path: Path) -> None:
    """A kohya file of α/r = 1.5 and diffusers' of 1, halves: 1.25 times the pair, in as many layers."""
    _write(base, "kohya", tmp_path / "a.safetensors")
    _write(base, "diffusers-peft", tmp_path / "b.safetensors")
    out = tmp_path / "ours.safetensors"
    asked("merge", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "-w", "0.5", "0.5", "-o", out)
    _assert_changes(base, out, 0.5 * ALPHA / RANK + 0.5)
