"""(α/r)·‖BA‖ is about as large as ‖W‖, or larger."""

from lorabench.health.rules.base import Look, Rule, Thresholds

__all__ = ["RULE"]


class ScaleTooLarge(Rule):
    """(α/r)·‖BA‖_F / ‖W‖_F."""

    action = "Lower α (or the learning rate); with rsLoRA check that α was not meant for α/r."
    source = "this project's own: an update of half the base's norm replaces it rather than adapts it"

    def measure(self, look: Look, _thresholds: Thresholds) -> float | None:
        """The ratio; nothing without a base."""
        return look.now.effective_lr_scale

    def words(self, look: Look, value: float) -> str:
        """The ratio and its parts."""
        return f"{look.now.module}: ‖ΔW‖ {look.now.frobenius:.3g} is {value:.2g} of ‖W‖ {look.now.base_frobenius:.3g}"


RULE = ScaleTooLarge()
