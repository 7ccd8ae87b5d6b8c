"""The factors' condition: a diagnostic of training, which the gauge changes."""

import math

from lorabench.health.rules.base import Look, Rule, Thresholds

__all__ = ["RULE"]


class IllConditioned(Rule):
    """max(κ(A), κ(B))."""

    action = (
        "Lower the learning rate, or start from orthogonal rows; `lorabench-adapter resize` drops what the small "
        "dimensions hold. It says nothing of ΔW itself, whose condition is kappa_BA."
    )
    source = "convention: κ above 1000 leaves three digits fewer, of the seven that float32 has"

    def measure(self, look: Look, _thresholds: Thresholds) -> float | None:
        """The larger condition number; nothing where a dimension adds nothing, a pruned one of AdaLoRA's say.

        Its zero makes κ infinite, and loses no digits.
        """
        return None if look.now.untrained or look.now.dead_dimensions else look.now.factor_condition

    def words(self, look: Look, _value: float) -> str:
        """Both condition numbers."""
        return f"{look.now.module}: κ(A) {_said(look.now.kappa_A)}, κ(B) {_said(look.now.kappa_B)}"


def _said(kappa: float | None) -> str:
    return "undefined" if kappa is None else "∞" if math.isinf(kappa) else f"{kappa:.3g}"


RULE = IllConditioned()
