"""Numbers of test adapters that no classifier has said, told of by what tells of right and wrong.

`measured` and `Study.difference` know means over members, splits and adapters, their intervals and paired p. A score
from 0 to 1 of every adapter, such as a reciprocal rank, is what "right" is to them; features have no members, so that
there is one row a split.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64, Int64

from lorabench.ablation.study import Study
from lorabench.classifiers import class_of
from lorabench.classifiers.factors import FactorClassifier
from lorabench.evaluation import Arm, Evaluation, merged
from lorabench.representations import Representation
from lorabench.results import Run
from lorabench.zoo import Labels

__all__ = ["asked", "evaluated_features", "leaf_groups", "scored"]


def evaluated_features(study: Study, name: str, representation: Representation) -> Evaluation:
    """`Study.evaluate` of all layers; of a method that reads factors only that it has no features.

    Args:
        study: trains, and knows who reads what.
        name: what results call the representation, or the method.
        representation: makes the features.
    """
    if not issubclass(class_of(study.evaluators_of(name)[0].factory), FactorClassifier):
        return study.evaluate(name, representation, [study.all_layers()])[0]
    why = f"{name} is a classifier of factors: it names classes, and has no features to be compared"
    return Evaluation(name, study.all_layers(), error=why)


def leaf_groups(labels: Labels) -> Int64[np.ndarray, " n"]:
    """What is resampled as one: the group where it holds whole leaves, else the leaf."""
    if labels.group is None:
        return labels.leaf
    pairs = np.unique(np.stack([labels.leaf, labels.group]), axis=1).shape[1]
    return labels.group if pairs == len(np.unique(labels.leaf)) else labels.leaf


def asked(study: Study, rows: Sequence[Int64[np.ndarray, " _q"]]) -> Study:
    """The study of one member a split, whose test adapters are `rows`, with leaves as groups.

    Args:
        study: of all test adapters.
        rows: a split's adapters that have a score, ascending.
    """
    zoo = replace(study.zoo, labels=replace(study.zoo.labels, group=leaf_groups(study.zoo.labels)))
    own = [
        replace(one, zoo=zoo, split=replace(one.split, test=test), seeds=one.seeds[:1])
        for one, test in zip(study.evaluators, rows, strict=True)
    ]
    return study.by(own)


def scored(study: Study, name: str, scores: Sequence[Float64[np.ndarray, " _q"]]) -> Evaluation:
    """Scores as an evaluation of one member a split.

    Args:
        study: that of `asked`.
        name: whose scores they are.
        scores: of each split's test adapters, from 0 to 1.
    """
    found = []
    for evaluator, own in zip(study.evaluators, scores, strict=True):
        val, test = len(evaluator.split.val), len(evaluator.split.test)
        found.append(
            Evaluation(
                name,
                Arm("none", evaluator.everything),
                runs=(Run(name, "none", evaluator.seeds[0]),),
                val=np.full((1, val), -1),
                test=np.full((1, test), -1),
                test_labels=np.zeros((1, test), np.int64),  # every one of them counts
                val_correct=np.zeros((1, val), bool),
                test_correct=own[None].astype(np.float64),
            )
        )
    return merged(found, study.splits)
