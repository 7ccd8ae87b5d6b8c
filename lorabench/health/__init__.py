"""Whether an adapter uses the rank that it was given."""

from lorabench.health.metrics import LoRAAdapterMetrics, module_metrics

__all__ = ["LoRAAdapterMetrics", "module_metrics"]
