"""Files to inspect, and what is said of them."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lorabench.adapters.metadata.inspection import Inspection

__all__ = ["KOHYA", "STEM", "kohya_tensors", "messages", "sparse", "values", "write"]

STEM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn{}_to_{}"
KOHYA = {
    "ss_sd_model_name": "/home/alice/sd/base.safetensors", "ss_base_model_version": "sd_v1", "ss_learning_rate": "1e-4",
    "ss_unet_lr": "0.0003", "ss_text_encoder_lr": "None", "ss_optimizer": "AdamW8bit", "ss_total_batch_size": "4",
    "ss_num_epochs": "10", "ss_epoch": "8", "ss_steps": "1600", "ss_max_train_steps": "2000", "ss_seed": "007",
    "ss_network_dim": "4", "ss_network_alpha": "2.0", "ss_network_module": "networks.lora",
    "ss_resolution": "(512, 768)",
    "ss_num_train_images": "120", "ss_min_snr_gamma": "NaN", "ss_sd_scripts_commit_hash": "12345678",
    "ss_training_started_at": "1680716500.77", "ss_training_finished_at": "1680721307.27",
    "ss_tag_frequency": '{"3_red fox": {"fox": 9, "snow ": 4, "grass": 5}, "1_reg": {"fox": 2, "snow": 1}}',
    "ss_dataset_dirs": '{"3_red fox": {"n_repeats": 3, "img_count": 40}}',
    "modelspec.title": "1984", "modelspec.author": "Bob", "modelspec.license": "CC-BY", "modelspec.date": "2024-02-03",
}  # fmt: skip


def kohya_tensors(rank: int = 4, alpha: float | None = 2.0, width: int = 8) -> dict[str, torch.Tensor]:
    tensors = {}
    for attention, letter, inner in ((1, "q", width), (2, "k", 768), (2, "v", 768)):
        stem = STEM.format(attention, letter)
        tensors[f"{stem}.lora_down.weight"] = torch.randn(rank, inner)
        tensors[f"{stem}.lora_up.weight"] = torch.randn(width, rank)
        if alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    return tensors


def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    return path


def sparse(path: Path, shapes: dict[str, list[int]], metadata: dict[str, str] | None = None) -> Path:
    """A file of zeros of any size, which takes no place on the disk."""
    said: dict[str, Any] = {"__metadata__": metadata or {}}
    at = 0
    for key, shape in shapes.items():
        size = 2 * math.prod(shape)
        said[key] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(said).encode()
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + at)
    return path


def values(block: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: one["value"] for name, one in block.items()}


def messages(found: Inspection, level: str) -> str:
    return "\n".join(found.validation_info[f"{level}s"])
