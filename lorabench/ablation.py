"""Which layers stand in."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lorabench.zoo import Zoo

__all__ = ["Ablation", "NoAblation"]


@runtime_checkable
class Ablation(Protocol):
    """Takes layers away from a zoo."""

    @property
    def name(self) -> str:
        """What the results call it."""
        ...

    def apply(self, zoo: Zoo) -> Zoo:
        """The zoo with the layers that are left."""
        ...


@dataclass(frozen=True)
class NoAblation:
    """All layers stand."""

    name: str = "none"

    def apply(self, zoo: Zoo) -> Zoo:
        """The zoo itself."""
        return zoo
