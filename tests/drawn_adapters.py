"""Adapters that are drawn in tests: a large one with long names, a small one, and degenerate ones."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from lorabench.adapters.adapter import Adapter, LoraModule


def module(
    seed: int = 0, rank: int = 4, shape: tuple[int, int] = (24, 18), scale: float = 1.0, trained: bool = True
) -> LoraModule:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, shape[1], generator=generator)
    up = torch.randn(shape[0], rank, generator=generator) * torch.linspace(1, 0.05, rank)
    return LoraModule(down, up if trained else torch.zeros_like(up), scale)


def adapter(modules: Mapping[str, LoraModule], name: str = "a.safetensors") -> Adapter:
    return Adapter(Path(name), ("diffusers",), dict(modules))


def sdxl_names() -> list[str]:
    """264 modules with names as long as SDXL's."""
    inside = [f"attn{i}.{name}" for i in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")]
    names = [
        f"unet.{stage}.attentions.{attention}.transformer_blocks.{block}.{name}"
        for stage, depth in (("down_blocks.1", 2), ("down_blocks.2", 4), ("mid_block", 4), ("up_blocks.0", 4))
        for attention in range(1 if stage == "mid_block" else 2)
        for block in range(depth)
        for name in (*inside, "ff.net.0.proj", "ff.net.2")
    ]
    text = [
        f"text_encoder_2.text_model.encoder.layers.{layer}.{name}"
        for layer in range(5)
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
    ]
    return [
        *text,
        *names,
        "unet.conv_in",
        "unet.conv_out",
        "unet.time_embedding.linear_1",
        "unet.add_embedding.linear_2",
    ]


def large(seed: int = 0) -> Adapter:
    names = sdxl_names()
    assert len(names) == 264
    return adapter(
        {name: module(seed + i, trained=i % 37 != 5) for i, name in enumerate(names)},
        "a_style_adapter_with_a_rather_long_file_name-000012.safetensors",
    )


def small(seed: int = 0) -> Adapter:
    return adapter(
        {f"model.layers.{i}.self_attn.{name}_proj": module(seed + i, trained=i > 0) for i in (0, 1) for name in "qv"}
    )


def odd() -> Adapter:
    """Every kind of degenerate module."""
    return adapter(
        {
            "one.rank": module(rank=1),
            "rank.over.both": module(rank=40, shape=(5, 3)),
            "negative": module(scale=-2.0),
            "zero.scale": module(scale=0.0),
            "conv": replace(module(rank=2, shape=(6, 27)), kernel=(3, 3)),
            "embedding": replace(module(rank=2, shape=(6, 50)), embedding=True),
            "tiny": LoraModule(torch.full((1, 1), 1e-30), torch.full((1, 1), 1e-30)),
            "$x$": LoraModule(torch.full((2, 9), 0.5), torch.full((4, 2), 0.5)),
        },
        "猫 $a$ b$.safetensors",
    )


CASES: dict[str, Callable[[], Adapter]] = {
    "large": large,
    "small": small,
    "odd": odd,
    "one": lambda: adapter({"w": module()}),
    "untrained": lambda: adapter({f"w_{i:03}": module(trained=False) for i in range(30)}),
}
