"""Members whose classifier is chosen on the validation rows, from the same list for every representation."""

import importlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lorabench.classifiers.choosing import in_one_epoch
from lorabench.classifiers.mlp import MLP
from lorabench.classifiers.problem import Fitted, Member, Problem

__all__ = ["CANDIDATES", "Tuned"]

CANDIDATES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"logistic C={c:g}": ("sklearn.linear_model.LogisticRegression", {"C": c, "max_iter": 200})
        for c in (0.001, 0.01, 0.1, 1.0)
    },
    **{f"nearest {k}": ("sklearn.neighbors.KNeighborsClassifier", {"n_neighbors": k}) for k in (1, 5, 15)},
    **{f"svm C={c:g}": ("sklearn.svm.SVC", {"C": c, "break_ties": True}) for c in (1.0, 10.0, 100.0)},
}
"""Scikit-learn's, simple ones first: what the log calls them, and class and arguments of each."""

_ABSENT = -1e4  # the logit of a class that no training row has


class Tuned(MLP):
    """The candidate with the highest validation accuracy, of equal ones the first: `CANDIDATES`, then the grid's MLPs.

    The list is the same for every representation and feature set, so that each has the same budget, and test rows
    choose nothing (`lorabench.classifiers.choosing`).
    """

    @property
    def tried(self) -> int:
        """Scikit-learn's candidates, and the grid's."""
        return len(CANDIDATES) + self.tries

    @classmethod
    def beside(cls, problem: Problem, member: Member) -> dict[str, Fitted]:
        """Scikit-learn's candidates, fitted."""
        return {name: _fitted(*one, problem, member) for name, one in CANDIDATES.items()}


def _fitted(path: str, arguments: Mapping[str, Any], problem: Problem, member: Member) -> Fitted:
    """A classifier of scikit-learn as a member of one epoch."""
    from sklearn.exceptions import ConvergenceWarning

    features, labels = problem.features(member.features).cpu().numpy(), problem.labels[member.labels].cpu()
    train = problem.train.cpu()
    if "n_neighbors" in arguments:
        arguments = {**arguments, "n_neighbors": min(arguments["n_neighbors"], len(train))}
    module, name = path.rsplit(".", 1)
    model = getattr(importlib.import_module(module), name)(**arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of steps is its budget
        model.fit(features[train], labels[train].numpy())
    return in_one_epoch(member, {}, _logits(model, features, problem.n_classes), problem, _kept(model))


def _kept(model: Any) -> int:
    """Numbers in what a fitted classifier keeps: coefficients, support vectors, or training rows with their labels."""
    if hasattr(model, "n_samples_fit_"):
        return int(model.n_samples_fit_ * (model.n_features_in_ + 1))
    names = ("coef_",) if hasattr(model, "coef_") else ("support_vectors_", "dual_coef_")
    return sum(int(np.size(getattr(model, name))) for name in (*names, "intercept_"))


def _logits(model: Any, features: Float[np.ndarray, "n f"], n_classes: int) -> Float[Tensor, "n classes"]:
    """Log-probabilities, or an SVM's decision values; whose largest is the class that the model names."""
    if hasattr(model, "predict_proba"):
        values = np.log(np.maximum(model.predict_proba(features), 1e-12))
    else:
        values = model.decision_function(features)
    if values.ndim == 1:  # two classes have one decision value
        values = np.stack([-values, values], 1)
    logits = torch.full((len(features), n_classes), _ABSENT)
    logits[:, torch.from_numpy(model.classes_)] = torch.from_numpy(values).float()
    return logits
