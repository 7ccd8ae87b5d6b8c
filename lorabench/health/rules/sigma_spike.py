"""σ₁ of ΔW has jumped."""

import statistics

from lorabench.health.rules.base import Look, Rule, Thresholds

__all__ = ["RULE"]

_LOOKS = 5


class SigmaSpike(Rule):
    """σ₁ now / its median over the last five looks."""

    action = "Look at the batches and the loss of these steps; clip gradients, or lower the learning rate."
    source = "this project's own: training moves σ₁ by little between looks, once it has begun"

    def measure(self, look: Look, _thresholds: Thresholds) -> float | None:
        """The ratio; nothing of fewer than three looks before."""
        before = [row.sigma_max for _, row in look.past[-_LOOKS:] if row.sigma_max]
        if look.now.sigma_max is None or len(before) < 3:
            return None
        return look.now.sigma_max / statistics.median(before)

    def words(self, look: Look, value: float) -> str:
        """The value, and how many times what it was."""
        row = look.now
        return (
            f"{row.module}: σ₁ of ΔW is {row.sigma_max:.3g} at {look.unit} {look.step}, {value:.1f} times what it was"
        )


RULE = SigmaSpike()
