"""What every unit predicts of adapters that it was not trained on, by cross-validation without the test split."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int64

from lorabench.errors import LorabenchError
from lorabench.evaluation import Arm, Evaluator
from lorabench.representations import Representation
from lorabench.zoo.splits import fold_splits

__all__ = ["Crossed", "crossed"]


@dataclass(frozen=True)
class Crossed:
    """Right and wrong of every unit over adapters that its members were not trained on.

    Attributes:
        correct: 1 where a unit's member names an adapter right, [units, rows, n]; the rows are members of one split, or
            several splits, their members averaged.
        groups: code of the group of each adapter, [n]; None: each is its own.
        cells: which adapters count in each split, [splits, n]; None for one split.
    """

    correct: Bool[np.ndarray, "units rows n"] | Float[np.ndarray, "units rows n"]
    groups: Int64[np.ndarray, " n"] | None
    cells: Bool[np.ndarray, "splits n"] | None


def crossed(
    evaluators: Sequence[Evaluator], name: str, representation: Representation, arms: Sequence[Arm], folds: int
) -> Crossed:
    """Evaluate units in the folds of every split (Stone 1974): a row predicts each adapter outside the test rows once.

    A split's members are shared out over its folds, two a fold at least where there are two (one order alone says
    nothing of how stable it is); those of one number make a row.

    Args:
        evaluators: one a split.
        name: of the representation.
        representation: that ranks.
        arms: one a unit.
        folds: number of folds a split.

    Raises:
        LorabenchError: too few adapters, or no member of a split has trained in every fold.
    """
    tables = [_one_split(one, name, representation, arms, folds) for one in evaluators]
    groups = evaluators[0].zoo.labels.group
    rows = np.unique(np.concatenate([known for _, known in tables]))
    own = None if groups is None else groups[rows]
    if len(tables) == 1:
        return Crossed(tables[0][0], own, None)
    correct = np.zeros((len(arms), len(tables), len(rows)))
    for number, (table, known) in enumerate(tables):
        correct[:, number, np.searchsorted(rows, known)] = table.mean(1)
    return Crossed(correct, own, np.stack([np.isin(rows, known) for _, known in tables]))


def _one_split(
    evaluator: Evaluator, name: str, representation: Representation, arms: Sequence[Arm], folds: int
) -> tuple[Float[np.ndarray, "units rows n"], Int64[np.ndarray, " n"]]:
    splits = fold_splits(evaluator.labels, evaluator.zoo.labels.group, evaluator.split, folds, evaluator.seeds[0])
    rows = np.sort(np.concatenate([evaluator.split.train, evaluator.split.val]))
    seeds = evaluator.seeds[: max(2, len(evaluator.seeds) // folds)]
    table = np.zeros((len(arms), len(seeds), len(rows)))
    failed: dict[int, str] = {}
    for split in splits:
        fold = replace(evaluator, split=split, seeds=seeds, on_fitted=_ignored, on_curves=_ignored)
        for unit, one in enumerate(fold.evaluate(name, representation, arms)):
            failed |= {number: f"{one.arm.name}: {run.error}" for number, run in enumerate(one.runs) if run.error}
            table[unit][:, np.searchsorted(rows, split.test)] = one.test_correct
    good = [number for number in range(len(seeds)) if number not in failed]
    if not good:
        raise LorabenchError(f"no seed has trained on every layer. {next(iter(failed.values()))}")
    return table[:, good], rows


def _ignored(*_: object) -> None:
    """What a fold has learned is shown nowhere."""
