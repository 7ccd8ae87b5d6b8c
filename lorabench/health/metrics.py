"""The spectrum of every module of an adapter, from r×r algebra alone, modules of one shape in one batch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from lorabench.adapters.adapter import LoraModule, alike
from lorabench.adapters.comparing.deviation import chunks
from lorabench.adapters.pairs import dimension
from lorabench.lowrank import (
    condition_number,
    effective_rank,
    energy_rank,
    frobenius_norm,
    matrix_singular_values,
    rank_utilisation,
    singular_values,
    stable_rank,
)

__all__ = ["LoRAAdapterMetrics", "module_metrics"]


@dataclass(frozen=True)
class LoRAAdapterMetrics:
    """One module: what its ΔW = scale · up @ down is, and how its factors stand.

    A is down, B is up, BA their product without the scale; r is the nominal rank. Ratios are None where they are
    undefined: of a ΔW that is zero, and of factors that hold NaN or infinity.

    Attributes:
        module: its name.
        shape: (d_out, d_in) of ΔW.
        nominal_rank: r, the rank that was paid for.
        alpha: α; None where the file names none.
        scale: what multiplies BA: α/r, or as the file says.
        finite: whether no entry of A and B is NaN or infinite.
        untrained: whether ΔW is zero.
        effective_rank_BA: exp(entropy of σ/Σσ) of BA (Roy & Vetterli 2007), from 1 to r; no scale changes it.
        stable_rank: ‖BA‖_F² / σ₁².
        energy_rank: the fewest dimensions with 90 % of ‖BA‖_F².
        numerical_rank: dimensions that are told from rounding (`lorabench.adapters.pairs.dimension`).
        rank_utilization: effective_rank_BA / r.
        kappa_BA: σ₁ / σ_r of BA over all r values; infinite where the last is 0.
        sigma_max_BA: σ₁ of BA.
        frobenius_BA: ‖BA‖_F.
        sigma_max: σ₁ of ΔW.
        frobenius: ‖ΔW‖_F.
        dead_dimensions: numbers i of rank dimensions that add nothing: row i of A or column i of B is zero.
        effective_rank_A, effective_rank_B, kappa_A, kappa_B: of the factors. They change with the gauge
            (A → G⁻¹A, B → BG), which changes no ΔW: diagnostics of training, and nothing of the health of ΔW.
    """

    module: str
    shape: tuple[int, int]
    nominal_rank: int
    alpha: float | None
    scale: float
    finite: bool
    untrained: bool
    effective_rank_BA: float | None
    stable_rank: float | None
    energy_rank: int | None
    numerical_rank: int | None
    rank_utilization: float | None
    kappa_BA: float | None
    sigma_max_BA: float | None
    frobenius_BA: float | None
    sigma_max: float | None
    frobenius: float | None
    dead_dimensions: tuple[int, ...]
    effective_rank_A: float | None
    effective_rank_B: float | None
    kappa_A: float | None
    kappa_B: float | None


def module_metrics(modules: Mapping[str, LoraModule]) -> list[LoRAAdapterMetrics]:
    """The metrics of every module, in their order; those of one shape and rank are computed together, in float64.

    Example:
        >>> down, up = torch.eye(2, 5), torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> (found,) = module_metrics({"to_q": LoraModule(down, up, scale=0.5, alpha=1.0)})
        >>> found.sigma_max_BA, found.sigma_max, found.kappa_BA, round(found.effective_rank_BA, 3)
        (3.0, 1.5, 3.0, 1.755)
    """
    found: dict[str, LoRAAdapterMetrics] = {}
    for names in (batch for group in alike(modules) for batch in chunks(group, _entries(modules[group[0]]))):
        own = [modules[name] for name in names]
        down, up = torch.stack([one.down for one in own]), torch.stack([one.up for one in own])
        found |= zip(names, _of_batch(names, own, down.double(), up.double()), strict=True)
    return [found[name] for name in modules]


def _entries(module: LoraModule) -> int:
    return module.down.numel() + module.up.numel()


def _of_batch(
    names: Sequence[str],
    modules: Sequence[LoraModule],
    down: Float64[Tensor, "batch r d_in"],
    up: Float64[Tensor, "batch d_out r"],
) -> list[LoRAAdapterMetrics]:
    finite = torch.isfinite(down).flatten(1).all(1) & torch.isfinite(up).flatten(1).all(1)
    down, up = (torch.where(finite[:, None, None], part, 0.0) for part in (down, up))
    sigma, norm, rank = singular_values(down, up), frobenius_norm(down, up), down.shape[1]
    of_a, of_b = (_padded(matrix_singular_values(factor), rank) for factor in (down, up))
    of_delta = {
        "effective_rank_BA": effective_rank(sigma),
        "stable_rank": stable_rank(sigma),
        "rank_utilization": rank_utilisation(sigma),
        "kappa_BA": condition_number(sigma),
    }
    of_factors = {
        "effective_rank_A": effective_rank(of_a),
        "effective_rank_B": effective_rank(of_b),
        "kappa_A": condition_number(of_a),
        "kappa_B": condition_number(of_b),
    }
    dead, energy = (down == 0).all(2) | (up == 0).all(1), energy_rank(sigma)
    rows = []
    for i, (name, module) in enumerate(zip(names, modules, strict=True)):
        known, size, first, whole = bool(finite[i]), abs(module.scale), float(sigma[i, 0]), float(norm[i])
        trained = known and first * size > 0
        rows.append(
            LoRAAdapterMetrics(
                module=name,
                shape=module.shape,
                nominal_rank=module.rank,
                alpha=module.alpha,
                scale=module.scale,
                finite=known,
                untrained=known and not trained,
                energy_rank=int(energy[i]) if trained else None,
                numerical_rank=dimension(sigma[i], module) if trained else None,
                sigma_max_BA=first if known else None,
                frobenius_BA=whole if known else None,
                sigma_max=first * size if known else None,
                frobenius=whole * size if known else None,
                dead_dimensions=tuple(torch.nonzero(dead[i])[:, 0].tolist()) if known else (),
                **{key: _number(values[i], trained) for key, values in of_delta.items()},
                **{key: _number(values[i], known) for key, values in of_factors.items()},
            )
        )
    return rows


def _padded(sigma: Float64[Tensor, "batch k"], rank: int) -> Float64[Tensor, "batch r"]:
    """All r values of a factor: where r is above its other side, the last are 0."""
    return torch.nn.functional.pad(sigma, (0, rank - sigma.shape[-1]))


def _number(value: Float64[Tensor, ""], known: bool) -> float | None:
    """None too where it is undefined: of a factor that is zero."""
    number = float(value)
    return None if not known or math.isnan(number) else number
