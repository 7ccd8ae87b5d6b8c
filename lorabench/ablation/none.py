"""All layers stand."""

from dataclasses import dataclass

from lorabench.ablation.study import Findings, Study
from lorabench.results import Run, Summary

__all__ = ["NoAblation"]


@dataclass
class NoAblation:
    """Every representation on all layers."""

    name: str = "none"

    def run(self, study: Study) -> Findings:
        """One row a representation."""
        runs: list[Run] = []
        summary: list[Summary] = []
        for name, make in study.chosen.items():
            representation = make()
            found = study.evaluate(name, representation, [study.all_layers()])
            runs += study.runs(found)
            summary.append(study.row(found, representation, "none"))
        return Findings(runs, summary, {"name": self.name})
