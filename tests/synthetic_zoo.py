"""A small zoo in memory for tests: adapters of several ranks, padded as a source pads them."""

import hashlib
from collections.abc import Mapping, Sequence
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


def planted_zoo(
    signal: Mapping[int, Sequence[float]],
    count: int = 300,
    classes: int = 3,
    modules: int = 6,
    seed: int = 0,
    copies: Mapping[int, int] | None = None,
) -> Zoo:
    """Adapters of `modules` modules, two layers each, whose 16 entries are noise; adapter i is of class i % classes.

    Args:
        signal: number of a layer -> what is added to all its entries, for every class.
        count: number of adapters.
        classes: number of classes.
        modules: number of modules, half of them attn1 and half attn2.
        seed: of the noise.
        copies: number of a layer -> number of the layer that it is a copy of.
    """
    rng = np.random.default_rng(seed)
    category = np.arange(count) % classes
    layers, found = {}, []
    for number in range(modules):
        block, kind = divmod(number, 2)
        name = f"unet.down_blocks.{block}.attentions.0.transformer_blocks.0.attn{kind + 1}.to_{'qv'[block % 2]}"
        module = Module(name, f"{name}.lora.down.weight", f"{name}.lora.up.weight")
        found.append(module)
        for side, (layer, shape) in enumerate(((module.down, (2, 8)), (module.up, (8, 2)))):
            shift = np.array(signal.get(2 * number + side, [0.0] * classes), np.float32)[category]
            values = rng.standard_normal((count, *shape), dtype=np.float32) + shift[:, None, None]
            layers[layer] = Stack((values,))
    names = list(layers)
    for to, source in (copies or {}).items():
        values = layers[names[source]].pieces[0]
        layers[names[to]] = Stack((values.reshape(count, *layers[names[to]].shape[1:]),))
    labels = Labels.of(
        [f"adapter{i}" for i in range(count)], [f"c{c}" for c in category], [f"leaf{i}" for i in range(count)]
    )
    rank = np.full((count, modules), 2, np.int64)
    print_of = hashlib.sha256(b"".join(stack.pieces[0].tobytes() for stack in layers.values())).hexdigest()[:32]
    return Zoo("planted", layers, tuple(found), rank, np.ones((count, modules), np.float32), labels, print_of)
