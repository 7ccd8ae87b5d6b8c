"""Small whole adapters in every layout, for tests that damage them. Made of fixed numbers: every run has the same."""

import io
import json
import re
import struct
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

PEFT_CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False, "bias": "none", "task_type": None,
    "base_model_name_or_path": "someone/model", "target_modules": ["q"], "fan_in_fan_out": False,
    "rank_pattern": {"h.1.q": 3}, "alpha_pattern": {r".*\.(1|2)\.q": 6},
}  # fmt: skip


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Fixed numbers between -1 and 1."""
    return torch.sin(torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64)).reshape(shape).to(dtype)


def named() -> dict[str, tuple[dict[str, Tensor], dict[str, str], dict[str, Any]]]:
    """Layout -> tensors, metadata, adapter_config.json."""
    half, brain = torch.float16, torch.bfloat16
    inside = {"unet.r": 2, "unet.lora_alpha": 4, "unet.rank_pattern": {"mid.to_k": 2}}
    return {
        "peft": (
            {f"base_model.model.h.{i}.q.lora_{ab}.weight": numbers(*shape)
             for i in (0, 1) for ab, shape in (("A", (2 + i, 4)), ("B", (5, 2 + i)))}
            | {"base_model.model.emb.lora_embedding_A": numbers(2, 7),
               "base_model.model.emb.lora_embedding_B": numbers(3, 2), "base_model.model.head.weight": numbers(2, 2)},
            {"format": "pt"}, PEFT_CONFIG,
        ),
        "kohya": (
            {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": numbers(2, 3, 3, 3, dtype=half),
             "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": numbers(4, 2, 1, 1, dtype=half),
             "lora_unet_mid_block_attentions_0_proj_in.lora_mid.weight": numbers(2, 2, 3, 3, dtype=half),
             "lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(1.0, dtype=half),
             "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": numbers(2, 3, dtype=brain),
             "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": numbers(4, 2, dtype=brain),
             "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1)},
            {"ss_network_dim": "2", "ss_network_alpha": "1", "ss_tag_frequency": '{"a": {"cat": 3}}', "ss_lr": "NaN",
             "modelspec.title": "x", "sshs_model_hash": "0" * 64, "ss_network_args": '{"conv_dim": "2"}'}, {},
        ),
        "diffusers": (
            {"unet.mid.to_k.lora.down.weight": numbers(2, 3), "unet.mid.to_k.lora.up.weight": numbers(4, 2),
             "text_encoder.q.lora_linear_layer.down.weight": numbers(1, 3, dtype=torch.float8_e4m3fn),
             "text_encoder.q.lora_linear_layer.up.weight": numbers(4, 1, dtype=torch.float8_e4m3fn)},
            {"lora_adapter_metadata": json.dumps(inside)}, {},
        ),
        "lycoris": (
            {"lora_unet_a.hada_w1_a": numbers(4, 1), "lora_unet_a.hada_w1_b": numbers(1, 5),
             "lora_unet_a.hada_w2_a": numbers(4, 1), "lora_unet_a.hada_w2_b": numbers(1, 5),
             "lora_unet_a.alpha": torch.tensor(1.0), "lora_unet_b.lokr_w1": numbers(2, 2),
             "lora_unet_b.lokr_w2_a": numbers(3, 1), "lora_unet_b.lokr_w2_b": numbers(1, 3),
             "lora_unet_c.hada_w1_a": numbers(1, 4), "lora_unet_c.hada_w1_b": numbers(1, 5),
             "lora_unet_c.hada_t1": numbers(1, 1, 3, 3), "lora_unet_c.hada_w2_a": numbers(1, 4),
             "lora_unet_c.hada_w2_b": numbers(1, 5), "lora_unet_c.hada_t2": numbers(1, 1, 3, 3)},
            {"ss_network_module": "lycoris.kohya"}, {},
        ),
        "adalora": (
            {"base_model.model.q.lora_A": numbers(3, 4), "base_model.model.q.lora_B": numbers(5, 3),
             "base_model.model.q.lora_E": numbers(3, 1), "base_model.model.q.ranknum": torch.tensor(3.0),
             "base_model.model.v.lora_A.weight": numbers(2, 4), "base_model.model.v.lora_B.weight": numbers(5, 2),
             "base_model.model.v.lora_magnitude_vector.weight": numbers(5)},
            {}, PEFT_CONFIG | {"peft_type": "ADALORA", "rank_pattern": {}},
        ),
        "mlx": (
            {"model.layers.0.q.lora_a": numbers(4, 2), "model.layers.0.q.lora_b": numbers(2, 5)},
            {}, {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0}},
        ),
        "others": (
            {"w_a_000": numbers(2, 4), "w_b_000": numbers(5, 2), "c_attn.lora_A": numbers(4, 4),
             "c_attn.lora_B": numbers(6, 2, 1), "x.ia3_l": numbers(3), "<token>": numbers(4)},
            {}, {},
        ),
    }  # fmt: skip


def adapters() -> list[tuple[str, bytes, bytes | None]]:
    """File name, its bytes, and adapter_config.json beside it: every layout as safetensors, and as both pickles."""
    found = []
    for tensors, metadata, config in named().values():
        beside = json.dumps(config).encode() if config else None
        found.append(("a.safetensors", saved(tensors, metadata), beside))
        found.append(("a.bin", _pickled(tensors, new=True), beside))
        found.append(("a.bin", _old(tensors), beside))
    found.append(("a.text_encoder.pt", _pickled([numbers(4, 2), numbers(2, 3)], new=True), None))
    found.append(("a.pt", _pickled({"state_dict": named()["diffusers"][0], "epoch": 3}, new=True), None))
    return found


def saved(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """As safetensors writes it, but for its metadata, the order of which is another one in every run."""
    data = save(tensors)
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return file_of({"__metadata__": dict(metadata)} | json.loads(data[8:end]), data[end:])


def file_of(header: Mapping[str, Any] | bytes, data: bytes, length: int | None = None) -> bytes:
    """A safetensors file by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", (len(text) if length is None else length) % 2**64) + text + data


def _pickled(value: object, *, new: bool) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def _old(tensors: Mapping[str, Tensor]) -> bytes:
    """As torch before 1.6 saved it. It names a storage by its address: there is one here, and its name is replaced."""
    flat = torch.cat([tensor.float().flatten() for tensor in tensors.values()])
    parts = flat.split([tensor.numel() for tensor in tensors.values()])
    views = {key: part.view(tensor.shape) for (key, tensor), part in zip(tensors.items(), parts, strict=True)}
    return re.sub(rb"X.\0\0\0\d{10,20}(?!\d)", b"X\x0f\0\0\0" + b"1" * 15, _pickled(views, new=False), flags=re.DOTALL)
