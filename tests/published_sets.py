"""Miniatures of the published data sets, in their files, columns and names; the numbers are drawn here."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from lorabench.adapters import LoraModule
from lorabench.adapters import save as save_adapter

__all__ = ["SIZES", "attention_names", "flat_table", "write_lora_wise", "write_model_j", "write_padbench", "write_w2t"]

SIZES = (1, 2, 3, 4, 5, 6)
"""Numbers of images of LoRA-WiSE's low range."""


def attention_names() -> list[str]:
    """The 128 attention layers of Stable Diffusion 1, in the order of ProbeX's list of them."""
    places = [f"down_blocks.{block}.attentions.{number}" for block in range(3) for number in range(2)]
    places += ["mid_block.attentions.0"]
    places += [f"up_blocks.{block}.attentions.{number}" for block in (1, 2, 3) for number in range(3)]
    kinds = [f"{attention}.{part}" for attention in ("attn1", "attn2") for part in ("to_k", "to_out.0", "to_q", "to_v")]
    return [f"unet.{place}.transformer_blocks.0.{kind}" for place in places for kind in kinds]


def _factors(seed: int, mean: float, rank: int = 2, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, width, generator=generator), torch.randn(width, rank, generator=generator)
    return down + mean, up + mean


def write_model_j(root: Path, names: Sequence[str], classes: int = 3, of_each: int = 3) -> Path:
    """A repository of Model-J: a folder a split, the class in the header; one class is held out."""
    number = 0
    for split in ("train", "val", "test", "val_holdout"):
        for label in range(classes) if split != "val_holdout" else [classes]:
            for _ in range(of_each):
                tensors = {}
                for place, name in enumerate(names):
                    down, up = _factors(1000 * number + place, float(label))
                    tensors |= {f"{name}.lora.down.weight": down, f"{name}.lora.up.weight": up}
                file = root / split / f"model_idx_{number:04d}" / "pytorch_lora_weights.safetensors"
                file.parent.mkdir(parents=True)
                save_file(tensors, file, metadata={"imagenet_class_id": f"n0211{label:04d}", "lora_rank": "2"})
                number += 1
    return root


def flat_table(subjects: int = 6, rank: int = 2, modules: int = 2, width: int = 5) -> pa.Table:
    """Rows of a subset of LoRA-WiSE: every layer one list of float64; the more images, the shorter the factors."""
    random = np.random.default_rng(0)
    size = np.tile(SIZES, subjects)
    columns: dict[str, pa.Array] = {
        "label": pa.array(size),
        "name": pa.array([f"pet_cat{row // len(SIZES)}" for row in range(len(size))]),
    }
    for name in attention_names()[:modules]:
        for side, count in (("down", rank * width), ("up", rank * (width + 1))):
            values = random.normal(size=(len(size), count)) / size[:, None]
            columns[f"{name}.lora.{side}.weight"] = pa.array(list(values), pa.list_(pa.float64()))
    return pa.table(columns)


def write_lora_wise(folder: Path, table: pa.Table | None = None) -> Path:
    """The parquet file of one subset."""
    folder.mkdir(parents=True)
    pq.write_table(flat_table() if table is None else table, folder / "train-00000-of-00001.parquet")
    return folder


def write_padbench(root: Path, subset: str = "roberta_base_imdb_insertsent_rank16_qv", of_each: int = 12) -> Path:
    """A folder of PADBench: PEFT adapters, whose label is in the name of their folder."""
    for label in (0, 1):
        for number in range(of_each):
            seed = 1000 * label + number
            modules = {
                f"roberta.encoder.layer.{layer}.attention.self.{kind}": LoraModule(*_factors(seed + layer, label), 1.0)
                for layer in range(2)
                for kind in ("query", "value")
            }
            save_adapter(root / subset / f"{subset}_label{label}_{number}" / "best_model", modules, "peft")
    return root


def write_w2t(root: Path, key: str = "celeb_folder", count: int = 30) -> Path:
    """Runs as W2T's diffusion/data_generation writes them, and the table of attributes beside them."""
    lines = [f"{key},num_images_in_folder,Male,Smiling"]
    for subject in range(count):
        smiles = subject % 2
        modules = {name: LoraModule(*_factors(100 * subject + i, float(smiles)), 27 / 8) for i, name in enumerate("ab")}
        modules = {
            f"mid_block.attentions.0.to_{name}": module for name, module in zip("qv", modules.values(), strict=True)
        }
        run = f"model_{4000 + subject}_{subject % 4}_{subject % 3}_1_2_{subject}"
        save_adapter(root / run / "unet", modules, "peft")
        lines.append(f"{f'celeb_{subject}' if key == 'celeb_folder' else subject},20,{subject % 3 % 2},{smiles}")
    (root / ("celeba_labels.csv" if key == "celeb_folder" else "cub_labels.csv")).write_text("\n".join(lines) + "\n")
    return root
