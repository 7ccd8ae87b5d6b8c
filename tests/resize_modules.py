"""Small modules for the tests of resizing, and their errors from dense matrices."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.resizing.receipt import ModuleReceipt
from lorabench.adapters.resizing.rule import ResizeRule
from lorabench.adapters.resizing.whole import resize

UNET, TEXT = "unet.down_blocks.0.attn1.to_q", "text_encoder.text_model.encoder.layers.3.self_attn.q_proj"


def make(seed: int, rank: int, d_out: int, d_in: int, scale: float = 1.0, **others: object) -> LoraModule:
    generator = torch.Generator().manual_seed(seed)
    fall = torch.linspace(1, 0.1, rank)
    down = torch.randn(rank, d_in, generator=generator)
    up = torch.randn(d_out, rank, generator=generator) * fall
    return LoraModule(down, up, scale, **others)  # type: ignore[arg-type]


def adapter_of(*modules: LoraModule, **named: LoraModule) -> Adapter:
    return Adapter(
        Path("test.safetensors"), ("kohya",), {f"unet.{i}.to_q": module for i, module in enumerate(modules)} | named
    )


def one(module: LoraModule, **how: object) -> tuple[LoraModule, ModuleReceipt]:
    beside = {name: how.pop(name) for name in ("dtype", "layout") if name in how}
    resized, receipt = resize(adapter_of(module), ResizeRule(**how), **beside)  # type: ignore[arg-type]
    return resized.modules["unet.0.to_q"], receipt.modules[0]


def dense(module: LoraModule) -> Tensor:
    return module.scale * (module.up.double() @ module.down.double())


def tail(module: LoraModule, rank: int) -> float:
    """The least relative error at a rank, by numpy from the dense matrix."""
    sigma = np.linalg.svd(dense(module).numpy(), compute_uv=False)
    return float(np.linalg.norm(sigma[rank:]) / np.linalg.norm(sigma))


def apart(before: LoraModule, after: LoraModule) -> float:
    return float((dense(before) - dense(after)).norm() / dense(before).norm())
