"""The utilization has not changed for many steps."""

from lorabench.health.rules.base import Look, Rule, Thresholds

__all__ = ["RULE"]


class Saturated(Rule):
    """(highest − lowest utilization) / lowest, over the window."""

    above = False
    action = "More steps will not use more of the rank: stop, or decide about the rank now (`resize`)."
    source = "this project's own: a change below 1 % over the window"

    def measure(self, look: Look, thresholds: Thresholds) -> float | None:
        """The relative range; nothing before the window is full."""
        if look.step is None or look.now.rank_utilization is None or not look.past:
            return None
        start = look.step - thresholds.window
        if look.past[0][0] > start:
            return None
        recent = [row.rank_utilization for step, row in look.past if step >= start]
        values = [look.now.rank_utilization, *(value for value in recent if value is not None)]
        return (max(values) - min(values)) / min(values) if len(values) > 2 else None

    def words(self, look: Look, value: float) -> str:
        """Where it stands, and by how much it moved."""
        used, rank = look.now.rank_utilization, look.now.nominal_rank
        return f"{look.now.module} uses {used:.0%} of rank {rank}, and moved by {value:.1%} over the last looks"


RULE = Saturated()
