"""Whole groups of layers: blocks, attention kinds, projections, factors, thirds of the depth."""

from dataclasses import dataclass
from typing import Annotated

from lorabench.ablation.phase import Ablation
from lorabench.ablation.ranking import RankOn
from lorabench.ablation.study import Findings, Study, measured
from lorabench.adapters.places import GROUPINGS, groups
from lorabench.findings import Difference, Measured, Number, OrderedFinding
from lorabench.options import OneOf

__all__ = ["Group", "Grouping", "GroupingFinding", "Groups"]


@dataclass(frozen=True)
class Group:
    """Some layers.

    Attributes:
        group: their name.
        layers: their number.
        val_accuracy: of them alone.
        alone: their test accuracy; None where no member has trained.
        without: that of all others; None where there are none.
        lost: `without` minus all layers.
    """

    group: str
    layers: int
    val_accuracy: Number
    alone: Measured | None
    without: Measured | None
    lost: Difference | None


@dataclass(frozen=True)
class Groups:
    """A row a group, the best alone first."""

    by: str
    representation: str
    rows: list[Group]


@dataclass(frozen=True)
class GroupingFinding(OrderedFinding):
    """Groups of layers, alone and taken away."""

    groups: Groups


@dataclass
class Grouping(Ablation):
    """Evaluates a representation on every group of layers alone, and on all layers without it.

    Args:
        by: block, attention, projection, factor or depth.
        rank_on: val, or test for the published protocol.
    """

    by: Annotated[str, OneOf(GROUPINGS)]
    rank_on: RankOn

    def run(self, study: Study) -> Findings:
        """One row for all layers, and a row a group."""
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
        rows = []
        for group, layers in found.items():
            own, rest = alone[group], left.get(group)
            val_accuracy = study.row([own], representation, group).val_accuracy.mean
            (by_itself,) = measured([own], study)
            without = measured([rest], study)[0] if rest else None
            lost = study.difference([rest], [everything]) if rest else None
            rows.append(Group(group, len(layers), val_accuracy, by_itself, without, lost))
        if self.rank_on == "test":
            rows.sort(key=lambda row: -(row.alone.mean if row.alone else -1.0))
        else:
            rows.sort(key=lambda row: -row.val_accuracy if row.alone else 1.0)
        said = GroupingFinding(self.name, self.rank_on, Groups(self.by, name, rows))
        return study.findings(everything, representation, said)
