"""The names that a file gets in a layout: renamed and told by every command alike, text encoders counted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from lorabench.adapters import Adapter, LoraModule, load, save
from lorabench.adapters.writing.converting import convert, notes_on_writing, prepare
from lorabench.errors import LorabenchError


def _pair(**kind: Any) -> LoraModule:
    return LoraModule(torch.ones(2, 5), torch.ones(4, 2), **kind)


def _adapter(modules: dict[str, LoraModule], *schemes: str, **more: Any) -> Adapter:
    return Adapter(Path("x.safetensors"), schemes, modules, **more)


def test_other_commands_rename_and_tell_as_convert_does() -> None:
    sdxl = _adapter({"unet.input_blocks.4.1.proj_in": _pair()}, "kohya")
    for layout in ("diffusers", "peft"):
        found = prepare(sdxl, layout)
        assert found.names == {"unet.input_blocks.4.1.proj_in": "unet.down_blocks.1.attentions.0.proj_in"}
        assert list(found.adapter.modules) == list(found.names.values())
        assert notes_on_writing(sdxl, layout) == list(convert(sdxl, layout).notes)
        assert any("original U-Net" in note for note in found.notes)
    for layout in ("kohya", None):
        assert list(prepare(sdxl, layout).adapter.modules) == list(sdxl.modules)
        assert notes_on_writing(sdxl, layout) == []
    counted = _adapter({"w_000": _pair()}, "sam")
    assert any("counts its modules" in note for note in notes_on_writing(counted))
    with pytest.raises(LorabenchError, match="kohya layout has no place"):
        prepare(_adapter({"wte": _pair(embedding=True)}, "peft"), "kohya")


CLIP = "text_encoder.text_model.encoder.layers.0.mlp.fc1"


@pytest.mark.parametrize(
    ("others", "metadata", "prefix"),
    [
        (["unet.double_blocks.0.img_attn.qkv"], {}, "lora_te1"),  # FLUX
        (["unet.joint_blocks.0.x_block.attn.qkv"], {}, "lora_te1"),  # SD 3
        (["transformer.transformer_blocks.0.attn.to_q"], {}, "lora_te1"),
        (["unet.input_blocks.4.1.proj_in"], {}, "lora_te1"),  # SDXL
        (["unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"], {}, "lora_te1"),
        (["unet.add_embedding.linear_1"], {}, "lora_te1"),
        (["text_encoder_3.encoder.block.0.layer.0.SelfAttention.q"], {}, "lora_te1"),
        (["text_encoder_2.text_model.encoder.layers.0.mlp.fc1"], {}, "lora_te1"),
        ([], {"ss_base_model_version": "sdxl_base_v1-0"}, "lora_te1"),
        ([], {"modelspec.architecture": "flux-1-dev/lora"}, "lora_te1"),
        (["unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"], {}, "lora_te"),  # SD 1
        ([], {"ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-v1/lora"}, "lora_te"),
        ([], {}, "lora_te"),
    ],
)
def test_the_first_text_encoder_is_counted_as_its_trainers_do(
    tmp_path: Path, others: list[str], metadata: dict[str, str], prefix: str
) -> None:
    modules = {name: _pair() for name in (CLIP, *others)}
    path = save(tmp_path / "a.safetensors", _adapter(modules, "kohya", metadata=metadata), "kohya")
    with safe_open(path, "pt") as file:
        text = [key for key in file.keys() if key.startswith("lora_te")]  # noqa: SIM118
    assert f"{prefix}_text_model_encoder_layers_0_mlp_fc1.lora_down.weight" in text
    assert set(load(path).modules) == set(modules)
