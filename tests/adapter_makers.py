"""Small adapters in memory, and their ΔW dense, for the tests of merging."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lorabench.adapters import Adapter, LoraModule

LINEAR, CONV, TABLE = "unet.mid_block.attn1.to_q", "unet.conv_in", "text_encoder.text_model.embeddings.token_embedding"
SHAPES = {LINEAR: (7, 11), CONV: (6, 18), TABLE: (5, 9)}


def make_module(
    seed: int, rank: int, shape: tuple[int, int], scale: float = 1.0, *, name: str = LINEAR, kind: str = "lora"
) -> LoraModule:
    generator = torch.Generator().manual_seed(seed)
    return LoraModule(
        torch.randn(rank, shape[1], generator=generator),
        torch.randn(shape[0], rank, generator=generator),
        scale,
        kernel=(3, 3) if name == CONV else (),
        embedding=name == TABLE,
        kind=kind,
    )


def make_adapter(
    seed: int,
    rank: int | Sequence[int] = 3,
    scale: float = 1.0,
    names: Sequence[str] = (LINEAR, CONV, TABLE),
    metadata: Mapping[str, str] | None = None,
    kind: str = "lora",
) -> Adapter:
    ranks = [rank] * len(names) if isinstance(rank, int) else rank
    modules = {
        name: make_module(seed * 100 + i, ranks[i], SHAPES[name], scale, name=name, kind=kind)
        for i, name in enumerate(names)
    }
    return Adapter(Path(f"made-{seed}.safetensors"), ("diffusers",), modules, metadata or {})


def dense(module: LoraModule) -> Tensor:
    return module.scale * (module.up.double() @ module.down.double())


def dense_sum(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, Tensor]:
    """Σ w_i ΔW_i of every module that any of them has."""
    found: dict[str, Tensor] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for name, module in adapter.modules.items():
            found[name] = found.get(name, torch.zeros(module.shape).double()) + weight * dense(module)
    return found


def near(found: Tensor, expected: Tensor, size: float, tolerance: float = 1e-6) -> bool:
    """Equal to rounding of `size`, which is that of the parts where a sum cancels."""
    return float((found - expected).norm()) <= tolerance * max(size, 1e-30)
