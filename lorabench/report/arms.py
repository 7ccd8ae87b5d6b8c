"""The arms of an ablation: what was taken away, and what the tables and pictures call it."""

from dataclasses import dataclass
from typing import Any

from lorabench.results import Result, Summary

__all__ = ["Arm", "marked_units", "on_test", "ranked_on", "shown_arms", "with_arm"]

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


def shown_arms(result: Result) -> list[Arm]:
    """The arms in the order of tables, all layers first; none where nothing was compared."""
    arms = [_arm(found, result.ablation.get("top_k")) for found in result.ablation.get("arms") or []]
    if all(arm.kind == "none" for arm in arms):
        return []
    whole = [arm for arm in arms if arm.kind == "none"] or [Arm("none", "none", 0, 0, 0)]
    return sorted([*whole, *(arm for arm in arms if arm.kind != "none")], key=lambda arm: _KINDS.index(arm.kind))


def with_arm(result: Result, arm: str) -> list[Summary]:
    """The rows of one arm."""
    return [row for row in result.summary if row.ablation == arm]


def on_test(result: Result) -> bool:
    """Whether the test split ranked the layers, which must then be said."""
    return result.ablation.get("rank_on") == "test"


def ranked_on(result: Result) -> str:
    """The accuracy that ranked the layers: "test", "validation" or "cross-validated"."""
    if on_test(result):
        return "test"
    return "cross-validated" if (result.ablation.get("folds") or 1) > 1 else "validation"


def marked_units(result: Result) -> tuple[set[str], str]:
    """The best k of the ranking, and what a legend calls them."""
    found = result.ablation
    best = {row["layer"] for row in (found.get("ranking") or [])[: found.get("top_k") or 0]}
    return best, f"taken away (best {len(best)})" if found.get("removed") else f"best {len(best)}"


def _arm(found: dict[str, Any], k: int | None) -> Arm:
    draws = found.get("draws") or []
    removed = draws[0] if draws else found.get("removed") or []
    return Arm(found["name"], found["kind"], len(removed) if k is None else k, len(removed), len(draws))
