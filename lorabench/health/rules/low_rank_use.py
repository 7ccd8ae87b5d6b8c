"""The stable rank beside its published growth with the rank."""

import math

from lorabench.health.rules.base import Look, Rule, Thresholds

__all__ = ["RULE"]

_GROWTH = 0.23


class LowRankUse(Rule):
    """β of stable rank = r^β."""

    above = False
    action = (
        "See what a lower rank would lose: `lorabench-adapter resize --energy 0.99 --dry-run`; train the next one at a "
        "lower rank."
    )
    source = (
        "stable ranks of trained adapters grow as r^0.23 to r^0.30 (SSRN 6580122); it speaks below half of the lower "
        "exponent"
    )

    def measure(self, look: Look, _thresholds: Thresholds) -> float | None:
        """The exponent; nothing of rank 1, which has no choice."""
        stable, rank = look.now.stable_rank, look.now.nominal_rank
        return math.log(stable) / math.log(rank) if stable and rank > 1 else None

    def words(self, look: Look, _value: float) -> str:
        """The stable rank and what was expected; the effective rank, and that of random directions."""
        row = look.now
        return (
            f"{row.module}: stable rank {row.stable_rank:.2f} where rank {row.nominal_rank} has "
            f"{row.nominal_rank**_GROWTH:.2f} by the published growth; {row.rank_utilization:.0%} of the rank is used "
            f"(random directions: {(row.effective_rank_norms or 0) / row.nominal_rank:.0%})"
        )


RULE = LowRankUse()
