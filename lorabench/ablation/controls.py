"""Rows that a representation must be above, and the one that it cannot be: controls and the ceiling of a table."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lorabench.ablation.study import Study, measured, with_holm
from lorabench.evaluation import Arm, Evaluation
from lorabench.evaluation.chance import majority
from lorabench.representations.controls import Ceiling, Control, DeltaNorm, Recipe
from lorabench.results import LEVEL, claimed

__all__ = ["control_rows"]

_CONTROLS: dict[str, tuple[str, Control]] = {
    "recipe": ("how they were made: all that the labels know, rank, scale and presence of modules", Recipe()),
    "norm": ("‖ΔW‖ of the whole adapter", DeltaNorm()),
    "norm by module": ("‖ΔW‖ of every module", DeltaNorm(by_module=True)),
}
_CEILING = ("what the adapters were trained on", Ceiling())


def control_rows(study: Study, evaluated: Sequence[Evaluation], permuted: Evaluation | None = None) -> dict[str, Any]:
    """The controls of a comparison by the same classifier, and whether each representation is above the best of them.

    The best control is the one with the highest test accuracy, which makes the claim harder, not easier. Differences
    are paired as all others are, and Holm's p is over the representations.

    Args:
        study: of the comparison.
        evaluated: every representation with all layers.
        permuted: the first of them with permuted labels, where that is known already.

    Returns:
        `rows`: {name, text, kind, accuracy} of each control, chance and the ceiling; `above`: of each representation
        the difference to the `best` one, and whether it is `above` it.
    """
    (first, make), zoo = next(iter(study.chosen.items())), study.zoo
    found = {
        name: (text, study.evaluate(name, one, [study.all_layers()])[0])
        for name, (text, one) in _CONTROLS.items()
        if one.known(zoo)
    }
    if permuted is None:
        (permuted,) = study.evaluate(first, make(), [Arm("permuted", study.evaluator.everything, permuted=True)])
    found["permuted labels"] = (f"{first} of labels that say nothing", permuted)
    ran = next((one for one in evaluated if one.runs), None)
    if ran is not None:
        found["chance"] = ("the most frequent training class", _majority(study, ran))
    rows = [_row(study, name, text, "control", one) for name, (text, one) in found.items()]
    if _CEILING[1].known(zoo):
        ceiling = study.evaluate("ceiling", _CEILING[1], [study.all_layers()])[0]
        rows.append(_row(study, "ceiling", _CEILING[0], "ceiling", ceiling))
    known = [row for row in rows if row["kind"] == "control" and row["accuracy"]]
    best = max(known, key=lambda row: float(row["accuracy"]["mean"]), default=None)
    above = [] if best is None else _above(study, evaluated, best["name"], found[best["name"]][1])
    return {"rows": rows, "above": above}


def _row(study: Study, name: str, text: str, kind: str, one: Evaluation) -> dict[str, Any]:
    return {"name": name, "text": text, "kind": kind, "accuracy": measured([one], study)[0], "error": one.error}


def _majority(study: Study, one: Evaluation) -> Evaluation:
    """The members of an evaluation, as if each named the most frequent class of its training adapters."""
    labels = study.evaluator.labels
    classes = np.array([majority(labels, split) for split in study.splits])
    said = classes[study.split_of][:, None]
    truth = one.test_labels
    runs = tuple(replace(run, error=None) for run in one.runs)
    predicted = np.where(truth >= 0, said, -1)
    return replace(one, representation="chance", runs=runs, test=predicted, test_correct=truth == said)


def _above(study: Study, evaluated: Sequence[Evaluation], best: str, control: Evaluation) -> list[dict[str, Any]]:
    rows = [
        {"representation": one.representation, "best": best, **difference}
        for one in evaluated
        if (difference := study.difference([one], [control])) is not None
    ]
    return [{**row, "above": claimed(row)["low"] > 0 and row["holm"] < LEVEL} for row in with_holm(rows)]
