"""Which layers say the same: hierarchical clustering of what each alone predicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Float64

from lorabench.ablation.phase import RankingAblation
from lorabench.ablation.ranking import Ranking
from lorabench.ablation.study import Findings, Study, good_seeds
from lorabench.errors import LorabenchError
from lorabench.findings import RankedFinding
from lorabench.options import AtLeast, AtMost

__all__ = ["Clusters", "ClustersFinding", "Tree", "disagreement"]


@dataclass(frozen=True)
class Tree:
    """Layers that answer alike.

    Attributes:
        layers: their names.
        order: numbers of the layers, as leaves stand in the tree.
        linkage: scipy's, [layers - 1, 4].
        cluster: of each layer.
        distance: between any two, [layers, layers].
        threshold: at which clusters are cut.
        between_seeds: mean distance between two seeds of one layer; None with one seed.
    """

    layers: list[str]
    order: list[int]
    linkage: list[list[float]]
    cluster: list[int]
    distance: list[list[float]]
    threshold: float
    between_seeds: float | None


@dataclass(frozen=True)
class ClustersFinding(RankedFinding):
    """The tree of the layers."""

    clusters: Tree


def disagreement(predicted: Sequence[np.ndarray], n_classes: int) -> Float64[np.ndarray, "layers layers"]:
    """How often two layers name different classes, over adapters and pairs of different seeds, [L, L].

    Entry (i, j) is the share of (adapter, seed of i, other seed of j) whose predictions differ; the diagonal is how
    often two seeds of one layer differ, which no other layer can be expected to fall below. With one seed the pairs
    are of that seed with itself and the diagonal is zero.

    Args:
        predicted: classes that the members of each layer predict, L times [seeds, adapters].
        n_classes: number of classes.
    """
    onehot = np.eye(n_classes, dtype=np.float32)
    votes = np.stack([onehot[one] for one in predicted])  # layers, seeds, adapters, classes
    layers, seeds, adapters, _ = votes.shape
    total = votes.sum(1).reshape(layers, -1)
    same = (total @ total.T).astype(np.float64)
    pairs = seeds * seeds
    if seeds > 1:
        flat = votes.reshape(layers, seeds, -1)
        same -= np.einsum("isx,jsx->ij", flat, flat, optimize=True)
        pairs -= seeds
    return np.asarray(1 - same / (pairs * adapters))


@dataclass
class Clusters(RankingAblation):
    """Average-linkage clustering (UPGMA; scipy) of the layers by how often their predictions differ.

    Validation and test adapters are looked at, their labels are not.

    Args:
        threshold: clusters are cut at this disagreement; null: what two seeds of one layer have on average, so that
            a cluster's layers differ no more than a layer differs from itself.
    """

    threshold: Annotated[float | int | None, AtLeast(0), AtMost(1)]
    BASELINE_ALONE: ClassVar[bool] = True

    def run(self, study: Study) -> Findings:
        """One row for all layers, and the tree."""
        study.check_one_split(self.name)
        if self.threshold is None and len(study.evaluator.seeds) < 2:
            raise LorabenchError(
                "ablation.threshold=null cuts the tree at the disagreement of two seeds of one layer: "
                "take num_runs=2 or more, or give ablation.threshold"
            )
        if len(study.zoo.layers) < 2:
            raise LorabenchError(f"ablation={self.name} needs at least two layers, and {study.zoo.name} has one")
        ranking = study.rank(self.rank_on)
        tree = self._tree(ranking, study.evaluator.n_classes)
        return study.baseline_findings(ClustersFinding(**vars(ranking.found(self.name)), clusters=tree))

    def _tree(self, ranking: Ranking, n_classes: int) -> Tree:
        from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
        from scipy.spatial.distance import squareform

        good, _ = good_seeds(ranking.evaluations)
        said = [np.concatenate([one.val[good], one.test[good]], 1) for one in ranking.evaluations]
        distance = disagreement(said, n_classes)
        own = float(distance.diagonal().mean()) if len(good) > 1 else None
        threshold = own if self.threshold is None else float(self.threshold)
        if threshold is None:
            raise LorabenchError("ablation.threshold=null: one seed alone has trained on every layer; give a threshold")
        np.fill_diagonal(distance, 0.0)
        tree = linkage(squareform(distance, checks=False), "average")
        return Tree(
            layers=[one.arm.name for one in ranking.evaluations],
            order=leaves_list(tree).tolist(),
            linkage=tree.tolist(),
            cluster=fcluster(tree, threshold, "distance").tolist(),
            distance=distance.tolist(),
            threshold=threshold,
            between_seeds=own,
        )
