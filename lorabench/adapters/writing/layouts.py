"""The tensors of an adapter in the names of diffusers, PEFT or kohya, and PEFT's configuration beside them."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lorabench.adapters.adapter import LoraModule
from lorabench.adapters.reading.kohya import counts_text_encoders, to_kohya
from lorabench.adapters.reading.naming import component

__all__ = ["LAYOUTS", "alpha_of", "peft_config", "tensors_in"]

LAYOUTS = ("diffusers", "peft", "kohya")
_HALF_RANGE = (2.0**-6, 2.0**15)
"""Where the largest value of a float16 matrix may lie, so that none overflows and few lose digits as subnormals."""


def tensors_in(
    layout: str, modules: Mapping[str, LoraModule], types: Mapping[str, torch.dtype], metadata: Mapping[str, str]
) -> dict[str, tuple[str, Tensor, torch.dtype]]:
    """Key -> (module, tensor in float32, or α in the type that holds it exactly; the type to write it in).

    Args:
        layout: one of `LAYOUTS`.
        modules: what is written, by canonical name.
        types: module -> type of its factors.
        metadata: of the file, which may name the base model; kohya's names depend on that.
    """
    tensors = {}
    several = counts_text_encoders(modules, metadata)
    for name, module in modules.items():
        if layout == "diffusers":
            named = _diffusers(name, module, types[name])
        elif layout == "peft":
            named = _peft(name, module)
        else:
            named = _kohya(name, module, several)
        for key, tensor in named.items():
            tensors[key] = name, tensor, tensor.dtype if key.endswith(".alpha") else types[name]
    return tensors


def alpha_of(module: LoraModule) -> float:
    """The α whose quotient by r is the scale, to the last bit where such a number exists."""
    near = module.scale * module.rank
    candidates = (near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf))
    known = () if module.alpha is None else (module.alpha,)
    return next((alpha for alpha in (*known, *candidates) if alpha / module.rank == module.scale), near)


def peft_config(modules: Mapping[str, LoraModule]) -> dict[str, Any]:
    """adapter_config.json of PEFT: the commonest rank and α, and patterns for the modules with others.

    α is rewritten so that α/r is the scale, hence no `use_rslora`. `target_modules` is one regular expression of
    the full names: in a list PEFT would take each for the end of a name, so that `conv_in` met `refiner.conv_in` too.
    """
    ranks = {name: module.rank for name, module in modules.items()}
    alphas = {name: alpha_of(module) for name, module in modules.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    # Anchored and escaped, since PEFT takes a bare name for the end of every name that it fits.
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(name)}": value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{re.escape(name)}": value for name, value in alphas.items() if value != alpha},
        "target_modules": f"^(?:{'|'.join(re.escape(name) for name in modules)})$",
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "task_type": None,
        "use_rslora": False,
    }


def _diffusers(name: str, module: LoraModule, dtype: torch.dtype) -> dict[str, Tensor]:
    down, up = _factors(module)
    if module.scale != 1.0:
        down, up = _fold_scale(down, up, module.scale, dtype)
    # diffusers knows the modules of a text encoder by this word alone.
    stem = f"{name}.lora_linear_layer" if component(name).startswith("text_encoder") else f"{name}.lora"
    return {f"{stem}.down.weight": down, f"{stem}.up.weight": up}


def _peft(name: str, module: LoraModule) -> dict[str, Tensor]:
    down, up = _factors(module)
    middle, end = ("lora_embedding_", "") if module.embedding else ("lora_", ".weight")
    stem = f"base_model.model.{name}.{middle}"
    return {f"{stem}A{end}": down, f"{stem}B{end}": up}


def _kohya(name: str, module: LoraModule, several_text_encoders: bool) -> dict[str, Tensor]:
    stem = to_kohya(name, several_text_encoders=several_text_encoders) or name
    down, up = _factors(module)
    alpha = alpha_of(module)
    if alpha == 0:  # sd-scripts takes an α of 0 for none at all, and a scale of 1
        alpha, up = float(module.rank), torch.zeros_like(up)
    exact = float(torch.tensor(alpha, dtype=torch.float32)) == alpha
    return {
        f"{stem}.lora_down.weight": down,
        f"{stem}.lora_up.weight": up,
        f"{stem}.alpha": torch.tensor(alpha, dtype=torch.float32 if exact else torch.float64),
    }


def _factors(module: LoraModule) -> tuple[Float[Tensor, "rank ..."], Float[Tensor, "d_out rank ..."]]:
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
