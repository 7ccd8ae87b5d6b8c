"""Whether a method reads ΔW or the factors that it happens to be written as: the test adapters in other gauges."""

import functools
from dataclasses import dataclass, field
from typing import Annotated

from lorabench.ablation.altered import regauged
from lorabench.ablation.copies import Altered, altered_rows, evaluate_copies
from lorabench.ablation.phase import Ablation
from lorabench.ablation.study import Findings, Study, with_holm
from lorabench.findings import Finding
from lorabench.options import AtLeast, Filled

__all__ = ["Gauge", "GaugeFinding"]


@dataclass(frozen=True)
class GaugeFinding(Finding):
    """How every representation reads re-gauged adapters.

    Attributes:
        draws: gauges of an adapter.
        rows: a row a representation and condition number.
    """

    draws: int
    rows: list[Altered]


@dataclass
class Gauge(Ablation):
    """Every test adapter as (up·G, G⁻¹·down), a random G a module: ΔW stays, the factors do not.

    A method that follows from ΔW predicts what it did; what another loses is what it owed to how training happens to
    leave the factors. Training adapters stay as they are.

    Args:
        condition: the largest condition number of G; 1 rotates and reflects alone.
        draws: gauges of every adapter; their means count.
        adapters: how many test adapters of a split are re-gauged, a draw; None: all.
    """

    condition: Annotated[list[float | int], AtLeast(1), Filled()] = field(default_factory=lambda: [1, 10])
    draws: Annotated[int, AtLeast(1)] = 3
    adapters: Annotated[int | None, AtLeast(2)] = None

    def run(self, study: Study) -> Findings:
        """One row a representation, and one a representation and condition number."""
        named = {f"condition {condition:g}": condition for condition in self.condition}
        arms = {name: [f"{name}, draw {draw}" for draw in range(self.draws)] for name in named}
        alterations = {
            draw: functools.partial(regauged, condition=named[name]) for name, draws in arms.items() for draw in draws
        }
        copied = evaluate_copies(study, alterations, self.adapters)
        rows = with_holm(altered_rows(copied, arms), lambda row: row.alteration)
        return copied.findings(GaugeFinding(self.name, self.draws, rows))
