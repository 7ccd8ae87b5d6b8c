"""What a rule is: a number of one module, held against limits, and words for it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from lorabench.health.metrics import LoRAAdapterMetrics

__all__ = ["Look", "Rule", "Thresholds"]


@dataclass(frozen=True)
class Thresholds:
    """What thresholds.yaml says of one rule.

    Attributes:
        limits: severity ("note", "warning" or "error") -> where the rule speaks with it.
        clear: part of the way from a limit to nothing at which a rule that has spoken falls silent again: above a
            limit it is limit · clear, below one it is limit / clear. 1: no hysteresis.
        asked: whether the rule is asked without being named.
        after: step of a training before which it is not asked; a file, a last checkpoint, and one of an epoch, which
            may have any number of steps, always are.
        window: steps that a rule over time looks back.
        most: severity where it speaks of over half of the modules that it has judged; None: as of one.
    """

    limits: Mapping[str, float | int]
    clear: float | int = 1.0
    asked: bool = True
    after: int = 0
    window: int = 0
    most: str | None = None


@dataclass(frozen=True)
class Look:
    """One module, now and before.

    Attributes:
        now: its metrics.
        step: of the training; None of a file that stands alone.
        past: earlier looks at it, by their steps.
        unit: what `step` counts (see `lorabench.health.trajectory.Snapshot`).
    """

    now: LoRAAdapterMetrics
    step: int | None = None
    past: Sequence[tuple[int, LoRAAdapterMetrics]] = field(default_factory=tuple)
    unit: str = "step"

    @property
    def in_steps(self) -> bool:
        """Whether it is known how many steps of the optimiser there were: windows are told in these."""
        return self.step is not None and self.unit == "step"


class Rule(ABC):
    """One thing that may be wrong with a module.

    Attributes:
        above: whether it speaks above its limits, or below them.
        action: what to do.
        source: where the limits come from.
    """

    above: ClassVar[bool] = True
    action: ClassVar[str]
    source: ClassVar[str]

    @abstractmethod
    def measure(self, look: Look, thresholds: Thresholds) -> float | None:
        """What is held against the limits; None where the rule has nothing to say of this module."""

    @abstractmethod
    def words(self, look: Look, value: float) -> str:
        """What is so, with its numbers: "<module> ..."."""
