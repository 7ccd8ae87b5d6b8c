"""One look at a training in a few numbers, for loggers, for a file of lines, and for the picture of the trajectory."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lorabench.health.alerts import Alert
from lorabench.health.metrics import LoRAAdapterMetrics
from lorabench.health.trajectory import Snapshot

__all__ = ["NAMES", "infinite", "line", "spread", "summary"]

NAMES = {
    "health/rank_utilization/median": "effective rank / r of the median module",
    "health/rank_utilization/min": "of the module that uses least of its rank",
    "health/rank_utilization/max": "of the one that uses most",
    "health/stable_rank/median": "‖BA‖_F² / σ₁²",
    "health/sigma_max/median": "σ₁ of ΔW, the scale included",
    "health/sigma_max/max": "the largest",
    "health/frobenius/median": "‖ΔW‖_F",
    "health/kappa_A/max": "the largest finite condition number of A; a diagnostic of training",
    "health/kappa_B/max": "the same of B",
    "health/gradient_rank/median": "effective rank of ∂B·A + B·∂A, where gradients are at hand",
    "health/dominance/median": "σ₁(ΔW) / σ₁(W), with `base=True`",
    "health/dominance/max": "the largest",
    "health/norm_ratio/max": "the largest ‖ΔW‖_F / ‖W‖_F, with `base=True`",
    "health/untrained": "modules whose ΔW is zero",
    "health/not_finite": "modules that hold NaN or infinity",
    "health/stuck_dimensions": "rank dimensions that no gradient can reach, of all modules",
    "health/alerts": "rules that speak now, whether they are new or not",
    "health/alerts/error": "those of them with severity error",
    "health/seconds": "what the look itself took",
}
"""Every name that is logged, and what it is. One is left out of a look at which no module has a value."""

_OF_MODULES = ("rank_utilization", "stable_rank", "sigma_max", "frobenius", "kappa_A", "kappa_B")


def summary(snapshot: Snapshot, alerts: Sequence[Alert], seconds: float) -> dict[str, float]:
    """The numbers of `NAMES`; those that are defined.

    Args:
        snapshot: one look.
        alerts: what the rules said of it.
        seconds: that it took.
    """
    rows = list(snapshot.rows.values())
    ranks = [value for value in snapshot.gradient_ranks.values() if math.isfinite(value)]
    columns = {name: _known([getattr(row, name) for row in rows]) for name in _OF_MODULES}
    columns |= {
        "dominance": _known([row.dominance for row in rows]),
        "norm_ratio": _known([row.effective_lr_scale for row in rows]),
        "gradient_rank": ranks,
    }
    found = {
        f"health/{name}/{which}": of(values)
        for name, values in columns.items()
        for which, of in (("median", statistics.median), ("min", min), ("max", max))
        if values and f"health/{name}/{which}" in NAMES
    }
    return found | {
        "health/untrained": float(sum(row.untrained for row in rows)),
        "health/not_finite": float(sum(not row.finite for row in rows)),
        "health/stuck_dimensions": float(sum(len(row.stuck_dimensions) for row in rows if not row.untrained)),
        "health/alerts": float(len(alerts)),
        "health/alerts/error": float(sum(alert.severity == "error" for alert in alerts)),
        "health/seconds": seconds,
    }


def line(snapshot: Snapshot, alerts: Sequence[Alert], values: Mapping[str, float]) -> dict[str, Any]:
    """What is written of a look: its step, its numbers, what is new of the alerts, and some numbers of every module.

    Those that are infinite are null and named in the module's `infinite`.
    """
    return {
        "step": snapshot.step,
        **values,
        "new": [asdict(alert) for alert in alerts if alert.new],
        "modules": {name: _of_module(row) for name, row in snapshot.rows.items()},
    }


def _of_module(row: LoRAAdapterMetrics) -> dict[str, Any]:
    found = {key: getattr(row, key) for key in _OF_MODULES}
    return found | ({"infinite": names} if (names := infinite(found)) else {})


def infinite(values: Mapping[str, Any]) -> list[str]:
    """Which numbers are infinite: JSON has none, and null says that there is none.

    >>> infinite({"kappa_A": math.inf, "kappa_B": None, "nominal_rank": 4})
    ['kappa_A']
    """
    return [name for name, value in values.items() if isinstance(value, float) and math.isinf(value)]


def spread(rows: Sequence[LoRAAdapterMetrics], metric: str) -> list[float]:
    """The lowest, the median and the highest of the modules; NaN where none has a value."""
    values = _known([getattr(row, metric) for row in rows]) or [math.nan]
    return [min(values), statistics.median(values), max(values)]


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]
