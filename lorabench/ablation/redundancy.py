"""What a layer adds to all the others, beside what it says alone."""

from dataclasses import dataclass

import numpy as np

from lorabench.ablation.phase import RankingAblation
from lorabench.ablation.statistics import kendall_tau
from lorabench.ablation.study import Findings, Study
from lorabench.findings import Number, RankedFinding

__all__ = ["Missed", "Redundancies", "Redundancy", "RedundancyFinding", "agreement"]


@dataclass(frozen=True)
class Missed:
    """A layer's test accuracy alone, and what all others lose without it: drop, interval and p."""

    layer: str
    accuracy: Number
    drop: Number
    low: Number
    high: Number
    p: Number


@dataclass(frozen=True)
class Redundancies:
    """A row a layer, and Kendall's τ of accuracy and drop."""

    representation: str
    rows: list[Missed]
    kendall_tau: float | None


@dataclass(frozen=True)
class RedundancyFinding(RankedFinding):
    """What is lost without each layer."""

    redundancy: Redundancies


def agreement(first: list[float], second: list[float]) -> float | None:
    """Kendall's τ-b between two ratings of the same layers; None where one of them rates all alike."""
    found = float(kendall_tau(np.array([first, second]))[0, 1])
    return None if np.isnan(found) else found


@dataclass
class Redundancy(RankingAblation):
    """Takes every layer away by itself: what is lost, given all the rest?

    A layer that reads well alone and is not missed says what other layers say too.
    """

    def run(self, study: Study) -> Findings:
        """One row for all layers, and a row a layer."""
        name, representation = study.one(self.name)
        ranking = study.rank(self.rank_on)
        arms = [study.all_layers()]
        arms += [study.without(set(ranking.layers[row.layer]), f"without {row.layer}") for row in ranking.rows]
        everything, *rest = study.evaluate(name, representation, arms)
        lost = [
            (row, change)
            for row, one in zip(ranking.rows, rest, strict=True)
            if (change := study.difference([everything], [one])) is not None
        ]
        rows = [
            Missed(row.layer, row.test_accuracy, change.difference, change.low, change.high, change.p)
            for row, change in lost
        ]
        tau = agreement([row.accuracy for row in rows], [row.drop for row in rows]) if rows else None
        found = RedundancyFinding(**vars(ranking.found(self.name)), redundancy=Redundancies(name, rows, tau))
        return study.findings(everything, representation, found)
