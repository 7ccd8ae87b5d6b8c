"""A recipe held out: trained on adapters without it, tested on those with it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from lorabench.ablation.copies import Altered
from lorabench.ablation.study import Study, measured
from lorabench.ablation.subsets import nested_subset
from lorabench.errors import LorabenchError
from lorabench.evaluation import Arm, Evaluator
from lorabench.zoo import Zoo
from lorabench.zoo.splits import Split

__all__ = ["RecipeShift", "made_so"]

_SHOWN = 8


def made_so(zoo: Zoo, column: str, value: Any) -> Bool[np.ndarray, " n"]:
    """Which adapters were made with a value of a column of the recipe, or within [lowest, highest].

    Raises:
        LorabenchError: there is no such column, the value is no number or pair, or none or all have it.
    """
    said = f"ablation.hold_out={{{column}: {value}}}"
    varying = [name for name, values in zoo.labels.recipe.items() if len(np.unique(values)) > 1]
    if column not in varying:
        known = ", ".join(varying) or "none"
        raise LorabenchError(f"{said}: {zoo.name} has no recipe of this name that varies; there are: {known}")
    values = zoo.labels.recipe[column]
    ends = value if isinstance(value, Sequence) else [value, value]
    if len(ends) != 2 or not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        raise LorabenchError(f"{said}: a number is needed, or a list of the lowest and the highest, such as [1, 4]")
    low, high = float(ends[0]), float(ends[1])
    found = ((values >= low) & (values <= high)) | np.isclose(values, low) | np.isclose(values, high)
    if not found.any() or found.all():
        which = "all adapters have" if found.any() else "no adapter has"
        levels = np.unique(values[~np.isnan(values)])
        listed = f"from {levels[0]:g} to {levels[-1]:g}"
        if len(levels) <= _SHOWN:
            listed = ", ".join(f"{level:g}" for level in levels)
        raise LorabenchError(f"{said}: {which} it in {zoo.name}; {column} is {listed}")
    return np.asarray(found)


class RecipeShift:
    """One recipe that is held out of training, beside a training on as many adapters that may have it.

    The test adapters are those with it, on both sides. What is trained on beside it is a stratified part of all
    training adapters, as many as have it not; validation adapters likewise.

    Args:
        study: the splits and representations.
        column: of `Labels.recipe`.
        value: a number, or [lowest, highest].

    Raises:
        LorabenchError: as `made_so`; or a split is left with a part that lacks what it needs.
    """

    def __init__(self, study: Study, column: str, value: Any) -> None:
        ends = list(value) if isinstance(value, Sequence) else [value]
        self.name = f"{column} {' to '.join(f'{end:g}' if isinstance(end, int | float) else str(end) for end in ends)}"
        held = made_so(study.zoo, column, value)
        said = f"ablation.hold_out={{{column}: {value}}}"
        splits = [_without(one, held, study.classes, said) for one in study.evaluators]
        self._unseen, self._seen = (
            study.by([replace(one, split=own[side]) for one, own in zip(study.evaluators, splits, strict=True)])
            for side in (0, 1)
        )

    def rows(self) -> list[Altered]:
        """A row a representation: what it reads of a recipe that it has not seen, less what it reads of one it has."""
        found = []
        for name, make in self._seen.chosen.items():
            (unseen,), (seen,) = (
                study.evaluate(name, make(), [Arm(arm, study.evaluator.everything)])
                for study, arm in ((self._unseen, f"without {self.name}"), (self._seen, f"as many, with {self.name}"))
            )
            difference = self._unseen.difference([unseen], [seen])
            (before,) = measured([seen], self._seen)
            if difference is not None and before is not None:
                found.append(
                    Altered(
                        **vars(difference), representation=name, alteration=f"{self.name}, unseen",
                        accuracy=before.mean + difference.difference, before=before.mean, same=float("nan"),
                    )
                )  # fmt: skip
        return found


def _without(
    evaluator: Evaluator, held: Bool[np.ndarray, " n"], classes: Sequence[str], said: str
) -> tuple[Split, Split]:
    """The split whose training never sees what is held, and one as large whose training does."""
    whole, labels = evaluator.split, evaluator.labels
    test = whole.test[held[whole.test]]
    train, val = (rows[~held[rows]] for rows in (whole.train, whole.val))
    parts = {"test": test, "training": train, "validation": val}
    lacking = [f"no {name} adapter" for name, rows in parts.items() if not len(rows)]
    lacking += [f"no training adapter of {classes[code]}" for code in np.setdiff1d(labels[whole.train], labels[train])]
    if lacking:
        raise LorabenchError(f"{said}: a split is left with {lacking[0]}; hold out what fewer, or more, adapters have")
    beside = [_part(evaluator, rows, len(kept)) for rows, kept in ((whole.train, train), (whole.val, val))]
    return Split(train, val, test), Split(beside[0], beside[1], test)


def _part(evaluator: Evaluator, rows: Int64[np.ndarray, " n"], size: int) -> Int64[np.ndarray, " m"]:
    return nested_subset(rows, evaluator.labels, evaluator.zoo.labels.group, size, evaluator.seeds[0])
