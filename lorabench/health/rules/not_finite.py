"""NaN or infinity in the factors."""

from lorabench.health.rules.base import Look, Rule, Thresholds

__all__ = ["RULE"]


class NotFinite(Rule):
    """1 where an entry is no number."""

    action = "Go back to an earlier checkpoint; lower the learning rate, or train in bfloat16 where float16 overflows."
    source = "no threshold: one such entry makes every output NaN"

    def measure(self, look: Look, _thresholds: Thresholds) -> float | None:
        """1 or 0."""
        return 0.0 if look.now.finite else 1.0

    def words(self, look: Look, _value: float) -> str:
        """Which module."""
        return f"{look.now.module} holds NaN or infinity"


RULE = NotFinite()
