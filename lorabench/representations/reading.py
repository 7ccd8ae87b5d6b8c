"""What representations read: the factors as they are or scaled, or sketches of ΔW, which no gauge changes."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from lorabench.representations.base import chunks, to_device
from lorabench.zoo import Zoo

__all__ = [
    "Sketch", "classes_of", "flat_rows", "scaled_factors", "shapes_of", "sketch_of", "sketch_shapes", "sketched_rows",
]  # fmt: skip

Sketch = tuple[Tensor, Tensor]
"""(Ω [d_in, s], Ψ [d_out, t]) of one module, orthonormal columns."""


def classes_of(zoo: Zoo) -> Int64[Tensor, " n"]:
    """What a supervised representation learns from, as codes from 0: the zoo's target, or its categories."""
    codes = zoo.labels.category if zoo.target is None else zoo.target
    return torch.from_numpy(np.unique(codes, return_inverse=True)[1].astype(np.int64))


def shapes_of(zoo: Zoo, layers: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """(rows, cols) of some layers."""
    return tuple((zoo.layers[layer].shape[1], zoo.layers[layer].shape[2]) for layer in layers)


def sketch_shapes(zoo: Zoo, modules: Sequence[str], columns: int) -> list[list[int]]:
    """[d_in, columns of Ω, d_out, columns of Ψ] of some modules; no side has more columns than it is wide."""
    sides = [zoo.shape_of(name) for name in modules]
    return [[one.d_in, min(columns, one.d_in), one.d_out, min(columns, one.d_out)] for one in sides]


def flat_rows(zoo: Zoo, layers: Sequence[str], device: torch.device, start: int, stop: int) -> Float32[Tensor, "n d"]:
    """The layers of some adapters flattened, behind one another."""
    return torch.cat([to_device(zoo.read(layer, start, stop), device).flatten(1) for layer in layers], 1)


def sketched_rows(
    zoo: Zoo, modules: Sequence[str], sketches: Sequence[Sketch], device: torch.device, start: int, stop: int
) -> Float32[Tensor, "n d"]:
    """ΔW·Ω and Ψᵀ·ΔW of some adapters, flattened, module behind module; ΔW = scale · up · down is never formed.

    Linear in ΔW, so (up·G, G⁻¹·down) gives the same for every G.
    """
    found = []
    for name, (omega, psi) in zip(modules, sketches, strict=True):
        down, up = scaled_factors(zoo, name, device, start, stop)
        columns, rows = up @ (down @ omega.to(device).double()), (psi.to(device).double().mT @ up) @ down
        found += [columns.flatten(1), rows.flatten(1)]
    return torch.cat(found, 1).float()


def sketch_of(zoo: Zoo, module: str, columns: int, seed: int, device: torch.device) -> Sketch:
    """Ω near the leading right and Ψ near the leading left directions of all ΔW of these rows.

    One power iteration from a seeded random block (Halko, Martinsson & Tropp 2011): Ω = orth(Σ ΔWᵀ·ΔW·Ω₀).

    Args:
        zoo: the training rows.
        module: its name.
        columns: of Ω and of Ψ; no more than the side is wide.
        seed: of Ω₀ and Ψ₀.
        device: where to compute.
    """
    found, (_, d_in, d_out) = zoo.modules[zoo.module_index(module)], zoo.shape_of(module)
    generator = torch.Generator().manual_seed(seed)
    omega, psi = (
        torch.linalg.qr(torch.randn(d, min(columns, d), generator=generator, dtype=torch.float64))[0].to(device)
        for d in (d_in, d_out)
    )
    right, left = torch.zeros_like(omega), torch.zeros_like(psi)
    for start, stop in chunks(zoo, (found.down, found.up)):
        down, up = scaled_factors(zoo, module, device, start, stop)
        right += (down.mT @ (up.mT @ up @ (down @ omega))).sum(0)
        left += (up @ (down @ down.mT @ (up.mT @ psi))).sum(0)
    return torch.linalg.qr(right)[0].float(), torch.linalg.qr(left)[0].float()


def scaled_factors(
    zoo: Zoo, module: str, device: torch.device, start: int, stop: int
) -> tuple[Float64[Tensor, "n r d_in"], Float64[Tensor, "n d_out r"]]:
    """(down, scale · up) of some adapters, padded as the zoo has them: their product is ΔW."""
    found = zoo.modules[zoo.module_index(module)]
    down, up = (to_device(zoo.read(layer, start, stop), device).double() for layer in (found.down, found.up))
    scale = to_device(zoo.scale[start:stop, zoo.module_index(module)], device).double()
    return down, up * scale[:, None, None]
