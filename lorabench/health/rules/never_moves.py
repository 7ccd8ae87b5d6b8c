"""A module whose update stays as it is while the training goes on."""

from lorabench.health.rules.base import Look, Rule, Thresholds

__all__ = ["RULE"]


class NeverMoves(Rule):
    """Looks, this one included, over which the update has not changed at all."""

    action = "Check that its factors require gradients and are among the optimiser's parameters."
    source = "no threshold: an optimiser's step moves what it is given"

    def measure(self, look: Look, _thresholds: Thresholds) -> float | None:
        """How many looks; nothing of a file, or of an untrained module, which has a rule of its own."""
        if look.step is None or look.now.untrained or not look.now.finite:
            return None
        same = 1
        for _, row in reversed(look.past):
            if (row.frobenius_BA, row.sigma_max_BA) != (look.now.frobenius_BA, look.now.sigma_max_BA):
                break
            same += 1
        return float(same)

    def words(self, look: Look, value: float) -> str:
        """Since when."""
        since = look.past[-int(value) + 1][0]
        return f"{look.now.module} has not moved since {look.unit} {since}"


RULE = NeverMoves()
