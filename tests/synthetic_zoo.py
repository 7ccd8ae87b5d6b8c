"""A small zoo in memory for tests: adapters of several ranks, padded as a source pads them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lorabench.zoo import Labels, Module, Stack, Zoo

SHAPES = ((6, 5), (4, 7), (6, 6))


def make_zoo(
    count: int = 24,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    ranks: Sequence[int] = (1, 2, 3),
    seed: int = 0,
    fingerprint: str = "f" * 32,
) -> Zoo:
    """`count` adapters with one module for every (d_out, d_in); adapter i has rank ranks[i % len(ranks)]."""
    rng = np.random.default_rng(seed)
    top = max(ranks)
    rank = np.array([[ranks[i % len(ranks)]] * len(shapes) for i in range(count)], np.int64)
    layers, modules = {}, []
    for number, (d_out, d_in) in enumerate(shapes):
        name = f"unet.blocks.{number}.attn1.to_q"
        module = Module(name, f"{name}.lora.down.weight", f"{name}.lora.up.weight")
        down = rng.normal(size=(count, top, d_in)).astype(np.float32) + np.float32(0.3)
        up = rng.normal(size=(count, d_out, top)).astype(np.float32)
        for i in range(count):
            down[i, rank[i, 0] :] = 0
            up[i, :, rank[i, 0] :] = 0
        modules.append(module)
        # Two pieces, as in a store of several files.
        half = count // 2
        layers[module.down] = Stack((down[:half], down[half:]))
        layers[module.up] = Stack((up[:half], up[half:]))
    names = [f"adapter{i}" for i in range(count)]
    labels = Labels.of(names, [f"c{i % 3}" for i in range(count)], [f"leaf{i}" for i in range(count)])
    scale = rng.uniform(0.5, 2.0, size=rank.shape).astype(np.float32)
    return Zoo("synthetic", layers, tuple(modules), rank, scale, labels, fingerprint)


def with_layers(zoo: Zoo, layers: dict[str, np.ndarray], fingerprint: str | None = None) -> Zoo:
    """The zoo with these layers in place of its own of the same names."""
    stacks = {name: Stack((layers[name],)) if name in layers else stack for name, stack in zoo.layers.items()}
    return replace(zoo, layers=stacks, fingerprint=fingerprint or zoo.fingerprint)


def deltas(zoo: Zoo, module: str) -> np.ndarray:
    """Dense ΔW of one module in float64, [N, d_out, d_in]."""
    column = zoo.module_index(module)
    found = zoo.modules[column]
    down, up = (zoo.layers[name].read(0, len(zoo)).astype(np.float64) for name in (found.down, found.up))
    return zoo.scale[:, column, None, None].astype(np.float64) * (up @ down)


def regauged(zoo: Zoo, seed: int = 0) -> Zoo:
    """The same ΔW from other factors: (up·G, G⁻¹·down), a well-conditioned G of its own for every adapter and module.

    G mixes the unpadded rows only, so that ranks stay what they are.
    """
    rng = np.random.default_rng(seed)
    changed = {}
    for column, module in enumerate(zoo.modules):
        down, up = (np.array(zoo.layers[name].read(0, len(zoo)), np.float64) for name in (module.down, module.up))
        for i, r in enumerate(zoo.rank[:, column]):
            q, _ = np.linalg.qr(rng.normal(size=(r, r)))
            gauge = q * rng.uniform(0.5, 2.0, size=r)
            up[i, :, :r] = up[i, :, :r] @ gauge
            down[i, :r] = np.linalg.solve(gauge, down[i, :r])
        changed[module.down], changed[module.up] = down.astype(np.float32), up.astype(np.float32)
    return with_layers(zoo, changed)
