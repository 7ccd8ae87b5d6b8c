"""ΔW is zero: B never left its start, or the scale is zero."""

from lorabench.health.rules.base import Look, Rule, Thresholds

__all__ = ["RULE"]


class Untrained(Rule):
    """1 where ΔW is zero."""

    action = (
        "Check that the module's factors require gradients and are among the optimiser's parameters, and that its "
        "output is used."
    )
    source = "no threshold: LoRA starts from B = 0 (Hu et al. 2021), so a ΔW of zero has learned nothing"

    def measure(self, look: Look, _thresholds: Thresholds) -> float | None:
        """1 or 0; nothing of factors that are no numbers."""
        return float(look.now.untrained) if look.now.finite else None

    def words(self, look: Look, _value: float) -> str:
        """Which module, and what is zero."""
        zero = "its scale" if look.now.scale == 0 else "B" if look.now.kappa_B is None else "BA"
        return f"{look.now.module} changes nothing: {zero} is zero"


RULE = Untrained()
