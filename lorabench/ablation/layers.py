"""Phase 1: every layer alone."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from lorabench.ablation.depth import DepthCorrelation, depth_correlations
from lorabench.ablation.phase import RankingAblation
from lorabench.ablation.study import Findings, Study
from lorabench.findings import RankedFinding
from lorabench.options import AtLeast

__all__ = ["Layers", "LayersFinding"]


@dataclass(frozen=True)
class LayersFinding(RankedFinding):
    """The ranking.

    Attributes:
        top_k: how many are named as the top.
        top_layers: their names, best first.
        depth: how accuracy goes with depth.
    """

    top_k: int
    top_layers: list[str]
    depth: list[DepthCorrelation]

    @property
    def marked(self) -> int:
        """The top."""
        return self.top_k


@dataclass
class Layers(RankingAblation):
    """Ranks the layers by the accuracy that the baseline representation reaches on each alone.

    Args:
        top_k: how many of the best are named as the top.
    """

    top_k: Annotated[int, AtLeast(1)]
    BASELINE_ALONE: ClassVar[bool] = True

    def run(self, study: Study) -> Findings:
        """The ranking, and how it goes with depth; the table has one row, the baseline on all layers."""
        ranking = study.rank(self.rank_on)
        top = ranking.units[: self.top_k]
        depth = depth_correlations(list(ranking.layers), ranking.right)
        found = LayersFinding(**vars(ranking.found(self.name)), top_k=len(top), top_layers=top, depth=depth)
        return study.baseline_findings(found)
