"""Phase 1: every layer alone."""

from dataclasses import dataclass
from typing import Any

from lorabench.ablation.study import Findings, Study

__all__ = ["Layers"]


@dataclass
class Layers:
    """Ranks the layers by the accuracy that the baseline representation reaches on each alone.

    Args:
        baseline: name of that representation, of layers or modules.
        rank_on: val, or test for the published protocol.
        top_k: how many of the best are named as the top.
        name: what results call the phase.
    """

    baseline: str | dict[str, Any]
    rank_on: str
    top_k: int
    name: str = "layers"

    def run(self, study: Study) -> Findings:
        """The ranking; the table has one row, the baseline on all layers."""
        ranking = study.rank(self.rank_on, self.top_k)
        top = ranking.layers_of(ranking.units[: self.top_k])
        name, make = study.baseline
        representation = make()
        found = study.evaluate(name, representation, [study.all_layers()])
        removed = [layer for layer in study.zoo.layers if layer in top]
        data = {"name": self.name, **ranking.as_data(), "top_k": self.top_k, "top_layers": removed}
        return Findings(study.runs(found), [study.row(found, representation, "none")], data)
