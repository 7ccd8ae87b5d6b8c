"""Rows that a representation must be above, and the one that it cannot be: controls and the ceiling of a table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lorabench.ablation.study import Study, measured, with_holm
from lorabench.classifiers import class_of
from lorabench.classifiers.factors import FactorClassifier
from lorabench.evaluation import Arm, Evaluation
from lorabench.evaluation.chance import majority
from lorabench.findings import Compared, Measured
from lorabench.representations.controls import Ceiling, Control, DeltaNorm, Recipe
from lorabench.zoo.targets import follows

__all__ = ["Above", "ControlRow", "Controls", "best_control", "control_rows", "majority_members"]


@dataclass(frozen=True)
class ControlRow:
    """A control or the ceiling.

    Attributes:
        name: what the table calls it.
        text: what it reads.
        kind: "control" or "ceiling".
        accuracy: on the test adapters; None where it failed.
        error: why it failed.
    """

    name: str
    text: str
    kind: str
    accuracy: Measured | None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Above(Compared):
    """The difference of a representation to the `best` control, and whether it is `above` it."""

    best: str
    above: bool = False


@dataclass(frozen=True)
class Controls:
    """All rows, and every representation beside the best of them."""

    rows: list[ControlRow]
    above: list[Above]


_RECIPE = "how they were made: all that the labels know, rank, scale and presence of modules"
_NORMS: dict[str, tuple[str, Control]] = {
    "norm": ("‖ΔW‖ of the whole adapter", DeltaNorm()),
    "norm by module": ("‖ΔW‖ of every module", DeltaNorm(by_module=True)),
}
_CEILING = ("what the adapters were trained on", Ceiling())


def control_rows(study: Study, evaluated: Sequence[Evaluation], permuted: Evaluation | None = None) -> Controls:
    """The controls of a comparison by the same classifier, and whether each representation is above the best of them.

    The best control is the one with the highest test accuracy, which makes the claim harder, not easier. Differences
    are paired as all others are, and Holm's p is over the representations. Controls are numbers of an adapter: where
    the run's classifier reads factors, there are none but permuted labels and chance, and no ceiling.

    Args:
        study: of the comparison.
        evaluated: every representation with all layers.
        permuted: the first of them with permuted labels, where that is known already.
    """
    (first, make), zoo = next(iter(study.chosen.items())), study.zoo
    readable = not issubclass(class_of(study.evaluator.factory), FactorClassifier)
    recipe, without = _RECIPE, _what_follows(study)
    if without:
        recipe += f", but {', '.join(without)}"
    controls = {"recipe": (recipe, Recipe(without)), **_NORMS}
    found = {
        name: (text, study.evaluate(name, one, [study.all_layers()])[0])
        for name, (text, one) in controls.items()
        if readable and one.known(zoo)
    }
    if permuted is None:
        (permuted,) = study.evaluate(first, make(), [Arm("permuted", study.evaluator.everything, permuted=True)])
    found["permuted labels"] = (f"{first} of labels that say nothing", permuted)
    ran = next((one for one in evaluated if one.runs), None)
    if ran is not None:
        found["chance"] = ("the most frequent training class", majority_members(study, ran))
    rows = [_row(study, name, text, "control", one) for name, (text, one) in found.items()]
    if readable and _CEILING[1].known(zoo) and study.evaluator.values is None:
        ceiling = study.evaluate("ceiling", _CEILING[1], [study.all_layers()])[0]
        rows.append(_row(study, "ceiling", _CEILING[0], "ceiling", ceiling))
    best = best_control(rows)
    return Controls(rows, [] if best is None else _above(study, evaluated, best.name, found[best.name][1]))


def _what_follows(study: Study) -> tuple[str, ...]:
    """Columns of the recipe that are known with the number that is predicted, which is of the recipe itself."""
    labels = study.evaluator.labels
    if study.evaluator.values is None:
        return ()
    rows = np.flatnonzero(labels >= 0)
    recipe = {name: column[rows] for name, column in study.zoo.recipe().items()}
    found = {name for name, column in recipe.items() if follows(column, labels[rows])}
    by_module = [name for name in recipe if name.startswith(("rank of ", "scale of ", "presence of "))]
    count = sum((recipe[name] for name in by_module if name.startswith("presence of ")), np.zeros(len(rows)))
    if follows(count, labels[rows]):  # each module tells of a part of how many there are
        found.update(by_module)
    return tuple(name for name in recipe if name in found)


def best_control(rows: Sequence[ControlRow]) -> ControlRow | None:
    """The control with the highest accuracy; None where none is known."""
    known = [(row.accuracy.mean, row) for row in rows if row.kind == "control" and row.accuracy]
    return max(known, key=lambda pair: pair[0])[1] if known else None


def _row(study: Study, name: str, text: str, kind: str, one: Evaluation) -> ControlRow:
    return ControlRow(name, text, kind, measured([one], study)[0], one.error)


def majority_members(study: Study, one: Evaluation) -> Evaluation:
    """The members of an evaluation, as if each named the most frequent class of its training adapters."""
    labels = study.evaluator.labels
    classes = np.array([majority(labels, split) for split in study.splits])
    said = classes[study.split_of][:, None]
    truth = one.test_labels
    runs = tuple(replace(run, error=None) for run in one.runs)
    predicted = np.where(truth >= 0, said, -1)
    return replace(one, representation="chance", runs=runs, test=predicted, test_correct=truth == said)


def _above(study: Study, evaluated: Sequence[Evaluation], best: str, control: Evaluation) -> list[Above]:
    rows = [
        Above(**vars(difference), representation=one.representation, best=best)
        for one in evaluated
        if (difference := study.difference([one], [control])) is not None
    ]
    return [replace(row, above=row.shown_above) for row in with_holm(rows)]
