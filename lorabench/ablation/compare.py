"""Phases 2 and 3: representations with and without the best layers, beside their controls."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorabench.ablation.study import Findings, Ranking, Study
from lorabench.errors import LorabenchError
from lorabench.evaluation import Arm, Evaluation
from lorabench.results import Run, Summary

__all__ = ["Compare", "random_units"]


def random_units(units: Sequence[str], k: int, draws: int, seed: int) -> list[list[str]]:
    """Different sets of k of the units at random; fewer than `draws` where no more can be told apart."""
    rng = np.random.default_rng([seed, k, 0xAB1A])
    found: dict[frozenset[int], list[str]] = {}
    while len(found) < min(draws, math.comb(len(units), k)):
        picked = rng.choice(len(units), k, replace=False)
        found.setdefault(frozenset(picked.tolist()), [units[i] for i in picked])
    return list(found.values())


@dataclass
class Compare:
    """Ranks the layers, takes the best k away, and evaluates every representation before and after.

    A fall after the removal says something only beside the controls: k other layers at random, the k worst, and
    labels that say nothing. Random layers come from those that are not among the best k, or from all where fewer than
    3k there are; a seed's draws are averaged, and intervals hold for the sets that were drawn.

    Args:
        baseline: name of the representation that ranks.
        rank_on: val, or test for the published protocol.
        top_k: how many layers are taken away.
        random_draws: how many sets of k random layers; 0 for none.
        worst: whether to take the k worst away too.
        permuted: whether to learn permuted labels too, which must read chance.
        name: what results call the phase.
    """

    baseline: str | dict[str, Any]
    rank_on: str
    top_k: int
    random_draws: int
    worst: bool
    permuted: bool
    name: str = "compare"

    def run(self, study: Study) -> Findings:
        """A row for every representation and kind of arm, and the differences to all layers."""
        if self.random_draws < 0:
            raise LorabenchError(f"ablation.random_draws={self.random_draws}: a whole number from 0 is needed")
        ranking = study.rank(self.rank_on, self.top_k)
        kinds = self._kinds(study, ranking)
        runs: list[Run] = []
        summary: list[Summary] = []
        differences: list[dict[str, Any]] = []
        for name, make in study.chosen.items():
            representation = make()
            flat = [arm for arms in kinds.values() for arm in arms]
            found = iter(study.evaluate(name, representation, flat))
            by_kind = {kind: [next(found) for _ in arms] for kind, arms in kinds.items()}
            runs += study.runs([one for kind in by_kind.values() for one in kind])
            summary += [study.row(of_kind, representation, kind) for kind, of_kind in by_kind.items()]
            differences += self._differences(study, name, by_kind)
        data = {
            "name": self.name,
            **ranking.as_data(),
            "top_k": self.top_k,
            "removed": _gone(study, kinds[f"top-{self.top_k}"][0]),
            "arms": [self._described(study, kind, arms) for kind, arms in kinds.items()],
            "differences": differences,
        }
        return Findings(runs, summary, data)

    def _kinds(self, study: Study, ranking: Ranking) -> dict[str, list[Arm]]:
        """The arms, by what the table calls them."""
        k, seed = self.top_k, study.evaluator.seeds[0]
        kinds = {"none": [study.all_layers()]}
        kinds[f"top-{k}"] = [study.without(ranking.layers_of(ranking.units[:k]), f"top-{k}")]
        others = ranking.units[k:] if len(ranking.rows) >= 3 * k else ranking.units
        draws = random_units(others, k, self.random_draws, seed)
        if draws:
            kinds[f"random-{k}"] = [
                study.without(ranking.layers_of(units), f"random-{k}/{number}")
                for number, units in enumerate(draws, start=1)
            ]
        if self.worst:
            kinds[f"worst-{k}"] = [study.without(ranking.layers_of(ranking.units[-k:]), f"worst-{k}")]
        if self.permuted:
            kinds["permuted"] = [Arm("permuted", study.evaluator.everything, permuted=True)]
        return kinds

    def _differences(self, study: Study, name: str, by_kind: dict[str, list[Evaluation]]) -> list[dict[str, Any]]:
        """Every removal against none, and the top k against as many random ones."""
        top, random = f"top-{self.top_k}", f"random-{self.top_k}"
        pairs = [(kind, "none") for kind in by_kind if kind not in ("none", "permuted")]
        pairs += [(top, random)] if random in by_kind else []
        found = []
        for kind, against in pairs:
            difference = study.difference(by_kind[kind], by_kind[against])
            if difference is not None:
                found.append({"representation": name, "ablation": kind, "against": against, **difference})
        return found

    def _described(self, study: Study, name: str, arms: Sequence[Arm]) -> dict[str, Any]:
        kind = name.split("-", 1)[0]
        if kind == "random":
            return {"name": name, "kind": kind, "draws": [_gone(study, arm) for arm in arms]}
        return {"name": name, "kind": kind, "removed": _gone(study, arms[0])}


def _gone(study: Study, arm: Arm) -> list[str]:
    return [layer for layer in study.zoo.layers if layer not in set(arm.layers)]
