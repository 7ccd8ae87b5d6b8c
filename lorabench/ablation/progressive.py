"""The degradation curve: layers go one by one, best first, or only the best stand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorabench.ablation.compare import random_units
from lorabench.ablation.study import Findings, Study, measured
from lorabench.errors import LorabenchError
from lorabench.evaluation import Evaluation

__all__ = ["Progressive"]


@dataclass
class Progressive:
    """Takes the layers away in ranked order, to the last; keeps the best k alone; takes k random ones away.

    Args:
        baseline: name of the representation that ranks.
        rank_on: val, or test for the published protocol.
        points: numbers of layers at which to look, evenly spaced with first and last; at most all of them.
        random_points: the same for random removal.
        random_draws: sets of random layers a point.
        name: what results call the phase.
    """

    baseline: str | dict[str, Any]
    rank_on: str
    points: int
    random_points: int
    random_draws: int
    name: str = "progressive"

    def run(self, study: Study) -> Findings:
        """One row for all layers, and the curves."""
        study.check_one_split(self.name)
        for option, least in (("points", 2), ("random_points", 0), ("random_draws", 0)):
            value = getattr(self, option)
            if value < least:
                raise LorabenchError(f"ablation.{option}={value}: a whole number from {least} is needed")
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
        data = {
            "name": self.name,
            **ranking.as_data(),
            "curve": {
                "representation": name,
                "remove": _curve(study, at, [units[k] for k in at], removed),
                "keep": _curve(study, at[1:], [units[k] for k in at[1:]], kept),
                "random": _band(study, drawn, found[len(at) + len(keeping) :]),
            },
        }
        return study.findings(removed[0], representation, data)


def _spaced(count: int, points: int) -> list[int]:
    """Numbers of layers from 0 to one less than all, evenly spaced."""
    if points >= count:
        return list(range(count))
    return sorted({round(float(k)) for k in np.linspace(0, count - 1, points)})


def _curve(
    study: Study, at: Sequence[int], units: Sequence[str | None], evaluations: Sequence[Evaluation]
) -> list[dict[str, Any]]:
    """A point a number of layers; where no unit of the representation is left there is none."""
    return [
        {"layers": k, "unit": unit, "accuracy": found["mean"], **{key: found[key] for key in ("std", "low", "high")}}
        for k, unit, found in zip(at, units, measured(evaluations, study), strict=True)
        if found is not None
    ]


def _band(study: Study, at: Sequence[int], evaluations: Sequence[Evaluation]) -> list[dict[str, float | int]]:
    """Mean, lowest and highest of the draws' mean test accuracies."""
    band: list[dict[str, float | int]] = []
    for k in at:
        own = [one for one in evaluations if one.arm.name.startswith(f"random-{k}/")]
        means = [found["mean"] for found in measured(own, study) if found is not None]
        if means:
            band.append({"layers": k, "accuracy": float(np.mean(means)), "low": min(means), "high": max(means)})
    return band
