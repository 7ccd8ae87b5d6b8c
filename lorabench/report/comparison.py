"""Many runs side by side: every representation, with and without its best layers, over all splits and members.

Everything comes from the `results.json` of the runs. A run's split is drawn by its seed, so runs that differ in their
seed are several splits of one zoo, and what is said of their differences is corrected for the adapters that they share.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lorabench.ablation.compare import CompareFinding
from lorabench.ablation.inference import CorrectedT, corrected_t
from lorabench.results import NUMBER_METRICS, Result, Run, Statistic, Summary, Variance

__all__ = [
    "Cell",
    "cells_of",
    "cells_together",
    "differing",
    "interval_of_claim",
    "p_of_claim",
    "split_number",
    "test_to_train",
]

_ROUNDING = 1e-9  # an error of a mean below it is that of float32
_RANKING = ("folds", "baseline", "rank_on", "num_runs")  # members of another number rank otherwise
_NO_SETTING = ("_target_", "_partial_", "cache_dir", "name", "together", "memory_gb")


@dataclass(frozen=True)
class Cell:
    """A representation without the best k layers of a zoo.

    Attributes:
        dataset: name of the zoo.
        zoo: fingerprint of its content.
        target: what is predicted.
        classifier: name of the run's; a method brings its own, which is part of its settings.
        representation: its name.
        place: options of the data set and of the split, by their names: cells that differ in one are not compared.
        settings: options of classifier and representation, and of the ranking where layers are taken away, with the
            number of members that rank.
        top_k: how many layers are taken away; 0 for all layers.
        features: length of the feature vector.
        accuracy: test accuracy of every (split, member) that ended well.
        failed: error of every (split, member) that did not.
        errors: mean absolute error and R² of every (split, member), where the classes are those of a number.
        constants: the same of the best constant, by split; of a run of several splits, their mean.
        unit: what these errors are measured in; empty where the classes have no order.
        chances: test accuracy of always naming the most frequent training class, by split likewise.
        test_to_train: test adapters a training adapter.
        training: seconds that the training of every (split, member) took, whenever that was: what a run takes from
            the cache says so too.
    """

    dataset: str
    zoo: str
    target: str
    classifier: str
    representation: str
    place: dict[str, str]
    settings: dict[str, str]
    top_k: int
    features: int
    accuracy: dict[tuple[int, int], float]
    failed: dict[tuple[int, int], str]
    errors: dict[tuple[int, int], tuple[float, float]]
    constants: dict[int, tuple[float, float]]
    unit: str
    chances: dict[int, float]
    test_to_train: float
    training: dict[tuple[int, int], float]

    @property
    def mean(self) -> float:
        """Over splits and members; NaN where none ended well."""
        return float(np.mean(list(self.accuracy.values()))) if self.accuracy else math.nan

    @property
    def std(self) -> float:
        """Sample standard deviation over splits and members; NaN for one."""
        return float(np.std(list(self.accuracy.values()), ddof=1)) if len(self.accuracy) > 1 else math.nan

    @property
    def mae(self) -> Statistic:
        """Mean absolute error over splits and members, in `unit`; of none where the target is no number."""
        return Statistic.of([mae for mae, _ in self.errors.values()])

    @property
    def r2(self) -> Statistic:
        """R² over splits and members; of none where the target is no number."""
        return Statistic.of([r2 for _, r2 in self.errors.values()])

    @property
    def constant(self) -> tuple[float, float]:
        """MAE of the training median and R² of the training mean, over splits; NaN where the target is no number."""
        mae, r2 = zip(*self.constants.values(), strict=True) if self.constants else ((math.nan,), (math.nan,))
        return float(np.mean(mae)), float(np.mean(r2))

    @property
    def chance(self) -> float:
        """Test accuracy of always naming the most frequent training class, over splits."""
        return float(np.mean(list(self.chances.values())))

    @property
    def seconds(self) -> float:
        """That a member's training took, the mean; NaN where no run says."""
        known = [value for value in self.training.values() if value > 0]
        return float(np.mean(known)) if known else math.nan

    @property
    def table(self) -> tuple[object, ...]:
        """What cells of one table have in common."""
        return self.dataset, self.zoo, self.target, self.classifier, *sorted(self.place.items())

    @property
    def column(self) -> tuple[object, ...]:
        """What cells that are compared have in common."""
        return *self.table, self.top_k

    @property
    def row(self) -> tuple[object, ...]:
        """What it is called by in its column."""
        return self.representation, *sorted(self.settings.items())

    @property
    def whole(self) -> tuple[object, ...]:
        """The `row` that it has over all layers, where nothing is ranked."""
        of_ranking = _RANKING if self.top_k else ()
        kept = [item for item in self.settings.items() if item[0].partition(".")[0] not in of_ranking]
        return self.representation, *sorted(kept)

    @property
    def splits(self) -> int:
        """How many."""
        return len({split for split, _ in self.accuracy})

    @property
    def variance(self) -> Variance:
        """Of another split, and of another member."""
        return Variance.between(list(_by_split(self.accuracy).values()))

    @property
    def split_means(self) -> dict[int, float]:
        """Mean over the members of every split."""
        return {split: float(np.mean(values)) for split, values in _by_split(self.accuracy).items()}

    def interval(self) -> tuple[float, float]:
        """95 % of the mean, by the corrected resampled t; NaN for one split."""
        return interval_of_claim(self._over_splits(self.accuracy) if self.accuracy else None)

    def difference(self, other: "Cell") -> CorrectedT | None:
        """To another cell, paired by split and member; None where they have none in common."""
        shared = {key: value - other.accuracy[key] for key, value in self.accuracy.items() if key in other.accuracy}
        return self._over_splits(shared) if shared else None

    def _over_splits(self, values: dict[tuple[int, int], float]) -> CorrectedT:
        rows = list(_by_split(values).values())
        width = max(map(len, rows))
        padded = np.array([row + [math.nan] * (width - len(row)) for row in rows])
        return corrected_t(padded, self.test_to_train)


def _by_split(values: dict[tuple[int, int], float]) -> dict[int, list[float]]:
    """The members' values of every split."""
    found: dict[int, list[float]] = {}
    for (split, _), value in sorted(values.items()):
        found.setdefault(split, []).append(value)
    return found


def cells_together(results: Iterable[Result]) -> list[Cell]:
    """The cells of runs: what several runs know of one cell is put together, by split and member."""
    cells: dict[tuple[object, ...], Cell] = {}
    for result in results:
        for cell in cells_of(result):
            key = cell.column, cell.row
            known = cells.get(key)
            if known is not None:
                cell = _together(known, cell)
            cells[key] = cell
    return list(cells.values())


def _together(known: Cell, more: Cell) -> Cell:
    accuracy = {**known.accuracy, **more.accuracy}
    failed = {**known.failed, **more.failed}
    return replace(
        more,
        accuracy=accuracy,
        failed={key: error for key, error in failed.items() if key not in accuracy},  # it ended well in another run
        errors={**known.errors, **more.errors},
        constants={**known.constants, **more.constants},
        chances={**known.chances, **more.chances},
        training={**known.training, **more.training},
    )


def p_of_claim(difference: CorrectedT | None) -> float:
    """The p that a claim may have: NaN under three splits, and for a difference that is the same on all of them.

    Accuracies are counts of few adapters, and equal counts are no small error.
    """
    known = difference is not None and difference.freedom >= 2 and difference.error >= _ROUNDING
    return difference.p if difference is not None and known else math.nan


def interval_of_claim(difference: CorrectedT | None) -> tuple[float, float]:
    """Its 95 % interval; NaN for one split, and where `p_of_claim` sees no error: none is 0 wide."""
    if difference is None or not difference.error >= _ROUNDING:
        return math.nan, math.nan
    return difference.interval()


def split_number(result: Result, run: Run | None = None) -> int:
    """By what the split of a run, or of a member, is known: its seed; 0 for the one split of a source's own."""
    if result.split["by_source"]:
        return 0
    return int(result.config["seed"]) + (run.split if run is not None else 0)


def differing(settings: Sequence[dict[str, str]]) -> list[str]:
    """Names of the options that are not the same in all.

    >>> differing([{"rank": "2", "seed": "0"}, {"rank": "4", "seed": "0"}, {"seed": "0"}])
    ['rank']
    """
    names = dict.fromkeys(name for one in settings for name in one)
    return [name for name in names if len({one.get(name) for one in settings}) > 1]


def test_to_train(result: Result) -> float:
    """Test adapters a training adapter, of the first split."""
    return float(result.split["test"] / result.split["train"])


def cells_of(result: Result) -> list[Cell]:
    """A run's rows with all layers and without the best k; random, worst and permuted ones are none of these."""
    taken = {"none": 0}
    if isinstance(result.ablation, CompareFinding):
        taken |= {arm.name: result.ablation.top_k for arm in result.ablation.arms if arm.kind == "top"}
    return [_cell(result, row, taken[row.ablation]) for row in result.summary if row.ablation in taken]


def _cell(result: Result, row: Summary, top_k: int) -> Cell:
    config = result.config
    options = config.get("representations", {}).get(row.representation, {})
    of_run = {} if "classifier" in options else _flat(config.get("classifier", {}), "classifier.")
    settings = of_run | _flat(options, "")
    if top_k:
        of_ranking = {name: config.get(name) for name in ("folds", "num_runs")} | config.get("ablation", {})
        settings |= _flat(of_ranking, "", only=_RANKING)
    of_row = [run for run in result.runs if (run.representation, run.ablation) == (row.representation, row.ablation)]
    by_member = {(split_number(result, run), run.seed): run for run in of_row}
    numbers = result.numbers
    constant = None if numbers is None else (numbers.constant_mae, numbers.constant_r2)
    return Cell(
        dataset=str(result.dataset["name"]),
        zoo=str(result.dataset.get("fingerprint", "")),
        target=result.target,
        classifier=_of_column(config, options) or row.classifier,
        representation=row.representation,
        place=_flat(config.get("dataset", {}), "dataset.") | _flat(config.get("split", {}), "split."),
        settings=settings,
        top_k=top_k,
        features=row.features,
        accuracy={key: run.metrics["test_accuracy"] for key, run in by_member.items() if run.error is None},
        failed={key: run.error for key, run in by_member.items() if run.error is not None},
        errors={key: off for key, run in by_member.items() if (off := _errors(run)) is not None},
        constants={} if constant is None else {split: constant for split, _ in by_member},
        unit="" if numbers is None else numbers.unit,
        chances={split: result.chance for split, _ in by_member} or {split_number(result): result.chance},
        test_to_train=test_to_train(result),
        training={key: run.seconds for key, run in by_member.items() if run.error is None},
    )


def _errors(run: Run) -> tuple[float, float] | None:
    mae, r2 = (run.metrics.get(name) for name in NUMBER_METRICS)
    return None if mae is None or r2 is None else (mae, r2)


def _of_column(config: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    """Beside whose rows a method with a classifier of its own stands: those of the run's classifier."""
    return str(config["classifier"]["_target_"]).split(".")[-2] if "classifier" in options else None


def _flat(options: Mapping[str, Any], prefix: str, only: Collection[str] = ()) -> dict[str, str]:
    """Options by their whole names, as text; without those that say where something is kept or how fast it is done."""
    found: dict[str, str] = {}
    for name, value in options.items():
        if name in _NO_SETTING or (only and name not in only):
            continue
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = str(value)
    return found
