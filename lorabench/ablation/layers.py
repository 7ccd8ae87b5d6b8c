"""Phase 1: every layer alone."""

from dataclasses import dataclass

from lorabench.ablation.study import Findings, Ranking, Study
from lorabench.errors import LorabenchError

__all__ = ["Layers", "best"]


def best(ranking: Ranking, k: int) -> list[str]:
    """The k units at the top.

    Raises:
        LorabenchError: k is not from 1 to one less than there are.
    """
    most = len(ranking.rows) - 1
    if not 1 <= k <= most:
        raise LorabenchError(
            f"top_k={k}: the zoo has {len(ranking.rows)} units of {ranking.baseline}; "
            + (f"1 to {most} can be taken away" if most else "none can be taken away")
        )
    return ranking.units[:k]


@dataclass
class Layers:
    """Ranks the layers by the accuracy that the baseline representation reaches on each alone.

    Args:
        baseline: name of that representation, of layers or modules.
        rank_on: val, or test for the published protocol.
        top_k: how many of the best are named as the top.
        name: what results call the phase.
    """

    baseline: str
    rank_on: str
    top_k: int
    name: str = "layers"

    def run(self, study: Study) -> Findings:
        """The ranking; the table has one row, the baseline on all layers."""
        ranking = study.rank(self.rank_on)
        top = ranking.layers_of(best(ranking, self.top_k))
        name, make = study.baseline
        representation = make()
        found = study.evaluate(name, representation, [study.all_layers()])
        removed = [layer for layer in study.zoo.layers if layer in top]
        data = {"name": self.name, **ranking.as_data(), "top_k": self.top_k, "top_layers": removed}
        return Findings(study.runs(found), [study.row(found, representation, "none")], data)
