"""Do different concepts live in different layers?"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from lorabench.ablation.phase import RankingAblation
from lorabench.ablation.ranking import Ranking
from lorabench.ablation.statistics import kendall_tau
from lorabench.ablation.study import Findings, Study, good_seeds
from lorabench.adapters.places import by_depth
from lorabench.findings import Number, RankedFinding

__all__ = ["Best", "ByClass", "Concepts", "ConceptsFinding"]


@dataclass(frozen=True)
class Best:
    """The layer with the best validation recall of a class, that recall, and the layer's test recall."""

    layer: str
    val_recall: Number
    recall: Number


@dataclass(frozen=True)
class ByClass:
    """What each layer alone finds of each class.

    Attributes:
        classes, layers: names.
        recall: test recall of each class by each layer, [layers, classes]; NaN of a class without test adapters.
        best: class -> its best layer.
        tau_between_classes, tau_within_classes: agreement of the layers' order between halves (`halves_agreement`).
    """

    classes: list[str]
    layers: list[str]
    recall: list[list[Number]]
    best: dict[str, Best]
    tau_between_classes: float | None
    tau_within_classes: float | None


@dataclass(frozen=True)
class ConceptsFinding(RankedFinding):
    """The classes by layer."""

    concepts: ByClass


@dataclass
class Concepts(RankingAblation):
    """Test accuracy of every class by layer, and whether the classes' rankings of the layers differ.

    If all concepts lived in the same layers, two classes would rank the layers as alike as two halves of one class do.
    So every class's test adapters are halved at random, many times, and the mean Kendall τ between halves of two
    classes is put beside that between the two halves of one: what speaks for layers of their own is the first below
    the second. Both compare disjoint adapters, as many of them, so chance lowers both alike.

    The best layer of a class is the one with the highest validation accuracy on it; what is told of it is the test
    accuracy.
    """

    BASELINE_ALONE: ClassVar[bool] = True

    def run(self, study: Study) -> Findings:
        """One row for all layers, and the classes by layer."""
        study.check_one_split(self.name)
        ranking = study.rank(self.rank_on)
        by_class = _by_class(study, ranking)
        return study.baseline_findings(ConceptsFinding(**vars(ranking.found(self.name)), concepts=by_class))


def _by_class(study: Study, ranking: Ranking) -> ByClass:
    order = by_depth([one.arm.name for one in ranking.evaluations])
    by_name = {one.arm.name: one for one in ranking.evaluations}
    labels, split, n_classes = study.evaluator.labels, study.evaluator.split, len(study.classes)
    good, _ = good_seeds(ranking.evaluations)
    test, val = (
        np.stack([getattr(by_name[layer], f"{part}_correct")[good].mean(0) for layer in order])
        for part in ("test", "val")
    )
    recall, chosen_by = _recall(test, labels[split.test], n_classes), _recall(val, labels[split.val], n_classes)
    between, within = halves_agreement(test, labels[split.test], n_classes)
    best = {
        study.classes[c]: Best(order[at], float(chosen_by[at, c]), float(recall[at, c]))
        for c in range(n_classes)
        if not np.isnan(chosen_by[:, c]).any()
        for at in [int(chosen_by[:, c].argmax())]
    }
    return ByClass(list(study.classes), list(order), recall.tolist(), best, between, within)


def halves_agreement(
    correct: Float64[np.ndarray, "layers n"], labels: Int64[np.ndarray, " n"], n_classes: int, draws: int = 50
) -> tuple[float | None, float | None]:
    """Mean Kendall τ-b of the layers' order between halves of two classes, and between the two halves of one.

    None where no class has two adapters, or no pair of halves has an order.

    Args:
        correct: how often each layer names each adapter right, over seeds.
        labels: classes of the adapters.
        n_classes: number of classes.
        draws: random halvings.
    """
    rng = np.random.default_rng(0)
    rows = [own for c in range(n_classes) if len(own := np.flatnonzero(labels == c)) > 1]
    between, within = [], []
    for _ in range(draws if rows else 0):
        halves = [np.array_split(rng.permutation(own), 2) for own in rows]
        profiles = np.stack([correct[:, half].mean(1) for side in (0, 1) for half in (pair[side] for pair in halves)])
        tau = kendall_tau(profiles)[: len(rows), len(rows) :]
        within.append(tau.diagonal())
        between.append(tau[~np.eye(len(rows), dtype=bool)])
    found = []
    for taus in (between, within):
        known = np.concatenate(taus) if taus else np.empty(0)
        known = known[~np.isnan(known)]
        found.append(float(known.mean()) if known.size else None)
    return found[0], found[1]


def _recall(
    correct: Float64[np.ndarray, "layers n"], labels: Int64[np.ndarray, " n"], n_classes: int
) -> Float64[np.ndarray, "layers classes"]:
    """Share of every class that is named right; NaN for a class without adapters."""
    member = np.eye(n_classes)[labels]
    with np.errstate(invalid="ignore"):  # 0 / 0 of an absent class is the NaN that is promised
        return np.asarray(correct @ member / member.sum(0))
