"""Which of these adapters was trained on this concept: ranks of adapters of leaves that training has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from lorabench.ablation.copies import copied_zoo
from lorabench.ablation.counterparts import called_beside, check_counterpart, check_other, in_other
from lorabench.ablation.first_hit import cosines, first_hits, first_hits_by_chance
from lorabench.ablation.none import Between, compared_with, differences_to
from lorabench.ablation.phase import Ablation
from lorabench.ablation.scored import asked, evaluated_features, scored
from lorabench.ablation.study import Findings, Study, measured, with_holm
from lorabench.errors import LorabenchError
from lorabench.evaluation import Evaluation, Evaluator
from lorabench.evaluation.products import check_products, inner_products
from lorabench.findings import Compared, Finding, Measured, Number
from lorabench.representations import Representation
from lorabench.text import some
from lorabench.zoo import Zoo

__all__ = ["AtRandom", "Retrieval", "RetrievalFinding", "Retrieved"]

_CHANCE = "chance"


@dataclass(frozen=True)
class Retrieved:
    """What a representation finds.

    Attributes:
        representation: its name.
        mrr: mean over queries of 1 / the place of the first adapter of the same leaf.
        hit_1, hit_5: share of the queries where that place is among the first 1 or 5.
        error: why there is nothing of these, or None.
    """

    representation: str
    mrr: Measured | None = None
    hit_1: Measured | None = None
    hit_5: Measured | None = None
    error: str | None = None


@dataclass(frozen=True)
class AtRandom:
    """The same of a random order, exactly, for the same queries and galleries."""

    mrr: Number
    hit_1: Number
    hit_5: Number


@dataclass(frozen=True)
class RetrievalFinding(Finding):
    """Ranks of adapters of the same leaf.

    Attributes:
        gallery: what is ranked, in words.
        queries: of each split.
        candidates: adapters that are ranked for a query, of each split.
        chance: of a random order.
        rows: a row a representation.
        above: a row a representation: how far its mean reciprocal rank is above that of a random order.
        against: names of those that the others are compared with.
        between: a row a pair: the difference of their mean reciprocal ranks.
    """

    gallery: str
    queries: list[int]
    candidates: list[int]
    chance: AtRandom
    rows: list[Retrieved]
    above: list[Compared]
    against: list[str]
    between: list[Between]


@dataclass(frozen=True)
class _Task:
    """What is asked of one split.

    Attributes:
        evaluator: whose zoo holds queries and gallery.
        queries: rows of the zoo, ascending.
        gallery: rows of the zoo.
    """

    evaluator: Evaluator
    queries: Int64[np.ndarray, " q"]
    gallery: Int64[np.ndarray, " g"]

    @property
    def candidate(self) -> Bool[np.ndarray, "q g"]:
        """Whether they are two adapters, and not one; made anew each time, as splits may be many."""
        return np.asarray(self.queries[:, None] != self.gallery)

    @property
    def relevant(self) -> Bool[np.ndarray, "q g"]:
        """Whether they are two adapters of one leaf."""
        leaf = self.evaluator.zoo.labels.leaf
        return np.asarray((leaf[self.queries][:, None] == leaf[self.gallery]) & self.candidate)

    def hits(self, name: str, representation: Representation) -> Float64[np.ndarray, "q 3"]:
        """`first_hits` of every query, by the cosine of features."""
        rows = np.unique(np.concatenate([self.queries, self.gallery]))
        similar = cosines(inner_products(self.evaluator, name, representation, rows))
        of_both = np.ix_(np.searchsorted(rows, self.queries), np.searchsorted(rows, self.gallery))
        return first_hits(similar[of_both], self.relevant, self.candidate)

    def by_chance(self) -> Float64[np.ndarray, "q 3"]:
        """`first_hits` of every query, by a random order."""
        return first_hits_by_chance(self.relevant, self.candidate)


@dataclass
class Retrieval(Ablation):
    """For each test adapter: which of the others was trained on the same leaf, by the cosine of features?

    Features are those that classifiers take: learned, standardised and clipped by the training rows alone, of all
    layers. A query is a test adapter whose leaf another candidate has, and its candidates are all other test adapters
    of the split; with `other` they are the adapters of the same names in another zoo, made from other starts, and no
    adapter of the zoo itself. No leaf of a query has a training adapter. Places of equal cosines are those of a random
    order among them, in the mean, so that features that say nothing read chance.

    Intervals and p are of reciprocal ranks paired by adapter, resampled by leaf. They are the house's of accuracies.

    Args:
        other: a zoo of the same leaves, whose adapters are ranked.
        against: names of the representations that the others are compared with; None: the first.
    """

    other: Any = None  # a Zoo; anything else is told apart below, whatever a configuration says
    against: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_other(self.other)

    def run(self, study: Study) -> Findings:
        """A row a representation for its classifier on all layers, and the ranks.

        Raises:
            LorabenchError: no leaf has two adapters to be found by each other, training has seen a leaf, the other zoo
                is no counterpart, or `against` names what is not evaluated.
        """
        against = compared_with(self.against, study)
        if self.other is not None:
            check_counterpart(study.zoo, self.other)
            _check_leaves(study.zoo, self.other)
        tasks = _tasks(study, self.other)
        queried = asked(study, [task.queries for task in tasks])
        chance = [
            scored(queried, _CHANCE, list(own)) for own in zip(*(task.by_chance().T for task in tasks), strict=True)
        ]
        evaluated: list[Evaluation] = []
        rows: list[Retrieved] = []
        reciprocal: dict[str, Evaluation] = {}
        for name, make in study.chosen.items():
            one = evaluated_features(study, name, make())
            row, found = _retrieved(queried, tasks, one, make())
            evaluated.append(one)
            rows.append(row)
            reciprocal |= {} if found is None else {name: found}
        summary = [study.row([one], study.chosen[one.representation](), "none") for one in evaluated]
        finding = RetrievalFinding(
            self.name,
            gallery="the other test adapters" if self.other is None else _counterparts(study.zoo, self.other),
            queries=[len(task.queries) for task in tasks],
            candidates=[int(task.candidate.sum(1).max()) for task in tasks],
            chance=AtRandom(*(_mean(queried, one) for one in chance)),
            rows=rows,
            above=_above(queried, reciprocal, chance[0]),
            against=against,
            between=_between(queried, reciprocal, against),
        )
        return Findings(study.runs(evaluated), summary, finding)


def _tasks(study: Study, other: Zoo | None) -> list[_Task]:
    """Queries and gallery of every split.

    With another zoo all splits have one zoo, with the counterparts of all their test adapters behind it, so that a
    representation that learns nothing makes their features once.

    Raises:
        LorabenchError: there is no query, its leaf was trained on, or there are too many for the memory.
    """
    zoo, tests = study.zoo, [one.split.test for one in study.evaluators]
    if other is None:
        own = [(one, test, test) for one, test in zip(study.evaluators, tests, strict=True)]
    else:
        there = np.isin(zoo.labels.adapters, other.labels.adapters)
        tests = [test[there[test]] for test in tests]
        rows = np.unique(np.concatenate(tests))
        if not all(map(len, tests)):
            _refuse_single(zoo, other)
        wide = copied_zoo(zoo, rows, {other.name: in_other(zoo.rows(rows), np.random.default_rng(0), other)})
        own = [
            (replace(one.aside(), zoo=wide), test, len(zoo) + np.searchsorted(rows, test))
            for one, test in zip(study.evaluators, tests, strict=True)
        ]
    return [_task(*one) for one in own]


def _task(evaluator: Evaluator, test: Int64[np.ndarray, " t"], gallery: Int64[np.ndarray, " g"]) -> _Task:
    """One split; of its test adapters those are queries whose leaf another candidate has."""
    check_products(len(np.union1d(test, gallery)))
    found = _Task(evaluator, test, gallery).relevant.any(1)
    if not found.any():
        _refuse_single(evaluator.zoo, None)
    _check_unseen(evaluator.zoo, test[found], evaluator.split.train)
    return _Task(evaluator, test[found], gallery)


def _refuse_single(zoo: Zoo, other: Zoo | None) -> None:
    if other is not None:
        raise LorabenchError(
            f"ablation.other: {other.name} has no test adapter of a split by its name; a larger one is needed"
        )
    raise LorabenchError(
        f"ablation=retrieval looks for adapters of one leaf, and no leaf of {zoo.name} has two among a split's test "
        "adapters: give the same leaves, trained by other draws, such as dataset=glyphs_wild "
        "dataset@ablation.other=glyphs_independent ablation.other.training_seed=1, or a data set that has several "
        "adapters a leaf (the column leaf of a folder's labels.csv)"
    )


def _check_leaves(zoo: Zoo, other: Zoo) -> None:
    """Hold the leaves of adapters of one name against each other: they say what is to be found."""
    theirs = other.labels.of_adapters("leaf")
    for adapter, leaf in zoo.labels.of_adapters("leaf").items():
        if theirs.get(adapter, leaf) != leaf:
            raise LorabenchError(
                f"ablation.other: {adapter} was trained on {theirs[adapter]} in {other.name} and on {leaf} in "
                f"{zoo.name}; adapters of one name have one leaf"
            )


def _counterparts(zoo: Zoo, other: Zoo) -> str:
    return f"the same adapters in {called_beside(zoo, other)}"


def _check_unseen(zoo: Zoo, queries: Int64[np.ndarray, " q"], train: Int64[np.ndarray, " t"]) -> None:
    seen = np.intersect1d(zoo.labels.leaf[queries], zoo.labels.leaf[train])
    if len(seen):
        names = some([zoo.labels.leaf_names[code] for code in seen])
        raise LorabenchError(
            f"ablation=retrieval asks of leaves that training has not seen, and there are training adapters of {names}"
            ": give target=category and split.grouped=true, and a data set whose groups hold whole leaves (the column "
            "group of a folder's labels.csv)"
        )


def _retrieved(
    study: Study, tasks: Sequence[_Task], one: Evaluation, representation: Representation
) -> tuple[Retrieved, Evaluation | None]:
    """The row of a representation, and the reciprocal ranks; None of one that failed."""
    name = one.representation
    if not one.runs:
        return Retrieved(name, error=one.error), None
    hits = study.or_why(lambda: [task.hits(name, representation) for task in tasks])
    if isinstance(hits, str):
        return Retrieved(name, error=hits), None
    kinds = [scored(study, name, list(own)) for own in zip(*(own.T for own in hits), strict=True)]
    mrr, hit_1, hit_5 = measured(kinds, study)
    return Retrieved(name, mrr, hit_1, hit_5), kinds[0]


def _mean(study: Study, one: Evaluation) -> float:
    (found,) = measured([one], study)
    return float("nan") if found is None else found.mean


def _above(study: Study, found: dict[str, Evaluation], chance: Evaluation) -> list[Compared]:
    rows = [
        Compared(**vars(difference), representation=name)
        for name, one in found.items()
        if (difference := study.difference([one], [chance])) is not None
    ]
    return with_holm(rows)


def _between(study: Study, found: dict[str, Evaluation], against: Sequence[str]) -> list[Between]:
    rows: list[Between] = []
    for name, one in found.items():
        others = {other: [found[other]] for other in against if other != name and other in found}
        rows += differences_to(study, name, [one], others)
    return with_holm(rows)
