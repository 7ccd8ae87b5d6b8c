"""The utilization fell by more than half within the first steps."""

from lorabench.health.rules.base import Look, Rule, Thresholds

__all__ = ["RULE"]


class CollapsedEarly(Rule):
    """Utilization now / the highest of the looks before, within the window from the start."""

    above = False
    action = "Warm the learning rate up, or lower it: early steps have aligned the rank dimensions."
    source = "a published rule: a fall by more than half within the first 100 steps"

    def measure(self, look: Look, thresholds: Thresholds) -> float | None:
        """The ratio; nothing after the window, of a first look, or where epochs are counted."""
        if not look.in_steps or (look.step or 0) > thresholds.window or look.now.rank_utilization is None:
            return None
        before = [row.rank_utilization for _, row in look.past if row.rank_utilization is not None]
        return look.now.rank_utilization / max(before) if before else None

    def words(self, look: Look, value: float) -> str:
        """Where it is, and of what."""
        row = look.now
        used = f"{row.module} uses {row.rank_utilization:.0%} of rank {row.nominal_rank} at step {look.step}"
        return f"{used}, {value:.0%} of what it had used"


RULE = CollapsedEarly()
