"""(α/r)·‖BA‖ is next to nothing beside ‖W‖."""

from lorabench.health.rules.base import Look, Rule, Thresholds

__all__ = ["RULE"]


class ScaleTooSmall(Rule):
    """(α/r)·‖BA‖_F / ‖W‖_F of a module that is trained."""

    above = False
    action = "Raise α or the learning rate, or train longer; a module that needs no update may be left out."
    source = (
        "this project's own: bfloat16 has 8 bits, and a base in it rounds most of a change of 1e-4 away when merged"
    )

    def measure(self, look: Look, _thresholds: Thresholds) -> float | None:
        """The ratio; nothing without a base, or of an untrained module."""
        return None if look.now.untrained else look.now.effective_lr_scale

    def words(self, look: Look, value: float) -> str:
        """The ratio and its parts."""
        return f"{look.now.module}: ‖ΔW‖ {look.now.frobenius:.3g} is {value:.1e} of ‖W‖ {look.now.base_frobenius:.3g}"


RULE = ScaleTooSmall()
