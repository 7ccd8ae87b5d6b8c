"""Small folders of adapter files for tests."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lorabench.adapters import LoraModule
from lorabench.adapters import save as save_adapter
from lorabench.zoo import Module, Zoo
from lorabench.zoo.folder import load

MODULES = ("unet.mid_block.attn1.to_q", "unet.mid_block.attn1.to_out.0", "unet.up_blocks.10.attn1.to_q")


def make_modules(
    seed: int, rank: int = 2, names: Sequence[str] = MODULES, d_in: int = 6, scale: float = 1.0
) -> dict[str, LoraModule]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LoraModule(torch.randn(rank, d_in, generator=generator), torch.randn(5, rank, generator=generator), scale)
        for name in names
    }


def load_folder(root: Path, tmp_path: Path, missing: str = "error") -> Zoo:
    return load(str(root), "mine", str(tmp_path / "cache"), missing)


def delta_of(zoo: Zoo, row: int, module: Module) -> np.ndarray:
    down, up = (zoo.read(layer, row, row + 1)[0].astype(np.float64) for layer in (module.down, module.up))
    return zoo.scale[row, zoo.module_index(module.name)] * up @ down


def write_mixed(root: Path) -> Path:
    """Two categories, three schemes, three ranks."""
    save_adapter(root / "cats" / "a.safetensors", make_modules(0, rank=1), "diffusers")
    save_adapter(root / "cats" / "b", make_modules(1, rank=3, scale=2.0), "peft")
    save_adapter(root / "dogs" / "c.safetensors", make_modules(2, rank=2, scale=0.5), "kohya")
    save_adapter(root / "dogs" / "deep" / "d.safetensors", make_modules(3, rank=2), "diffusers")
    return root
