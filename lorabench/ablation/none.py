"""All layers stand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorabench.ablation.controls import Controls, control_rows
from lorabench.ablation.phase import Ablation
from lorabench.ablation.study import Findings, Study, with_holm
from lorabench.errors import LorabenchError
from lorabench.evaluation import Evaluation
from lorabench.findings import Compared, Finding
from lorabench.results import Run, Summary

__all__ = ["Between", "NoAblation", "NoneFinding", "compared_with", "differences_to"]


@dataclass(frozen=True, kw_only=True)
class Between(Compared):
    """The difference of a representation to the one that it is compared with."""

    against: str


@dataclass(frozen=True)
class NoneFinding(Finding):
    """Representations on all layers.

    Attributes:
        against: names of those that the others are compared with.
        between: a row a pair.
        controls: where they are asked for.
    """

    against: list[str]
    between: list[Between]
    controls: Controls | None = None


def compared_with(against: list[str] | None, study: Study) -> list[str]:
    """Names of the representations that the others are compared with: the first, where none is told.

    Raises:
        LorabenchError: one is not evaluated.
    """
    names = list(study.chosen)
    unknown = [name for name in against or [] if name not in names]
    if unknown:
        raise LorabenchError(
            f"ablation.against={unknown[0]} is none of the representations: {', '.join(names)} are evaluated"
        )
    return names[:1] if against is None else against


def differences_to(
    study: Study, name: str, own: Sequence[Evaluation], others: Mapping[str, Sequence[Evaluation]]
) -> list[Between]:
    """How far a representation is ahead of each of `others`, by their names; none of those that cannot be paired."""
    return [
        Between(**vars(found), representation=name, against=against)
        for against, other in others.items()
        if (found := study.difference(own, other)) is not None
    ]


@dataclass
class NoAblation(Ablation):
    """Every representation on all layers, and the paired differences between them.

    Args:
        against: names of those that the others are compared with; None: the first.
        controls: whether rows of controls and the ceiling are added.
    """

    against: list[str] | None = None
    controls: bool = False

    def run(self, study: Study) -> Findings:
        """One row a representation, and one a pair.

        Raises:
            LorabenchError: `against` names what is not evaluated.
        """
        names, against = list(study.chosen), compared_with(self.against, study)
        runs: list[Run] = []
        summary: list[Summary] = []
        evaluated: dict[str, list[Evaluation]] = {}
        for name, make in study.chosen.items():
            representation = make()
            evaluated[name] = study.evaluate(name, representation, [study.all_layers()])
            runs += study.runs(evaluated[name])
            summary.append(study.row(evaluated[name], representation, "none"))
        between: list[Between] = []
        for name in names:
            others = {other: evaluated[other] for other in against if other != name}
            between += differences_to(study, name, evaluated[name], others)
        whole = [one for found in evaluated.values() for one in found]
        controls = control_rows(study, whole) if self.controls else None
        return Findings(runs, summary, NoneFinding(self.name, against, with_holm(between), controls))
