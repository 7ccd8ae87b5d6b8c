"""Do different concepts live in different layers?"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from lorabench.ablation.places import by_depth
from lorabench.ablation.statistics import kendall_tau
from lorabench.ablation.study import Findings, Ranking, Study, good_seeds

__all__ = ["Concepts"]


@dataclass
class Concepts:
    """Test accuracy of every class by layer, and whether the classes' rankings of the layers differ.

    If all concepts lived in the same layers, two classes would rank the layers as two seeds of one class do. So the
    mean Kendall τ between classes is put beside the mean τ between seeds of one class: the first below the second
    is what speaks for layers of their own.

    Args:
        baseline: name of the representation that reads the layers.
        rank_on: val, or test for the published protocol.
        name: what results call the phase.
    """

    baseline: str | dict[str, Any]
    rank_on: str
    name: str = "concepts"

    def run(self, study: Study) -> Findings:
        """One row for all layers, and the classes by layer."""
        ranking = study.rank(self.rank_on)
        name, make = study.baseline
        representation = make()
        everything = study.evaluate(name, representation, [study.all_layers()])
        data = {"name": self.name, **ranking.as_data(), "concepts": _by_class(study, ranking)}
        return Findings(study.runs(everything), [study.row(everything, representation, "none")], data)


def _by_class(study: Study, ranking: Ranking) -> dict[str, Any]:
    order = by_depth([one.arm.name for one in ranking.evaluations])
    by_name = {one.arm.name: one for one in ranking.evaluations}
    parts = study.evaluator.split
    labels = study.evaluator.labels
    n_classes = len(study.classes)
    good, _ = good_seeds(ranking.evaluations)
    found, chosen_by = (
        np.stack([_recall(getattr(by_name[layer], f"{part}_correct")[good], labels[rows], n_classes)
                  for layer in order])
        for part, rows in (("test", parts.test), ("val", parts.val))
    )  # fmt: skip
    between_classes = _mean_tau(found.mean(1).T)
    of_one_class = [tau for c in range(n_classes) if (tau := _mean_tau(found[:, :, c].T)) is not None]
    mean, choice = found.mean(1), chosen_by.mean(1)
    best = {
        study.classes[c]: {"layer": order[at], "val_recall": float(choice[at, c]), "recall": float(mean[at, c])}
        for c in range(n_classes)
        if not np.isnan(choice[:, c]).any()
        for at in [int(choice[:, c].argmax())]
    }
    return {
        "classes": list(study.classes),
        "layers": list(order),
        "recall": mean.tolist(),
        "best": best,
        "tau_between_classes": between_classes,
        "tau_between_seeds": float(np.mean(of_one_class)) if of_one_class else None,
    }


def _recall(
    correct: Bool[np.ndarray, "seeds n"], labels: Int64[np.ndarray, " n"], n_classes: int
) -> Float64[np.ndarray, "seeds classes"]:
    """Share of every class that is named right, by seed; NaN for a class without adapters."""
    member = np.eye(n_classes)[labels]
    with np.errstate(invalid="ignore"):  # 0 / 0 of an absent class is the NaN that is promised
        return np.asarray(correct @ member / member.sum(0))


def _mean_tau(ratings: Float64[np.ndarray, "raters layers"]) -> float | None:
    """Mean Kendall τ-b over pairs of raters that have one."""
    pairs = kendall_tau(ratings)[np.triu_indices(len(ratings), 1)]
    pairs = pairs[~np.isnan(pairs)]
    return float(pairs.mean()) if pairs.size else None
