"""The degradation curve: layers go one by one, best first, or only the best stand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from lorabench.ablation.compare import random_units
from lorabench.ablation.phase import RankingAblation
from lorabench.ablation.study import Findings, Study, measured
from lorabench.evaluation import Evaluation
from lorabench.findings import Number, RankedFinding
from lorabench.options import AtLeast

__all__ = ["Curve", "Drawn", "Progressive", "ProgressiveFinding", "Step"]


@dataclass(frozen=True)
class Step:
    """Test accuracy with `layers` taken away, or kept; `unit` is the last of them, None with none."""

    layers: int
    unit: str | None
    accuracy: Number
    std: Number
    low: Number
    high: Number


@dataclass(frozen=True)
class Drawn:
    """Mean test accuracy of the draws of `layers` random ones, and of the lowest and the highest draw."""

    layers: int
    accuracy: Number
    low: Number
    high: Number


@dataclass(frozen=True)
class Curve:
    """The best taken away, the best kept, and random ones taken away."""

    representation: str
    remove: list[Step]
    keep: list[Step]
    random: list[Drawn]


@dataclass(frozen=True)
class ProgressiveFinding(RankedFinding):
    """What is left as layers go."""

    curve: Curve


@dataclass
class Progressive(RankingAblation):
    """Takes the layers away in ranked order, to the last; keeps the best k alone; takes k random ones away.

    Args:
        points: numbers of layers at which to look, evenly spaced with first and last; at most all of them.
        random_points: the same for random removal.
        random_draws: sets of random layers a point.
    """

    points: Annotated[int, AtLeast(2)]
    random_points: Annotated[int, AtLeast(0)]
    random_draws: Annotated[int, AtLeast(0)]

    def run(self, study: Study) -> Findings:
        """One row for all layers, and the curves."""
        study.check_one_split(self.name)
        name, representation = study.one(self.name)
        ranking = study.rank(self.rank_on)
        count = len(ranking.rows)
        at = _spaced(count, self.points)
        removing = [study.all_layers()]
        removing += [study.without(ranking.layers_of(ranking.units[:k]), f"remove-{k}") for k in at[1:]]
        keeping = [study.only(ranking.layers_of(ranking.units[:k]), f"keep-{k}") for k in at[1:]]
        # Between nothing and everything: those two points are no draws.
        drawn = [k for k in _spaced(count, self.random_points + 1)[1:] if self.random_points and self.random_draws]
        random = [
            study.without(ranking.layers_of(units), f"random-{k}/{number}")
            for k in drawn
            for number, units in enumerate(
                random_units(ranking.units, k, self.random_draws, study.evaluator.seeds[0]), 1
            )
        ]
        found = study.evaluate(name, representation, [*removing, *keeping, *random])
        removed, kept = found[: len(at)], found[len(at) : len(at) + len(keeping)]
        units = [None, *ranking.units]
        curve = Curve(
            name,
            _curve(study, at, [units[k] for k in at], removed),
            _curve(study, at[1:], [units[k] for k in at[1:]], kept),
            _band(study, drawn, found[len(at) + len(keeping) :]),
        )
        said = ProgressiveFinding(**vars(ranking.found(self.name)), curve=curve)
        return study.findings(removed[0], representation, said)


def _spaced(count: int, points: int) -> list[int]:
    """Numbers of layers from 0 to one less than all, evenly spaced."""
    if points >= count:
        return list(range(count))
    return sorted({round(float(k)) for k in np.linspace(0, count - 1, points)})


def _curve(
    study: Study, at: Sequence[int], units: Sequence[str | None], evaluations: Sequence[Evaluation]
) -> list[Step]:
    """A point a number of layers; where no unit of the representation is left there is none."""
    return [
        Step(k, unit, found.mean, found.std, found.low, found.high)
        for k, unit, found in zip(at, units, measured(evaluations, study), strict=True)
        if found is not None
    ]


def _band(study: Study, at: Sequence[int], evaluations: Sequence[Evaluation]) -> list[Drawn]:
    """Mean, lowest and highest of the draws' mean test accuracies."""
    band = []
    for k in at:
        own = [one for one in evaluations if one.arm.name.startswith(f"random-{k}/")]
        means = [found.mean for found in measured(own, study) if found is not None]
        if means:
            band.append(Drawn(k, float(np.mean(means)), min(means), max(means)))
    return band
