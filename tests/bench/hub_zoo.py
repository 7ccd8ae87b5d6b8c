"""A zoo in the hub's schema, made in memory from random numbers."""

import numpy as np

from lorabench.zoo import Labels, Module, Stack, Zoo
from tests.bench.hub_shapes import stable_diffusion_modules

__all__ = ["CLASSES", "hub_zoo"]

CLASSES = 10
_SHIFT = 0.4  # of the mean of the layer that tells most, from the first class to the last, in standard deviations


def hub_zoo(adapters: int, layers: int, seed: int = 0) -> Zoo:
    """Adapters of rank 1 for SD 1.5, [adapters, 1, d_in] and [adapters, d_out, 1], and ten categories.

    The category shifts the mean of a layer by a little, from nothing in the first one to 0.4 standard deviations in
    the last, so that some layers are learned, some are not, and members stop at different epochs.

    Args:
        adapters: how many.
        layers: how many, an even number to 128; of fewer, modules are taken evenly from the whole network.
        seed: of the random numbers.
    """
    every = list(stable_diffusion_modules().items())
    shapes = [every[i * len(every) // (layers // 2)] for i in range(layers // 2)]
    rng = np.random.default_rng(seed)
    category = np.arange(adapters) % CLASSES
    made: dict[str, Stack] = {}
    modules = []
    for name, (d_in, d_out) in shapes:
        module = Module(name, f"{name}.lora.down.weight", f"{name}.lora.up.weight")
        modules.append(module)
        for layer, shape in ((module.down, (1, d_in)), (module.up, (d_out, 1))):
            values = rng.standard_normal((adapters, *shape), dtype=np.float32)
            strength = _SHIFT * len(made) / max(layers - 1, 1)
            values += (strength * category / CLASSES).astype(np.float32)[:, None, None]
            made[layer] = Stack((values,))
    names = [f"adapter{i}" for i in range(adapters)]
    return Zoo(
        name="hub-like",
        layers=made,
        modules=tuple(modules),
        rank=np.ones((adapters, len(modules)), np.int64),
        scale=np.ones((adapters, len(modules)), np.float32),
        labels=Labels.of(names, [f"category {c}" for c in category], names),
        fingerprint=f"hub-like-{adapters}-{layers}-{seed}",
    )
