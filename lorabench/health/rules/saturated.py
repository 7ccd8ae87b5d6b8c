"""The effective rank has not changed for many steps of a training that goes on."""

from lorabench.health.rules.base import Look, Rule, Thresholds

__all__ = ["RULE"]


class Saturated(Rule):
    """(highest − lowest effective rank) / lowest, over the window."""

    above = False
    action = "More steps will not use more of the rank: stop, or decide about the rank now (`resize`)."
    source = "this project's own: a change below 1 % over the window"

    def measure(self, look: Look, thresholds: Thresholds) -> float | None:
        """The relative range, which r does not change; nothing before the window is full, or of epochs."""
        if look.step is None or not look.in_steps or look.now.rank_utilization is None or not look.past:
            return None
        start = look.step - thresholds.window
        if look.past[0][0] > start:
            return None
        recent = [row.rank_utilization for step, row in look.past if step >= start]
        values = [look.now.rank_utilization, *(value for value in recent if value is not None)]
        return (max(values) - min(values)) / min(values) if len(values) > 2 else None

    def words(self, look: Look, value: float) -> str:
        """Where it stands, and since when it has not moved by more."""
        used = low = high = look.now.rank_utilization or 0.0
        since = step = look.step or 0
        for before, row in reversed(look.past):
            if row.rank_utilization is not None:
                low, high = min(low, row.rank_utilization), max(high, row.rank_utilization)
            if high - low > value * low:
                break
            since = before
        return (
            f"{look.now.module} is saturated: it uses {used:.0%} of rank {look.now.nominal_rank}, which has changed by "
            f"{value:.1%} over {step - since} steps"
        )


RULE = Saturated()
