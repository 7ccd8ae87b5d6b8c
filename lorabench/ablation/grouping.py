"""Whole groups of layers: blocks, attention kinds, projections, factors, thirds of the depth."""

from dataclasses import dataclass
from typing import Any

from lorabench.ablation.ranking import check_rank_on
from lorabench.ablation.study import Findings, Study, measured
from lorabench.adapters.places import groups

__all__ = ["Grouping"]


@dataclass
class Grouping:
    """Evaluates a representation on every group of layers alone, and on all layers without it.

    Args:
        by: block, attention, projection, factor or depth.
        rank_on: val, or test for the published protocol.
        name: what results call the phase.
    """

    by: str
    rank_on: str
    name: str = "grouping"

    def run(self, study: Study) -> Findings:
        """One row for all layers, and a row a group."""
        check_rank_on(self.rank_on)
        name, representation = study.one(self.name)
        found = groups(study.evaluator.everything, self.by)
        arms = [study.all_layers()]
        arms += [study.only(set(layers), f"only {group}") for group, layers in found.items()]
        some = {group: layers for group, layers in found.items() if len(layers) < len(study.zoo.layers)}
        arms += [study.without(set(layers), f"without {group}") for group, layers in some.items()]
        evaluations = study.evaluate(name, representation, arms)
        everything = evaluations[0]
        alone = dict(zip(found, evaluations[1:], strict=False))
        left = dict(zip(some, evaluations[1 + len(found) :], strict=True))
        rows: list[dict[str, Any]] = []
        for group, layers in found.items():
            own, rest = alone[group], left.get(group)
            difference = study.difference([rest], [everything]) if rest else None
            rows.append(
                {
                    "group": group,
                    "layers": len(layers),
                    "val_accuracy": study.row([own], representation, group).val_accuracy.mean,
                    "alone": measured([own], study)[0],
                    "without": measured([rest], study)[0] if rest else None,
                    **(difference or dict.fromkeys(("difference", "low", "high", "p"))),
                }
            )
        if self.rank_on == "test":
            rows.sort(key=lambda row: -(row["alone"] or {"mean": -1.0})["mean"])
        else:
            rows.sort(key=lambda row: -row["val_accuracy"] if row["alone"] else 1.0)
        data = {
            "name": self.name,
            "rank_on": self.rank_on,
            "groups": {"by": self.by, "representation": name, "rows": rows},
        }
        return study.findings(everything, representation, data)
