"""The update outweighs the strongest direction of the base's weight."""

from lorabench.health.rules.base import Look, Rule, Thresholds

__all__ = ["RULE"]


class Dominating(Rule):
    """ρ = σ_max(ΔW) / σ_max(W)."""

    action = "Lower α or the learning rate, or merge with a weight below 1; check that the base's abilities are kept."
    source = "convention: below 0.05 minimal, about 0.1 healthy, above 0.3 a warning, above 0.5 critical"

    def measure(self, look: Look, _thresholds: Thresholds) -> float | None:
        """ρ; nothing without a base."""
        return look.now.dominance

    def words(self, look: Look, value: float) -> str:
        """ρ and its parts."""
        return (
            f"{look.now.module}: σ_max(ΔW) {look.now.sigma_max:.3g} is {value:.2f} of σ_max(W) "
            f"{look.now.base_sigma_max:.3g}"
        )


RULE = Dominating()
