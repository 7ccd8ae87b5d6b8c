"""The spectra of an adapter's modules, modules of one shape and rank in one batch."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lorabench.adapters.adapter import LoraModule
from lorabench.adapters.comparing.deviation import batches
from lorabench.lowrank import singular_values
from lorabench.progress import bar

__all__ = ["spectra", "stack"]


def spectra(modules: Mapping[str, LoraModule]) -> dict[str, Float64[Tensor, " r"]]:
    """Module -> σ of ΔW, r values, descending.

    >>> one = LoraModule(down=torch.eye(2, 5), up=torch.tensor([[3.0, 0.0], [0.0, 2.0]]), scale=0.5)
    >>> spectra({"q": one})["q"].tolist()
    [1.5, 1.0]
    """
    found: dict[str, Float64[Tensor, " r"]] = {}
    with bar("Spectra", len(modules)) as shown:
        for names in batches(modules):
            sigma = singular_values(*stack([modules[name] for name in names]))
            found |= zip(names, sigma, strict=True)
            shown.advance(len(names))
    return {name: found[name] for name in modules}


def stack(
    batch: Sequence[LoraModule],
) -> tuple[Float[Tensor, "n r d_in"], Float[Tensor, "n d_out r"], Float64[Tensor, " n"]]:
    """Down, up and scale of modules of one shape and rank."""
    scales = torch.tensor([module.scale for module in batch], dtype=torch.float64)
    return torch.stack([module.down for module in batch]), torch.stack([module.up for module in batch]), scales
