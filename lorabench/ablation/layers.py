"""Phase 1: every layer alone."""

from dataclasses import dataclass
from typing import Any, ClassVar

from lorabench.ablation.depth import depth_correlations
from lorabench.ablation.study import Findings, Study
from lorabench.errors import LorabenchError

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
    BASELINE_ALONE: ClassVar[bool] = True

    def run(self, study: Study) -> Findings:
        """The ranking, and how it goes with depth; the table has one row, the baseline on all layers."""
        if self.top_k < 1:
            raise LorabenchError(f"ablation.top_k={self.top_k}: a whole number from 1 is needed")
        ranking = study.rank(self.rank_on)
        top = ranking.units[: self.top_k]
        data = {
            "name": self.name,
            **ranking.as_data(),
            "top_k": len(top),
            "top_layers": top,
            "depth": depth_correlations(list(ranking.layers), ranking.right),
        }
        return study.baseline_findings(data)
