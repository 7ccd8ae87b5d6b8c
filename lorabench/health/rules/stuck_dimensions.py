"""Rank dimensions that are zero on both sides: no gradient reaches them."""

from lorabench.health.rules.base import Look, Rule, Thresholds

__all__ = ["RULE"]


class StuckDimensions(Rule):
    """How many rank dimensions are zero in A and in B."""

    action = "Fill their rows of A with a fresh start (B may stay zero), or cut the rank: `lorabench-adapter resize`."
    source = (
        "no threshold: the gradient of a row of A is a multiple of its column of B, and the other way about, so two "
        "zeros stay (seen after a rank was raised by padding both)"
    )

    def measure(self, look: Look, _thresholds: Thresholds) -> float | None:
        """How many; nothing of a module that is zero altogether."""
        return None if not look.now.finite or look.now.untrained else float(len(look.now.stuck_dimensions))

    def words(self, look: Look, value: float) -> str:
        """How many of how many."""
        return f"{look.now.module}: {value:.0f} of {look.now.nominal_rank} rank dimensions are zero in A and in B"


RULE = StuckDimensions()
