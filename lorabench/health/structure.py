"""An adapter beside its base: how much its updates weigh against what they change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorabench.health.metrics import LoRAAdapterMetrics

__all__ = ["BANDS", "LoRAStructuralMetrics", "band_of", "structural_metrics"]

BANDS = {"minimal": 0.05, "healthy": 0.10, "raised": 0.30, "dominating": 0.50}
"""Names of ranges of ρ, and where each ends; above the last it is "critical"."""

_ILL = 1000.0


@dataclass(frozen=True)
class LoRAStructuralMetrics:
    """A whole adapter: ρ = σ_max(ΔW) / σ_max(W), the scale included, and the condition of its factors.

    Attributes:
        per_layer_dominance: module -> ρ; those alone whose base weight is known.
        mean_dominance: the mean of ρ over modules; None where no base was given.
        max_dominance: the largest ρ.
        scaled_mean_dominance: Σ σ_max(ΔW) / Σ σ_max(W): the mean in which a module counts as its base weighs.
        band: of `max_dominance` (see `BANDS`).
        is_dominating: whether `max_dominance` is above 0.3.
        adapter_health: 1 / max(κ(A), κ(B)) of the module where it is least, in [0, 1]. A diagnostic of training: the
            gauge changes it.
        is_ill_conditioned: whether max(κ(A), κ(B)) is above 1000 in some module.
        intruder_dimensions: of all modules together; None where they were not counted.
    """

    per_layer_dominance: Mapping[str, float]
    mean_dominance: float | None
    max_dominance: float | None
    scaled_mean_dominance: float | None
    band: str | None
    is_dominating: bool
    adapter_health: float | None
    is_ill_conditioned: bool
    intruder_dimensions: int | None


def band_of(dominance: float) -> str:
    """The name of a ρ's range.

    >>> band_of(0.01), band_of(0.08), band_of(0.2), band_of(0.31), band_of(0.7)
    ('minimal', 'healthy', 'raised', 'dominating', 'critical')
    """
    return next((name for name, end in BANDS.items() if dominance <= end), "critical")


def structural_metrics(rows: Sequence[LoRAAdapterMetrics]) -> LoRAStructuralMetrics:
    """What the metrics of the modules say of the adapter as a whole.

    Args:
        rows: of `module_metrics`, or of `against_base`, without which nothing is said of dominance.
    """
    beside = {row.module: row for row in rows if row.dominance is not None}
    ratios = {name: row.dominance for name, row in beside.items() if row.dominance is not None}
    most = max(ratios.values(), default=None)
    conditions = [row.factor_condition for row in rows if row.factor_condition is not None]
    worst = max(conditions, default=None)
    counted = [row.intruder_dimensions for row in rows if row.intruder_dimensions is not None]
    return LoRAStructuralMetrics(
        per_layer_dominance=ratios,
        mean_dominance=sum(ratios.values()) / len(ratios) if ratios else None,
        max_dominance=most,
        scaled_mean_dominance=(
            sum(row.sigma_max or 0.0 for row in beside.values())
            / sum(row.base_sigma_max or 0.0 for row in beside.values())
            if beside
            else None
        ),
        band=None if most is None else band_of(most),
        is_dominating=most is not None and most > BANDS["raised"],
        adapter_health=None if worst is None else 1.0 / worst,
        is_ill_conditioned=worst is not None and worst > _ILL,
        intruder_dimensions=sum(counted) if counted else None,
    )
