"""The order of the layers by what each alone predicts, and how far that order can be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float, Float64, Integer

from lorabench.ablation.crossed import Crossed
from lorabench.ablation.inference import holm
from lorabench.ablation.statistics import interval, kendall_tau, mean_correct, replicates, two_sided
from lorabench.evaluation import Evaluation
from lorabench.findings import Ranked, RankedFinding, Stability
from lorabench.options import OneOf, check_arguments

__all__ = ["RankOn", "Ranking", "rank_layers", "stability"]

RankOn = Annotated[str, OneOf(["val", "test"])]
"""The part whose accuracy ranks: `val`, or `test` for the published protocol."""


@dataclass(frozen=True)
class Ranking:
    """The layers (or modules, for a baseline of modules) by what each alone predicts.

    Attributes:
        baseline: name of the representation.
        rank_on: the part whose accuracy ranks: val, or test for the published protocol.
        folds: of the cross-validation within training and validation adapters that ranks; 1: validation adapters do.
        rows: best first, over all splits.
        by_split: names of the units, best first by each split alone, which is what decides what is taken away there.
        layers: those of every unit.
        evaluations: one a unit, in the zoo's order.
        right: what each unit predicts right on the part that ranks, in the zoo's order.
        dropped: seeds left out because a member of theirs failed, and why.
    """

    baseline: str
    rank_on: str
    folds: int
    rows: list[Ranked]
    by_split: list[list[str]]
    layers: dict[str, tuple[str, ...]]
    evaluations: list[Evaluation]
    right: Crossed
    dropped: list[str]

    @property
    def units(self) -> list[str]:
        """Names of the units, best first."""
        return [row.layer for row in self.rows]

    def layers_of(self, units: Sequence[str]) -> set[str]:
        """All layers of some units."""
        return {layer for unit in units for layer in self.layers[unit]}

    def found(self, name: str) -> RankedFinding:
        """As the finding of a phase has it.

        Args:
            name: of the ablation.
        """
        stable = stability(self.rows, "splits" if len(self.by_split) > 1 else "seeds")
        return RankedFinding(name, self.rank_on, self.baseline, self.folds, self.rows, stable, self.dropped)


def rank_layers(
    layers: Sequence[str],
    val_correct: Bool[np.ndarray, "layers rows val"] | Float[np.ndarray, "layers rows val"],
    test_correct: Bool[np.ndarray, "_layers seeds test"] | Float[np.ndarray, "_layers seeds test"],
    rank_on: RankOn,
    val_groups: Integer[np.ndarray, " val"] | None = None,
    test_groups: Integer[np.ndarray, " test"] | None = None,
    draws: int = 2000,
    validated: Bool[np.ndarray, "_rows val"] | None = None,
    tested: Bool[np.ndarray, "_seeds test"] | None = None,
) -> list[Ranked]:
    """The layers, best first by mean accuracy over seeds; equal ones keep the order of `layers`.

    `tied_to` walks down from a layer's own rank and stops before the first layer whose paired difference to it has a
    95 % interval without zero, each comparison for itself; `holm` corrects for their number. Intervals
    are those of `lorabench.ablation.statistics.replicates`.

    Args:
        layers: their names, in the zoo's order.
        val_correct: 1 where a layer's member predicts a validation adapter right, [layers, rows, val]; rows are seeds,
            or cross-validations, whose number may be another.
        test_correct: the same of the test adapters, [layers, seeds, test].
        rank_on: "val", or "test" for the published protocol, which picks layers on the split that it reports.
        val_groups: code of the group of each validation adapter, [val]; None: each is its own.
        test_groups: the same of the test adapters, [test].
        draws: number of resamples.
        validated: which cells of `val_correct` count, [rows, val]; None: all.
        tested: the same of `test_correct`.

    Raises:
        LorabenchError: `rank_on` is neither.
        ValueError: names and tables that do not match, or a table without rows.
    """
    check_arguments(rank_layers, {"rank_on": rank_on}, "ablation.")
    val, test = val_correct.shape, test_correct.shape
    if not len(layers) == val[0] == test[0] or 0 in val + test:
        raise ValueError(
            f"{len(layers)} layers; val_correct is {val}, test_correct {test}: both are [layers, seeds, n]"
        )
    on_val = rank_on == "val"
    correct, groups, cells = (val_correct, val_groups, validated) if on_val else (test_correct, test_groups, tested)
    values = replicates(correct, groups, draws, tested=cells)
    low, high = interval(values)
    # over seeds and adapters at once: layers with as many right answers tie exactly, however seeds share them
    val_accuracy, test_accuracy = (
        mean_correct(val_correct, validated, (1, 2)),
        mean_correct(test_correct, tested, (1, 2)),
    )
    accuracy = val_accuracy if on_val else test_accuracy
    per_seed = mean_correct(correct, cells, 2)
    std = per_seed.std(1, ddof=1) if per_seed.shape[1] > 1 else np.full(len(layers), np.nan)
    order = np.argsort(-accuracy, kind="stable")
    p = [two_sided(values[:, order[0]] - values[:, i]) for i in order]
    corrected = [p[0], *holm(p[1:])]
    return [
        Ranked(
            layer=layers[i], rank=rank, accuracy=float(accuracy[i]), low=float(low[i]), high=float(high[i]),
            std=float(std[i]), val_accuracy=float(val_accuracy[i]), test_accuracy=float(test_accuracy[i]),
            per_seed=per_seed[i].tolist(), tied_to=tied_to, p=raw, holm=of_all,
        )
        for rank, (i, tied_to, raw, of_all) in enumerate(
            zip(order, _tied_to(values[:, order]), p, corrected, strict=True), start=1
        )
    ]  # fmt: skip


def stability(ranking: Sequence[Ranked], of: str = "seeds") -> Stability:
    """How far the seeds, or splits, that `per_seed` has a value of agree on the order."""
    scores = np.array([row.per_seed for row in ranking]).T
    pairs = kendall_tau(scores)[np.triu_indices(len(scores), 1)]
    defined = pairs[~np.isnan(pairs)]
    mean, lowest = (float(defined.mean()), float(defined.min())) if defined.size else (None, None)
    return Stability(mean, lowest, len(scores), of)


def _tied_to(values: Float64[np.ndarray, "draws ranks"]) -> list[int]:
    """For every rank, from 1, the last one before the first that its replicates are told from."""
    found = []
    for rank in range(1, values.shape[1] + 1):
        low, high = interval(values[:, rank - 1 : rank] - values[:, rank:])
        told = (low > 0) | (high < 0)
        found.append(rank + int(told.argmax() if told.any() else told.size))
    return found
