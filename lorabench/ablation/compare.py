"""Phases 2 and 3: representations with and without the best layers, beside their controls."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from lorabench.ablation.controls import Controls, control_rows
from lorabench.ablation.none import NoAblation
from lorabench.ablation.phase import RankingAblation
from lorabench.ablation.ranking import Ranking
from lorabench.ablation.study import Findings, Study, with_holm
from lorabench.ablation.verdict import Verdict, as_t, verdict
from lorabench.evaluation import Arm, Evaluation
from lorabench.findings import Compared, RankedFinding
from lorabench.options import Above, AtLeast, Below
from lorabench.results import Run, Summary

__all__ = ["Compare", "CompareFinding", "Fall", "Taken", "random_units"]


@dataclass(frozen=True)
class Taken:
    """The layers that an arm takes away.

    Attributes:
        name: the `ablation` of its rows.
        kind: "none", "top", "random", "worst" or "permuted".
        removed: names of the layers, on the first split.
        by_split: the same on each.
        draws: the same of each set of random ones, instead.
    """

    name: str
    kind: str
    removed: list[str] = field(default_factory=list)
    by_split: list[list[str]] = field(default_factory=list)
    draws: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Fall(Compared):
    """The difference that an ablation makes: to `against`, "none" or another ablation."""

    ablation: str
    against: str


@dataclass(frozen=True)
class CompareFinding(RankedFinding):
    """Representations with and without the best layers.

    Attributes:
        top_k: how many units are taken away.
        removed: their layers.
        arms: what every arm takes away.
        differences: between arms, of every representation.
        margin: of equivalence.
        verdicts: a row a representation whose fall is known.
        controls: where they are asked for.
    """

    top_k: int
    removed: list[str]
    arms: list[Taken]
    differences: list[Fall]
    margin: float
    verdicts: list[Verdict]
    controls: Controls | None = None

    @property
    def marked(self) -> int:
        """What is taken away."""
        return self.top_k


def random_units(units: Sequence[str], k: int, draws: int, seed: int) -> list[list[str]]:
    """Different sets of k of the units at random; fewer than `draws` where no more can be told apart."""
    rng = np.random.default_rng([seed, k, 0xAB1A])
    found: dict[frozenset[int], list[str]] = {}
    while len(found) < min(draws, math.comb(len(units), k)):
        picked = rng.choice(len(units), k, replace=False)
        found.setdefault(frozenset(picked.tolist()), [units[i] for i in picked])
    return list(found.values())


@dataclass
class Compare(RankingAblation):
    """Ranks the layers, takes the best k away, and evaluates every representation before and after.

    A fall after the removal says something only beside the controls: k layers at random, the k worst, and labels that
    say nothing. Random layers come from all layers and are the same on every split; the best and the worst are each
    split's own, ranked without its test adapters. A seed's draws are averaged, and intervals hold for the sets that
    were drawn. The verdict on every representation is in words that its tests decide.

    Args:
        top_k: how many layers are taken away; with 0, nothing is ranked, and all layers are all there is.
        random_draws: how many sets of k random layers; 0 for none.
        worst: whether to take the k worst away too.
        permuted: whether to learn permuted labels too, which must read chance.
        controls: whether rows of controls and the ceiling are added.
        margin: a fall shown to be below this share of test accuracy is no fall (an equivalence test's margin).
    """

    top_k: Annotated[int, AtLeast(0)]
    random_draws: Annotated[int, AtLeast(0)]
    worst: bool
    permuted: bool
    controls: bool = False
    margin: Annotated[float | int, Above(0), Below(1)] = 0.03

    def run(self, study: Study) -> Findings:
        """A row for every representation and kind of arm, and the differences to all layers."""
        if self.top_k == 0:
            return NoAblation(controls=self.controls).run(study)
        ranking = study.rank(self.rank_on, self.top_k)
        kinds = self._kinds(study, ranking)
        runs: list[Run] = []
        summary: list[Summary] = []
        differences: list[Fall] = []
        whole: list[Evaluation] = []
        permuted: list[Evaluation] = []
        drawn: dict[str, list[float]] = {}
        for name, make in study.chosen.items():
            representation = make()
            flat = [arm for arms in kinds.values() for arm in arms]
            evaluated = iter(study.evaluate(name, representation, flat))
            by_kind = {kind: [next(evaluated) for _ in arms] for kind, arms in kinds.items()}
            whole += by_kind["none"]
            permuted += by_kind.get("permuted", [])
            runs += study.runs([one for kind in by_kind.values() for one in kind])
            summary += [study.row(of_kind, representation, kind) for kind, of_kind in by_kind.items()]
            differences += self._differences(study, name, by_kind)
            drawn[name] = _changes(study, by_kind["none"][0], by_kind.get(f"random-{self.top_k}", []))
        differences = with_holm(differences, lambda row: (row.ablation, row.against))
        gone = sorted(ranking.layers_of(ranking.units[: self.top_k]), key=study.evaluator.everything.index)
        found = CompareFinding(
            **vars(ranking.found(self.name)),
            top_k=self.top_k,
            removed=gone,
            arms=[self._described(study, kind, arms) for kind, arms in kinds.items()],
            differences=differences,
            margin=self.margin,
            verdicts=self._verdicts(differences, drawn),
            controls=control_rows(study, whole, *permuted[:1]) if self.controls else None,
        )
        return Findings(runs, summary, found)

    def _kinds(self, study: Study, ranking: Ranking) -> dict[str, list[list[Arm]]]:
        """The arms, one a split, by what the table calls them."""
        k, seed, splits = self.top_k, study.evaluator.seeds[0], len(study.splits)
        kinds = {"none": [[study.all_layers()] * splits]}
        kinds[f"top-{k}"] = [[_left(study, ranking, units[:k], f"top-{k}") for units in ranking.by_split]]
        draws = random_units(list(ranking.layers), k, self.random_draws, seed)
        if draws:
            kinds[f"random-{k}"] = [
                [_left(study, ranking, units, f"random-{k}/{number}")] * splits
                for number, units in enumerate(draws, start=1)
            ]
        if self.worst:
            kinds[f"worst-{k}"] = [[_left(study, ranking, units[-k:], f"worst-{k}") for units in ranking.by_split]]
        if self.permuted:
            kinds["permuted"] = [[Arm("permuted", study.evaluator.everything, permuted=True)] * splits]
        return kinds

    def _differences(self, study: Study, name: str, by_kind: dict[str, list[Evaluation]]) -> list[Fall]:
        """Every removal against none, and the top k against as many random ones."""
        top, random = f"top-{self.top_k}", f"random-{self.top_k}"
        pairs = [(kind, "none") for kind in by_kind if kind not in ("none", "permuted")]
        pairs += [(top, random)] if random in by_kind else []
        found = []
        for kind, against in pairs:
            difference = study.difference(by_kind[kind], by_kind[against])
            if difference is not None:
                found.append(Fall(**vars(difference), representation=name, ablation=kind, against=against))
        return found

    def _verdicts(self, differences: Sequence[Fall], drawn: dict[str, list[float]]) -> list[Verdict]:
        """One a representation whose fall is known."""
        known = {(row.representation, row.ablation, row.against): row for row in differences}
        top, random, found = f"top-{self.top_k}", f"random-{self.top_k}", []
        for name, changes in drawn.items():
            fall = known.get((name, top, "none"))
            if fall is not None:
                beside = as_t(known.get((name, top, random)))
                found.append(verdict(name, as_t(fall), fall.holm, beside, changes, self.margin))
        return found

    def _described(self, study: Study, name: str, arms: Sequence[Sequence[Arm]]) -> Taken:
        kind = name.split("-", 1)[0]
        if kind == "random":
            return Taken(name, kind, draws=[_gone(study, draw[0]) for draw in arms])
        by_split = [_gone(study, arm) for arm in arms[0]]
        return Taken(name, kind, by_split[0], by_split)


def _changes(study: Study, everything: Evaluation, draws: Sequence[Evaluation]) -> list[float]:
    """Test accuracy under every draw minus that of all layers; those that failed are left out."""
    changes = (study.change([one], [everything]) for one in draws)
    return [one for one in changes if not math.isnan(one)]


def _left(study: Study, ranking: Ranking, units: Sequence[str], name: str) -> Arm:
    return study.without(ranking.layers_of(units), name)


def _gone(study: Study, arm: Arm) -> list[str]:
    return [layer for layer in study.zoo.layers if layer not in set(arm.layers)]
