"""The tensors of an adapter as a layout has them: keys, shapes of convolutions, and where the scale goes."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.layouts import WrittenLayout
from lorabench.adapters.reading.naming import parse_key

__all__ = ["alpha_of", "scaled_biases", "tensors_in"]

_HALF_RANGE = (2.0**-6, 2.0**15)
"""Where the largest value of a float16 matrix may lie, so that none overflows and few lose digits as subnormals."""


def tensors_in(
    layout: WrittenLayout,
    modules: Mapping[str, LoraModule],
    types: Mapping[str, torch.dtype],
    names: Mapping[str, str],
) -> dict[str, tuple[str, Tensor, torch.dtype]]:
    """Key -> (module, tensor in float32, or α in the type that holds it exactly; the type to write it in).

    Args:
        layout: that is written.
        modules: what is written, by canonical name.
        types: module -> type of its factors.
        names: module -> its name in this layout (`WrittenLayout.spell`).
    """
    tensors: dict[str, tuple[str, Tensor, torch.dtype]] = {}
    for name, module in modules.items():
        keys, dtype = layout.keys(name, module.embedding, names), types[name]
        down, up = _as_stored(module)
        if layout.alpha == "folded" and module.scale != 1.0:
            down, up = _fold_scale(down, up, module.scale, dtype)
        if keys.alpha is not None:
            alpha = alpha_of(module)
            if alpha == 0:  # sd-scripts takes an α of 0 for none at all, and a scale of 1
                alpha, up = float(module.rank), torch.zeros_like(up)
            exact = float(torch.tensor(alpha, dtype=torch.float32)) == alpha
            kind = torch.float32 if exact else torch.float64
            tensors[keys.alpha] = name, torch.tensor(alpha, dtype=kind), kind
        tensors[keys.down], tensors[keys.up] = (name, down, dtype), (name, up, dtype)
    return tensors


def alpha_of(module: LoraModule) -> float:
    """The α whose quotient by r is the scale, to the last bit where such a number exists."""
    near = module.scale * module.rank
    candidates = (near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf))
    stated = () if module.alpha is None else (module.alpha,)
    return next((alpha for alpha in (*stated, *candidates) if alpha / module.rank == module.scale), near)


def scaled_biases(adapter: Adapter) -> dict[str, Tensor]:
    """An adapter's whole tensors, the biases of up matrices times the scale that what is written no longer has."""
    scaled = dict(adapter.extras)
    for key, tensor in adapter.extras.items():
        parsed = parse_key(key)
        if parsed.part == "bias" and parsed.module in adapter.modules and ".lora" in key:
            scaled[key] = (tensor.double() * adapter.modules[parsed.module].scale).to(tensor.dtype)
    return scaled


def _as_stored(module: LoraModule) -> tuple[Float[Tensor, "rank ..."], Float[Tensor, "d_out rank ..."]]:
    """Both factors as their trainer stores them: a convolution has [r, in, k, k] and [d_out, r, 1, 1]."""
    if not module.kernel:
        return module.down, module.up
    inputs = module.down.shape[1] // math.prod(module.kernel)
    return (
        module.down.reshape(module.rank, inputs, *module.kernel),
        module.up.reshape(*module.up.shape, *(1 for _ in module.kernel)),
    )


def _fold_scale(
    down: Float[Tensor, "rank ..."], up: Float[Tensor, "d_out rank ..."], scale: float, dtype: torch.dtype
) -> tuple[Float[Tensor, "rank ..."], Float[Tensor, "d_out rank ..."]]:
    """The scale multiplied into up; where float16 cannot hold it, a power of two of it, which rounds not, into down."""
    up = up * scale
    lowest, highest = _HALF_RANGE
    sizes = float(down.abs().max()), float(up.abs().max())
    if dtype != torch.float16 or 0.0 in sizes or lowest <= sizes[1] <= highest:
        return down, up
    shift = 2.0 ** round(math.log2(sizes[1] / sizes[0]) / 2)
    return down * shift, up / shift
