"""The arms of a comparison: what was taken away, and what the tables and pictures call it."""

from dataclasses import dataclass

from lorabench.ablation.compare import CompareFinding
from lorabench.results import Result, Summary

__all__ = ["Arm", "shown_arms", "with_arm"]

_KINDS = ("none", "top", "random", "worst", "permuted")


@dataclass(frozen=True)
class Arm:
    """What was taken away.

    Attributes:
        name: the `ablation` of its rows.
        kind: "none", "top", "random", "worst" or "permuted".
        k: how many units of the ranking went (layers, or modules where these are ranked).
        layers: how many layers went.
        draws: how many times random ones were drawn; 0 of another kind.
    """

    name: str
    kind: str
    k: int
    layers: int
    draws: int

    @property
    def title(self) -> str:
        """As a column or a legend says it."""
        return {
            "none": "all layers",
            "top": f"without top {self.k}",
            "random": f"{self.k} random out",
            "worst": f"{self.k} worst out",
            "permuted": "labels permuted",
        }[self.kind]


def shown_arms(found: CompareFinding) -> list[Arm]:
    """The arms in the order of tables, all layers first."""
    arms = [
        Arm(arm.name, arm.kind, found.top_k, len(arm.draws[0] if arm.draws else arm.removed), len(arm.draws))
        for arm in found.arms
    ]
    return sorted(arms, key=lambda arm: _KINDS.index(arm.kind))


def with_arm(result: Result, arm: str) -> list[Summary]:
    """The rows of one arm."""
    return [row for row in result.summary if row.ablation == arm]
