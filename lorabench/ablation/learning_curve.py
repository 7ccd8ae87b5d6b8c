"""How much of the accuracy is owed to the number of training adapters, and at which number two methods part."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from lorabench.ablation.copies import NONE
from lorabench.ablation.none import compared_with
from lorabench.ablation.phase import Ablation
from lorabench.ablation.study import Findings, Study, measured, with_holm
from lorabench.ablation.subsets import nested_subset
from lorabench.errors import LorabenchError
from lorabench.evaluation import Arm, Evaluation
from lorabench.findings import Compared, Finding, Measured
from lorabench.options import AtLeast, Filled
from lorabench.results import Run, Summary

__all__ = ["AtSize", "Lead", "LearningCurve", "LearningCurveFinding", "Parting", "partings"]


@dataclass(frozen=True)
class AtSize:
    """A representation's test accuracy with so many training adapters; None where it failed, and why."""

    representation: str
    size: int
    accuracy: Measured | None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Lead(Compared):
    """The difference of a representation to another, both trained on `size` adapters; Holm's p is over sizes."""

    against: str
    size: int


@dataclass(frozen=True)
class Parting:
    """Where two representations part.

    Attributes:
        representation, against: which.
        size: the smallest size from which on all larger ones tell them apart, with one sign; None where the largest
            does not.
        ahead: the one that is ahead there.
    """

    representation: str
    against: str
    size: int | None
    ahead: str | None


@dataclass(frozen=True)
class LearningCurveFinding(Finding):
    """Accuracy by the number of training adapters.

    Attributes:
        sizes: ascending.
        curve: a row a representation and size.
        leads: a row a pair and size.
        partings: a row a pair.
    """

    sizes: list[int]
    curve: list[AtSize]
    leads: list[Lead]
    partings: list[Parting]


@dataclass
class LearningCurve(Ablation):
    """Every representation trained on nested subsets of the training adapters, stratified, with groups whole.

    Validation and test adapters stay; every split draws its own subsets.

    Args:
        sizes: numbers of training adapters; None: all, a half, a quarter, ... down to two of each class.
        against: names of the representations that the others are compared with; None: the first.
    """

    sizes: Annotated[list[int] | None, AtLeast(2), Filled()] = None
    against: list[str] | None = None

    def run(self, study: Study) -> Findings:
        """A row a representation on the largest subset, and the curves.

        Raises:
            LorabenchError: a size is larger than the training part or smaller than the number of classes, or `against`
                names what is not evaluated.
        """
        against = compared_with(self.against, study)
        sizes = self._sizes(study)
        studies = {size: _of_size(study, size, told=size == sizes[-1]) for size in sizes}
        found: dict[tuple[str, int], Evaluation] = {}
        summary: list[Summary] = []
        runs: list[Run] = []
        for name, make in study.chosen.items():
            for size, own in studies.items():
                arm = Arm(NONE if size == sizes[-1] else f"{size} adapters", own.evaluator.everything)
                (found[name, size],) = own.evaluate(name, make(), [arm])
            whole = studies[sizes[-1]]
            runs += whole.runs([found[name, sizes[-1]]])
            summary.append(whole.row([found[name, sizes[-1]]], make(), NONE))
        curve = [
            AtSize(name, size, measured([one], studies[size])[0], one.error) for (name, size), one in found.items()
        ]
        leads = _leads(studies, found, list(study.chosen), against)
        return Findings(runs, summary, LearningCurveFinding(self.name, sizes, curve, leads, partings(leads, sizes)))

    def _sizes(self, study: Study) -> list[int]:
        """Ascending."""
        # a split with an adapter less than another takes all it has
        most, classes = max(len(split.train) for split in study.splits), study.evaluator.n_classes
        if self.sizes is None:
            halves = [most >> step for step in range(most.bit_length())]
            return sorted(size for size in halves if size >= 2 * classes or size == most)
        wrong = [size for size in self.sizes if not classes <= size <= most]
        if wrong:
            raise LorabenchError(
                f"ablation.sizes={self.sizes}: {wrong[0]} training adapters cannot be taken; from {classes} (one of "
                f"each class) to {most} (all of a split) can"
            )
        return sorted(set(self.sizes))


def _of_size(study: Study, size: int, told: bool) -> Study:
    """The study on subsets of the training adapters, one a split; the run hears of what is `told` alone."""

    def part(number: int) -> np.ndarray:
        one = study.evaluators[number]
        return nested_subset(one.split.train, one.labels, one.zoo.labels.group, size, one.seeds[0])

    smaller = [
        replace(one if told else one.aside(), split=replace(one.split, train=part(number)))
        for number, one in enumerate(study.evaluators)
    ]
    return study.by(smaller)


def _leads(
    studies: Mapping[int, Study],
    found: Mapping[tuple[str, int], Evaluation],
    names: Sequence[str],
    against: Sequence[str],
) -> list[Lead]:
    pairs = [(name, other) for other in against for name in names if name != other]
    rows = [
        Lead(**vars(difference), representation=name, against=other, size=size)
        for name, other in pairs
        for size, study in studies.items()
        if (difference := study.difference([found[name, size]], [found[other, size]])) is not None
    ]
    return with_holm(rows, lambda row: (row.representation, row.against))


def partings(leads: Sequence[Lead], sizes: Sequence[int]) -> list[Parting]:
    """Where each pair parts: from the largest size downwards, as long as one of them is shown to be ahead.

    Args:
        leads: of pairs and sizes; where one of a pair failed there is none.
        sizes: all that were asked, ascending.
    """
    found = []
    for name, other in dict.fromkeys((row.representation, row.against) for row in leads):
        own = {row.size: row for row in leads if (row.representation, row.against) == (name, other)}
        size, sign = None, 0.0
        for at in reversed(sizes):
            row = own.get(at)
            if row is None or not (row.shown_above or row.shown_below) or sign * row.difference < 0:
                break
            size, sign = at, math.copysign(1.0, row.difference)
        found.append(Parting(name, other, size, None if size is None else name if sign > 0 else other))
    return found
