"""When in training the category becomes legible, and in which layers first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lorabench.ablation.controls import majority_members
from lorabench.ablation.phase import Ablation
from lorabench.ablation.study import Findings, Study, measured, with_holm
from lorabench.errors import LorabenchError
from lorabench.evaluation import Evaluation
from lorabench.findings import Compared, Finding, Measured
from lorabench.zoo import Zoo

__all__ = ["Course", "Dynamics", "DynamicsFinding"]


@dataclass(frozen=True)
class Course:
    """One representation, or one layer alone, as training goes on.

    Attributes:
        name: of the representation or layer.
        accuracy: on the test adapters after each of the steps; None where it failed.
        legible: the first of the steps from which on it is above chance; None where it is not at the last.
        error: why it failed, or None.
    """

    name: str
    accuracy: list[Measured | None]
    legible: int | None
    error: str | None = None


@dataclass(frozen=True)
class DynamicsFinding(Finding):
    """Accuracy by the number of steps.

    Attributes:
        single: the representation that reads single layers.
        steps: of training, ascending; the last stands for the finished adapters.
        representations: with all layers.
        layers: each alone, or each module.
    """

    single: str
    steps: list[int]
    representations: list[Course]
    layers: list[Course]


@dataclass
class Dynamics(Ablation):
    """Reads the adapters of every kept step and the finished ones: on the same splits, by members of the same seeds.

    What is above chance is told by the paired difference to naming the most frequent training class, and by its p,
    corrected by Holm over all steps of all layers (or of all representations). No layer is chosen by these numbers.
    The first of the representations reads the layers one by one.
    """

    def run(self, study: Study) -> Findings:
        """A row a representation on the finished adapters, and the courses.

        Raises:
            LorabenchError: the zoo has no checkpoints, or the first representation describes whole adapters.
        """
        name, make = study.baseline
        single = make()
        if single.unit == "all":
            raise LorabenchError(
                f"ablation=dynamics reads layer by layer, and {name} describes whole adapters: put a representation of "
                "layers or modules first, such as stats"
            )
        zoos = _by_step(study.zoo)
        alone = [study.only(set(single.layers_of(study.zoo, unit)), unit) for unit in single.units(study.zoo)]
        whole, solo = [], []
        for zoo in zoos.values():
            then = _at(study, zoo)
            whole.append([then.evaluate(of, new(), [study.all_layers()])[0] for of, new in study.chosen.items()])
            solo.append(then.evaluate(name, single, alone))
        courses = _courses(study, list(zoos), whole), _courses(study, list(zoos), solo)
        rows = [study.row([one], study.chosen[one.representation](), "none") for one in whole[-1]]
        return Findings(study.runs(whole[-1]), rows, DynamicsFinding(self.name, name, list(zoos), *courses))


def _by_step(zoo: Zoo) -> dict[int, Zoo]:
    """The zoo after each kept step, and the finished one last."""
    if not zoo.checkpoints:
        raise LorabenchError(
            f"ablation=dynamics looks at adapters as they are trained, and {zoo.name} has none before the last step: "
            "give dataset.keep_steps=[5,10,20] with dataset=glyphs, glyphs_independent, glyphs_scripts or glyphs_wild"
        )
    last = int(zoo.labels.recipe["steps"].max())
    return {step: zoo.checkpoints[step] for step in sorted(zoo.checkpoints) if step != last} | {last: zoo}


def _at(study: Study, zoo: Zoo) -> Study:
    """The same study of the adapters as they were: its splits, labels and seeds."""
    if zoo is study.zoo:
        return study
    return study.by([replace(one.aside(), zoo=zoo) for one in study.evaluators])


def _courses(study: Study, steps: Sequence[int], found: Sequence[Sequence[Evaluation]]) -> list[Course]:
    """A course a column of `found`, which has a row a step; where all layers stand, by the representation's name."""
    accuracy = [measured(row, study) for row in found]
    above = with_holm([one for number, row in enumerate(found) for one in _above(study, number, row)])
    clear = {one.representation for one in above if one.shown_above}
    return [
        Course(
            name=first.representation if first.arm.name == "none" else first.arm.name,
            accuracy=[row[column] for row in accuracy],
            legible=_legible(steps, [f"{number}/{column}" in clear for number in range(len(steps))]),
            error=next((row[column].error for row in found if row[column].error), None),
        )
        for column, first in enumerate(found[0])
    ]


def _above(study: Study, step: int, row: Sequence[Evaluation]) -> list[Compared]:
    """How far each that ran is above naming the most frequent training class; named by step and column."""
    ran = [(column, one) for column, one in enumerate(row) if one.runs]
    pairs = [(column, study.difference([one], [majority_members(study, one)])) for column, one in ran]
    return [Compared(**vars(found), representation=f"{step}/{column}") for column, found in pairs if found is not None]


def _legible(steps: Sequence[int], above: Sequence[bool]) -> int | None:
    """The first step from which on all are above; None where the last is not."""
    return next((step for number, step in enumerate(steps) if all(above[number:])), None)
