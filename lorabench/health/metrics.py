"""The spectrum of every module of an adapter, from r×r algebra alone, modules of one shape in one batch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from lorabench.adapters.adapter import LoraModule
from lorabench.adapters.comparing.deviation import batches
from lorabench.adapters.pairs import dimensions
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
        numerical_rank: dimensions that are told from rounding (`lorabench.adapters.pairs.dimensions`).
        rank_utilization: effective_rank_BA / r.
        kappa_BA: σ₁ / σ_r of BA over all r values; infinite where the last is 0.
        sigma_max_BA: σ₁ of BA.
        frobenius_BA: ‖BA‖_F.
        sigma_max: σ₁ of ΔW.
        frobenius: ‖ΔW‖_F.
        dead_dimensions: numbers i of rank dimensions that add nothing: row i of A or column i of B is zero.
        stuck_dimensions: those of them where both are zero, which no gradient can reach any more.
        effective_rank_A, effective_rank_B, kappa_A, kappa_B: of the factors, over the min(r, side) values that each
            has. They change with the gauge (A → G⁻¹A, B → BG), which changes no ΔW: diagnostics of training, and
            nothing of the health of ΔW.
        effective_rank_norms: the effective rank of a BA whose factors have these norms, row by row and column by
            column, and random directions, which in many dimensions are all but orthogonal: its σ are ‖a_i‖·‖b_i‖. A
            diagnostic of training too: how much lower effective_rank_BA is comes of directions that agree.
        base_sigma_max: σ₁ of the base's weight W; None where no base was given.
        base_frobenius: ‖W‖_F; None where no base was given.
        intruder_dimensions: of the first ten left singular vectors of W + ΔW, how many have no |cos| of 0.5 or more
            with any of W's (Shuttleworth et al. 2024); None where it was not asked for.
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
    stuck_dimensions: tuple[int, ...]
    effective_rank_A: float | None
    effective_rank_B: float | None
    kappa_A: float | None
    kappa_B: float | None
    effective_rank_norms: float | None
    base_sigma_max: float | None = None
    base_frobenius: float | None = None
    intruder_dimensions: int | None = None

    @property
    def dominance(self) -> float | None:
        """ρ = σ_max(ΔW) / σ_max(W), the scale included; None without a base, or where W is zero."""
        return _ratio(self.sigma_max, self.base_sigma_max)

    @property
    def effective_lr_scale(self) -> float | None:
        """|α/r| · ‖BA‖_F / ‖W‖_F; None without a base, or where W is zero."""
        return _ratio(self.frobenius, self.base_frobenius)

    @property
    def factor_condition(self) -> float | None:
        """max(κ(A), κ(B)), a diagnostic of training; None where neither is defined."""
        return max((kappa for kappa in (self.kappa_A, self.kappa_B) if kappa is not None), default=None)


def module_metrics(modules: Mapping[str, LoraModule]) -> list[LoRAAdapterMetrics]:
    """The metrics of every module, in their order; those of one shape and rank are computed together, in float64.

    They are computed where the factors lie, and come back in one copy for each batch.

    Example:
        >>> down, up = torch.eye(2, 5), torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> (found,) = module_metrics({"to_q": LoraModule(down, up, scale=0.5, alpha=1.0)})
        >>> found.sigma_max_BA, found.sigma_max, found.kappa_BA, round(found.effective_rank_BA, 3)
        (3.0, 1.5, 3.0, 1.755)
    """
    metrics: dict[str, LoRAAdapterMetrics] = {}
    for names in batches(modules):
        batch = [modules[name] for name in names]
        down, up = torch.stack([one.down for one in batch]), torch.stack([one.up for one in batch])
        numbers = _numbers(batch, down.double(), up.double())
        metrics |= {
            name: _metrics(name, module, {key: values[i] for key, values in numbers.items()})
            for i, (name, module) in enumerate(zip(names, batch, strict=True))
        }
    return [metrics[name] for name in modules]


def _numbers(
    modules: Sequence[LoraModule], down: Float64[Tensor, "n r d_in"], up: Float64[Tensor, "n d_out r"]
) -> dict[str, list[list[float]]]:
    """What is computed of every module, some numbers of each; all copied from the device at once."""
    finite = torch.isfinite(down).flatten(1).all(1) & torch.isfinite(up).flatten(1).all(1)
    down, up = (torch.where(finite[:, None, None], part, 0.0) for part in (down, up))
    sigma = singular_values(down, up)
    of_a, of_b = matrix_singular_values(down), matrix_singular_values(up)
    rows, columns = down.norm(dim=2), up.norm(dim=1)
    parts = {
        "finite": finite,
        "effective_rank_BA": effective_rank(sigma),
        "stable_rank": stable_rank(sigma),
        "energy_rank": energy_rank(sigma),
        "numerical_rank": dimensions(sigma, modules),
        "rank_utilization": rank_utilisation(sigma),
        "kappa_BA": condition_number(sigma),
        "sigma_max_BA": sigma[:, 0],
        "frobenius_BA": frobenius_norm(down, up),
        "effective_rank_A": effective_rank(of_a),
        "effective_rank_B": effective_rank(of_b),
        "kappa_A": condition_number(of_a),
        "kappa_B": condition_number(of_b),
        "effective_rank_norms": effective_rank(rows * columns),
        "dead": (rows == 0) | (columns == 0),
        "stuck": (rows == 0) & (columns == 0),
    }
    widths = [part.shape[1] if part.ndim > 1 else 1 for part in parts.values()]
    together = torch.cat([part.double().reshape(len(modules), -1) for part in parts.values()], dim=1).cpu()
    return {key: part.tolist() for key, part in zip(parts, torch.split(together, widths, dim=1), strict=True)}


_OF_DELTA = ("effective_rank_BA", "stable_rank", "rank_utilization", "kappa_BA")
_OF_FACTORS = ("effective_rank_A", "effective_rank_B", "kappa_A", "kappa_B", "effective_rank_norms")


def _metrics(name: str, module: LoraModule, numbers: Mapping[str, list[float]]) -> LoRAAdapterMetrics:
    first, whole, size = numbers["sigma_max_BA"][0], numbers["frobenius_BA"][0], abs(module.scale)
    finite = bool(numbers["finite"][0])
    trained = finite and first * size > 0
    ratios: dict[str, Any] = {key: _number(numbers[key][0], trained) for key in _OF_DELTA}
    ratios |= {key: _number(numbers[key][0], finite) for key in _OF_FACTORS}
    return LoRAAdapterMetrics(
        module=name,
        shape=module.shape,
        nominal_rank=module.rank,
        alpha=module.alpha,
        scale=module.scale,
        finite=finite,
        untrained=finite and not trained,
        energy_rank=int(numbers["energy_rank"][0]) if trained else None,
        numerical_rank=int(numbers["numerical_rank"][0]) if trained else None,
        sigma_max_BA=first if finite else None,
        frobenius_BA=whole if finite else None,
        sigma_max=first * size if finite else None,
        frobenius=whole * size if finite else None,
        dead_dimensions=_set(numbers["dead"]) if finite else (),
        stuck_dimensions=_set(numbers["stuck"]) if finite else (),
        **ratios,
    )


def _set(flags: Sequence[float]) -> tuple[int, ...]:
    return tuple(i for i, flag in enumerate(flags) if flag)


def _number(value: float, known: bool) -> float | None:
    """None too where it is undefined: of a factor that is zero."""
    return None if not known or math.isnan(value) else value


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole
