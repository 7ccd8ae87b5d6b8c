"""Many runs side by side: every representation, with and without its best layers, over all splits and members.

Everything comes from the `results.json` of the runs. A run's split is drawn by its seed, so runs that differ in their
seed are several splits of one zoo, and what is said of their differences is corrected for the adapters that they share.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float64

from lorabench.ablation.compare import CompareFinding
from lorabench.ablation.inference import CorrectedT, corrected_t, holm
from lorabench.results import Result

__all__ = ["Cell", "Comparison", "compare"]

LEVEL = 0.05


@dataclass(frozen=True)
class Cell:
    """A representation without the best k layers of a zoo.

    Attributes:
        dataset: name of the zoo.
        target: what is predicted.
        classifier: its name.
        representation: its name.
        top_k: how many layers are taken away; 0 for all layers.
        features: length of the feature vector.
        accuracy: test accuracy of every (split, member) that ended well.
        failed: errors of those that did not.
        chance: test accuracy of always naming the most frequent training class.
        test_to_train: test adapters a training adapter.
    """

    dataset: str
    target: str
    classifier: str
    representation: str
    top_k: int
    features: int
    accuracy: dict[tuple[int, int], float]
    failed: list[str]
    chance: float
    test_to_train: float

    @property
    def mean(self) -> float:
        """Over splits and members; NaN where none ended well."""
        return float(np.mean(list(self.accuracy.values()))) if self.accuracy else math.nan

    @property
    def std(self) -> float:
        """Sample standard deviation over splits and members; NaN for one."""
        return float(np.std(list(self.accuracy.values()), ddof=1)) if len(self.accuracy) > 1 else math.nan

    @property
    def splits(self) -> int:
        """How many."""
        return len({split for split, _ in self.accuracy})

    def interval(self) -> tuple[float, float]:
        """95 % of the mean, by the corrected resampled t; NaN for one split."""
        return self._over_splits(self.accuracy).interval() if self.accuracy else (math.nan, math.nan)

    def difference(self, other: "Cell") -> CorrectedT | None:
        """To another cell, paired by split and member; None where they have none in common."""
        shared = {key: value - other.accuracy[key] for key, value in self.accuracy.items() if key in other.accuracy}
        return self._over_splits(shared) if shared else None

    def _over_splits(self, values: dict[tuple[int, int], float]) -> CorrectedT:
        return corrected_t(_by_split(values), self.test_to_train)


def _by_split(values: dict[tuple[int, int], float]) -> Float64[np.ndarray, "splits members"]:
    """One row a split; NaN where a split has fewer members."""
    rows: dict[int, list[float]] = {}
    for (split, _), value in sorted(values.items()):
        rows.setdefault(split, []).append(value)
    width = max(map(len, rows.values()))
    return np.array([row + [math.nan] * (width - len(row)) for row in rows.values()])


@dataclass(frozen=True)
class Standing:
    """How a cell stands beside the best of its column: the same zoo, target, classifier and `top_k`.

    Attributes:
        cell: it.
        best: whether no other has a higher mean.
        difference: to the best, paired; None for the best itself, or where nothing pairs them.
        holm: p of that difference, corrected for all others of the column.
        alone: of the best: whether every other is shown to be worse (Holm's p below 0.05).
    """

    cell: Cell
    best: bool = False
    difference: CorrectedT | None = None
    holm: float = math.nan
    alone: bool = False


@dataclass(frozen=True)
class Comparison:
    """All cells of some runs.

    Attributes:
        rows: in the order of the runs.
    """

    rows: list[Standing] = field(default_factory=list)

    def column(self, like: Cell) -> list[Standing]:
        """What stands beside a cell."""
        return [row for row in self.rows if _column(row.cell) == _column(like)]


def compare(results: Iterable[Result]) -> Comparison:
    """The cells of runs: what several runs know of one cell is put together, by split and member."""
    cells: dict[tuple[object, ...], Cell] = {}
    for result in results:
        for cell in _cells(result):
            key = (*_column(cell), cell.representation)
            known = cells.get(key)
            if known is not None:
                failed = known.failed + [error for error in cell.failed if error not in known.failed]
                cell = replace(cell, accuracy={**known.accuracy, **cell.accuracy}, failed=failed)
            cells[key] = cell
    columns: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells.values():
        columns.setdefault(_column(cell), []).append(cell)
    standing = {id(row.cell): row for column in columns.values() for row in _stand(column)}
    return Comparison([standing[id(cell)] for cell in cells.values()])


def _column(cell: Cell) -> tuple[object, ...]:
    return cell.dataset, cell.target, cell.classifier, cell.top_k


def _cells(result: Result) -> list[Cell]:
    """A run's rows with all layers and without the best k; random, worst and permuted ones are none of these."""
    taken = {"none": 0}
    if isinstance(result.ablation, CompareFinding):
        taken |= {arm.name: result.ablation.top_k for arm in result.ablation.arms if arm.kind == "top"}
    seed, fixed = int(result.config["seed"]), bool(result.split["by_source"])
    found = []
    for row in result.summary:
        if row.ablation not in taken:
            continue
        found.append(
            Cell(
                dataset=str(result.dataset["name"]),
                target=result.target,
                classifier=row.classifier,
                representation=row.representation,
                top_k=taken[row.ablation],
                features=row.features,
                accuracy={
                    (0 if fixed else seed + run.split, run.seed): run.metrics["test_accuracy"]
                    for run in result.runs
                    if (run.representation, run.ablation, run.error) == (row.representation, row.ablation, None)
                },
                failed=list(row.failed),
                chance=result.chance,
                test_to_train=result.split["test"] / result.split["train"],
            )
        )
    return found


def _stand(column: Sequence[Cell]) -> list[Standing]:
    known = [cell for cell in column if cell.accuracy]
    if not known:
        return [Standing(cell) for cell in column]
    best = max(known, key=lambda cell: cell.mean)
    differences = [None if cell is best else cell.difference(best) for cell in column]
    adjusted = holm([math.nan if one is None else one.p for one in differences])
    others = [p for cell, p in zip(column, adjusted, strict=True) if cell is not best]
    alone = bool(others) and all(p < LEVEL for p in others)
    return [
        Standing(cell, cell is best, difference, p, cell is best and alone)
        for cell, difference, p in zip(column, differences, adjusted, strict=True)
    ]
