"""Audits as tables, for a terminal and for a page."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

from lorabench.health.alerts import SEVERITIES
from lorabench.health.auditing import Audit
from lorabench.health.metrics import LoRAAdapterMetrics
from lorabench.health.trajectory import StepMedians, known_median, medians
from lorabench.sheet import Sheet
from lorabench.text import counted

__all__ = [
    "adapters_sheet",
    "alerts_sheet",
    "gravest_first",
    "modules_sheet",
    "short_names",
    "steps_sheet",
    "summary",
]

_GAUGE = (
    "κ(A), κ(B): diagnostics of training, which the gauge (A → G⁻¹A, B → BG) changes; they say nothing of ΔW.",
    "by norms: the effective rank of random directions whose factors have the same norms.",
)


def summary(audits: Sequence[Audit]) -> str:
    """What was looked at, and what came of it, in a line."""
    grave = {name: sum(one.severity == name for one in audits) for name in reversed(SEVERITIES)}
    worst = ", ".join(f"{count} with {name}s at worst" for name, count in grave.items() if count)
    if len(audits) == 1:
        silent = "whose last checkpoint" if audits[0].ceased else "which"
        return f"1 adapter, {audits[0].severity}s at worst" if worst else f"1 adapter, of {silent} nothing is said"
    return f"{counted(len(audits), 'adapter')}: {worst or 'nothing is said'}"


def adapters_sheet(audits: Sequence[Audit]) -> Sheet:
    """A row for every adapter, the gravest first."""
    ordered = gravest_first(audits)
    names = short_names(ordered)
    return Sheet(
        title="Adapters",
        columns=("adapter", "modules", "rank", "used", "stable", "worst", "rules"),
        rows=[_adapter(name, one) for name, one in zip(names, ordered, strict=True)],
        caption=["used: the median module's effective rank / rank; stable: the median module's stable rank"],
        text=("adapter", "worst", "rules"),
        names=("adapter",),
    )


def gravest_first(audits: Sequence[Audit]) -> list[Audit]:
    """What cannot be read, then errors, warnings, notes, and what nothing is said of."""
    return sorted(
        audits,
        key=lambda one: (one.unreadable is None, -SEVERITIES.index(one.severity) if one.severity else 1),
    )


def short_names(audits: Sequence[Audit]) -> list[str]:
    """The adapters' paths, without the folders that all have in common."""
    if len(audits) == 1:
        return [str(audits[0].name)]
    shared = os.path.commonpath([one.name.parent for one in audits])
    return [str(one.name.relative_to(shared)) for one in audits]


def _adapter(name: str, one: Audit) -> tuple[str, ...]:
    name = f"{name} ({len(one.files)} checkpoints)" if len(one.files) > 1 else name
    if one.unreadable is not None:
        return (name, "–", "–", "–", "–", "error", "other base" if one.misfit else "unreadable")
    rows = one.rows
    ranks = sorted({row.nominal_rank for row in rows})
    return (
        name,
        str(len(rows)),
        str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}",
        _percent(known_median([row.rank_utilization for row in rows])),
        _number(known_median([row.stable_rank for row in rows])),
        one.severity or "",
        ",\n".join(f"({alert.rule})" if alert.rule in one.ceased else alert.rule for alert in one.alerts),
    )


def alerts_sheet(one: Audit) -> Sheet:
    """What the rules say."""
    several = len(one.files) > 1
    return Sheet(
        title="What the rules say",
        columns=("severity", "rule", *((one.unit,) if several else ()), "what", "do", "threshold"),
        rows=[
            (
                alert.severity,
                f"{alert.rule} (ceased)" if alert.rule in one.ceased else alert.rule,
                *((str(alert.step),) if several else ()),
                alert.message,
                alert.action,
                f"{alert.limit:g}: {alert.source}",
            )
            for alert in one.alerts
        ],
        text=("severity", "rule", "what", "do", "threshold"),
    )


def modules_sheet(one: Audit, most: int | None = None) -> Sheet:
    """The metrics of the modules, the least used first.

    Args:
        one: an audit that could be read.
        most: rows; None: all.
    """
    beside = any(row.base_sigma_max is not None for row in one.rows)
    counted_intruders = any(row.intruder_dimensions is not None for row in one.rows)
    ordered = sorted(one.rows, key=lambda row: math.inf if row.rank_utilization is None else row.rank_utilization)
    columns = ["module", "rank", "eff. rank", "used", "by norms", "stable", "90 %", "κ(ΔW)", "σ₁", "‖ΔW‖"]
    columns += ["ρ", "‖ΔW‖/‖W‖"] if beside else []
    columns += ["intruders"] if counted_intruders else []
    shown = ordered[:most]
    caption = [*_GAUGE]
    if len(shown) < len(ordered):
        caption.append(f"{len(shown)} of {counted(len(ordered), 'module')}, the least used first; --top {len(ordered)}")
    return Sheet(
        title="Modules",
        columns=(*columns, "κ(A)", "κ(B)"),
        rows=[_module(row, beside, counted_intruders) for row in shown],
        caption=caption,
        text=("module",),
        names=("module",),
        spare=("by norms", "κ(B)", "κ(A)"),
        elsewhere="--json",
    )


def _module(row: LoRAAdapterMetrics, beside: bool, counted_intruders: bool) -> tuple[str, ...]:
    return (
        row.module,
        str(row.nominal_rank),
        "NaN" if not row.finite else "untrained" if row.untrained else _number(row.effective_rank_BA),
        _percent(row.rank_utilization),
        _number(row.effective_rank_norms),
        _number(row.stable_rank),
        "–" if row.energy_rank is None else str(row.energy_rank),
        _number(row.kappa_BA),
        _number(row.sigma_max),
        _number(row.frobenius),
        *((_number(row.dominance), _number(row.effective_lr_scale)) if beside else ()),
        *((_number(row.intruder_dimensions),) if counted_intruders else ()),
        _number(row.kappa_A),
        _number(row.kappa_B),
    )


def steps_sheet(one: Audit) -> Sheet:
    """A row for every checkpoint."""
    return Sheet(
        title="Checkpoints",
        columns=(one.unit, "used", "lowest", "highest", "stable rank", "σ₁", "κ(A)", "κ(B)", "file"),
        rows=[_step(medians(snapshot), file) for snapshot, file in zip(one.snapshots, one.files, strict=True)],
        caption=["medians over modules; lowest and highest: of any module's use of its rank", _trends(one)],
        text=("file",),
        names=("file",),
    )


def _step(said: StepMedians, file: Path) -> tuple[str, ...]:
    return (
        str(said.step),
        *map(_percent, (said.rank_utilization, said.lowest, said.highest)),
        *map(_number, (said.stable_rank, said.sigma_max, said.kappa_A, said.kappa_B)),
        str(file),
    )


def _trends(one: Audit) -> str:
    trends = [module.rank_utilization_trend for module in one.dynamics if module.rank_utilization_trend]
    if not trends:
        return "no trend is told from fewer than three checkpoints"
    kinds = ("increasing", "stable", "collapsing")
    return "use of the rank: " + ", ".join(f"{kind} in {trends.count(kind)}" for kind in kinds) + " modules"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _number(value: float | int | None) -> str:
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:.3g}" if value < 1e4 else f"{value:.1e}"
