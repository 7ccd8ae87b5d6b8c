"""The published rule: effective rank below a quarter of the nominal one."""

from lorabench.health.rules.base import Look, Rule, Thresholds

__all__ = ["RULE"]


class QuarterOfNominal(Rule):
    """Effective rank / r."""

    above = False
    action = "Train at a lower rank, or cut it: `lorabench-adapter resize --energy 0.99`."
    source = (
        "a published rule, kept under its name and not asked unless it is named: spectra grow more slowly than r "
        "(SSRN 6580122), so it speaks of nearly every adapter of high rank"
    )

    def measure(self, look: Look, _thresholds: Thresholds) -> float | None:
        """The utilization."""
        return look.now.rank_utilization

    def words(self, look: Look, value: float) -> str:
        """The share of the rank."""
        return f"{look.now.module} uses {value:.0%} of rank {look.now.nominal_rank}"


RULE = QuarterOfNominal()
