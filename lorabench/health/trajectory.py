"""How an adapter's spectrum went over the steps of its training."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from lorabench.health.metrics import LoRAAdapterMetrics

__all__ = [
    "LoRADynamicsMetrics",
    "Snapshot",
    "StepMedians",
    "dynamics",
    "known_median",
    "medians",
    "packed",
    "unpacked",
]

_TREND = 0.10
_SATURATED = 0.02
_FIELDS = [field.name for field in fields(LoRAAdapterMetrics)]


@dataclass(frozen=True)
class Snapshot:
    """The metrics of all modules at one step.

    Attributes:
        step: of the optimiser, counted from 1; of a checkpoint, the step that it is called by; None of a file alone.
        rows: module -> its metrics.
        gradient_ranks: module -> effective rank of ∂B·A + B·∂A, what a step of gradient descent adds to BA to first
            order, from 1 to 2r; of those modules whose gradients were at hand.
        unit: what `step` counts: "step" of the optimiser, or "epoch", or "checkpoint" where it is the order alone.
    """

    step: int | None
    rows: Mapping[str, LoRAAdapterMetrics]
    gradient_ranks: Mapping[str, float] = field(default_factory=dict)
    unit: str = "step"


@dataclass(frozen=True)
class LoRADynamicsMetrics:
    """One module over a training.

    Attributes:
        module: its name.
        step: the last one looked at.
        rank_utilization_trend: "collapsing" where the mean utilization of the last third is below that of the first by
            over a tenth of it, "increasing" where it is above by as much, else "stable"; None of fewer than three
            looks at a trained module.
        steps_to_saturation: the first step from which no utilization differs from the last by over 2 % of it; None
            where the look before the last does.
        kappa_A_volatility, kappa_B_volatility: standard deviation / mean of κ(A), and of κ(B), over the looks where
            they are finite; None of fewer than two. Diagnostics of training: the gauge changes them.
        gradient_rank: at the last look (see `Snapshot.gradient_ranks`); None where no gradient was at hand.
    """

    module: str
    step: int | None
    rank_utilization_trend: str | None
    steps_to_saturation: int | None
    kappa_A_volatility: float | None
    kappa_B_volatility: float | None
    gradient_rank: float | None


@dataclass(frozen=True)
class StepMedians:
    """All modules at one step, each value where a module has it; None where none has.

    Attributes:
        step: of the snapshot.
        rank_utilization: the median module's effective rank / rank.
        lowest: the least of any module's.
        highest: the largest of any module's.
        stable_rank, sigma_max, kappa_A, kappa_B: of the median module.
    """

    step: int | None
    rank_utilization: float | None
    lowest: float | None
    highest: float | None
    stable_rank: float | None
    sigma_max: float | None
    kappa_A: float | None
    kappa_B: float | None


def medians(snapshot: Snapshot) -> StepMedians:
    """What a snapshot says of all modules together."""
    rows = list(snapshot.rows.values())
    used = [row.rank_utilization for row in rows if row.rank_utilization is not None]
    names = ("rank_utilization", "stable_rank", "sigma_max", "kappa_A", "kappa_B")
    middle = {name: known_median([getattr(row, name) for row in rows]) for name in names}
    return StepMedians(step=snapshot.step, lowest=min(used, default=None), highest=max(used, default=None), **middle)


def known_median(values: Sequence[float | None]) -> float | None:
    """Of the values that there are; None where there is none."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def packed(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot in plain types, as a checkpoint may hold it."""
    return {
        "step": snapshot.step,
        "gradient_ranks": dict(snapshot.gradient_ranks),
        "fields": _FIELDS,
        "rows": [[_listed(getattr(row, name)) for name in _FIELDS] for row in snapshot.rows.values()],
    }


def unpacked(state: Mapping[str, Any]) -> Snapshot:
    """The snapshot that `packed` has put away; fields that this version does not know are left out.

    Raises:
        KeyError, TypeError, ValueError: it is none, or lacks a field.
    """
    rows = []
    for values in state["rows"]:
        named: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in zip(state["fields"], values, strict=True)
            if name in _FIELDS
        }
        rows.append(LoRAAdapterMetrics(**named))
    return Snapshot(state["step"], {row.module: row for row in rows}, state["gradient_ranks"])


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def dynamics(snapshots: Sequence[Snapshot]) -> list[LoRADynamicsMetrics]:
    """What a series of looks says of every module of the last of them.

    Args:
        snapshots: one at least, by their steps.
    """
    last = snapshots[-1]
    return [_of_module(name, snapshots, last) for name in last.rows]


def _of_module(name: str, snapshots: Sequence[Snapshot], last: Snapshot) -> LoRADynamicsMetrics:
    seen = [(one.step or 0, one.rows[name]) for one in snapshots if name in one.rows]
    used = [(step, row.rank_utilization) for step, row in seen if row.rank_utilization is not None]
    return LoRADynamicsMetrics(
        module=name,
        step=last.step,
        rank_utilization_trend=_trend([value for _, value in used]),
        steps_to_saturation=_saturation(used),
        kappa_A_volatility=_volatility([row.kappa_A for _, row in seen]),
        kappa_B_volatility=_volatility([row.kappa_B for _, row in seen]),
        gradient_rank=last.gradient_ranks.get(name),
    )


def _trend(values: Sequence[float]) -> str | None:
    if len(values) < 3:
        return None
    third = len(values) // 3
    before, after = statistics.fmean(values[:third]), statistics.fmean(values[-third:])
    if abs(after - before) <= _TREND * before:
        return "stable"
    return "increasing" if after > before else "collapsing"


def _saturation(used: Sequence[tuple[int, float]]) -> int | None:
    if len(used) < 2:
        return None
    final = used[-1][1]
    settled = None
    for step, value in reversed(used):
        if abs(value - final) > _SATURATED * final:
            break
        settled = step
    return None if settled == used[-1][0] else settled


def _volatility(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None and value != float("inf")]
    return statistics.pstdev(finite) / statistics.fmean(finite) if len(finite) > 1 else None
