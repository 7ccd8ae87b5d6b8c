"""What a layer adds to all the others, beside what it says alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lorabench.ablation.statistics import kendall_tau
from lorabench.ablation.study import Findings, Study

__all__ = ["Redundancy", "agreement"]


def agreement(first: list[float], second: list[float]) -> float | None:
    """Kendall's τ-b between two ratings of the same layers; None where one of them rates all alike."""
    found = float(kendall_tau(np.array([first, second]))[0, 1])
    return None if np.isnan(found) else found


@dataclass
class Redundancy:
    """Takes every layer away by itself: what is lost, given all the rest?

    A layer that reads well alone and is not missed says what other layers say too.

    Args:
        baseline: name of the representation that ranks the layers alone.
        rank_on: val, or test for the published protocol.
        name: what results call the phase.
    """

    baseline: str | dict[str, Any]
    rank_on: str
    name: str = "redundancy"

    def run(self, study: Study) -> Findings:
        """One row for all layers, and a row a layer."""
        name, representation = study.one(self.name)
        ranking = study.rank(self.rank_on)
        arms = [study.all_layers()]
        arms += [study.without(set(ranking.layers[row.layer]), f"without {row.layer}") for row in ranking.rows]
        everything, *rest = study.evaluate(name, representation, arms)
        rows: list[dict[str, Any]] = []
        for row, one in zip(ranking.rows, rest, strict=True):
            lost = study.difference([everything], [one])
            if lost is not None:
                kept = {key: lost[key] for key in ("low", "high", "p")}
                rows.append({"layer": row.layer, "accuracy": row.test_accuracy, "drop": lost["difference"], **kept})
        tau = agreement([row["accuracy"] for row in rows], [row["drop"] for row in rows]) if rows else None
        data = {
            "name": self.name,
            **ranking.as_data(),
            "redundancy": {"representation": name, "rows": rows, "kendall_tau": tau},
        }
        return study.findings(everything, representation, data)
