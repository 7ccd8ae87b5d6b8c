"""Whether an adapter uses the rank that it was given, and what it does to its base.

What is named here is imported when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorabench.health.advisor import Advice, ScaleAdvice, advise
    from lorabench.health.alerts import SEVERITIES, Alert, Watch, read_thresholds
    from lorabench.health.allotment import Allotment, allot_ranks
    from lorabench.health.analyzer import Analysis, LoRAAnalyzer
    from lorabench.health.auditing import Audit, audit
    from lorabench.health.hugging_face import HuggingFaceMonitor
    from lorabench.health.lightning import FineTuneMonitor
    from lorabench.health.live import live_modules
    from lorabench.health.metrics import LoRAAdapterMetrics, module_metrics
    from lorabench.health.monitor import Monitor
    from lorabench.health.sarif_log import sarif
    from lorabench.health.structure import LoRAStructuralMetrics, structural_metrics
    from lorabench.health.trajectory import LoRADynamicsMetrics, Snapshot, dynamics

__all__ = [
    "SEVERITIES",
    "Advice",
    "Alert",
    "Allotment",
    "Analysis",
    "Audit",
    "FineTuneMonitor",
    "HuggingFaceMonitor",
    "LoRAAdapterMetrics",
    "LoRAAnalyzer",
    "LoRADynamicsMetrics",
    "LoRAStructuralMetrics",
    "Monitor",
    "ScaleAdvice",
    "Snapshot",
    "Watch",
    "advise",
    "allot_ranks",
    "audit",
    "dynamics",
    "live_modules",
    "module_metrics",
    "read_thresholds",
    "sarif",
    "structural_metrics",
]

_HOMES = {
    "advisor": ("Advice", "ScaleAdvice", "advise"),
    "allotment": ("Allotment", "allot_ranks"),
    "alerts": ("SEVERITIES", "Alert", "Watch", "read_thresholds"),
    "analyzer": ("Analysis", "LoRAAnalyzer"),
    "auditing": ("Audit", "audit"),
    "hugging_face": ("HuggingFaceMonitor",),
    "lightning": ("FineTuneMonitor",),
    "live": ("live_modules",),
    "metrics": ("LoRAAdapterMetrics", "module_metrics"),
    "monitor": ("Monitor",),
    "sarif_log": ("sarif",),
    "structure": ("LoRAStructuralMetrics", "structural_metrics"),
    "trajectory": ("LoRADynamicsMetrics", "Snapshot", "dynamics"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
