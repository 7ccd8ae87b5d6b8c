"""Members whose classifier is chosen on the validation rows, from the same list for every representation."""

import functools
import importlib
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lorabench.classifiers.base import ClassifierFactory
from lorabench.classifiers.members import Fitted, OnEpoch, as_it_is
from lorabench.classifiers.metrics import accuracy
from lorabench.classifiers.mlp import MLP
from lorabench.classifiers.problem import Member, Problem
from lorabench.options import Above, Filled

__all__ = ["CANDIDATES", "Tuned", "fit_tuned", "tunes"]

T = TypeVar("T")
_Fit = TypeVar("_Fit", bound=Callable[..., Any])

_LOG = logging.getLogger(__name__)

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
    """The candidate with the highest validation accuracy, of equal ones the first: `CANDIDATES`, then MLPs.

    By itself it is one of these MLPs; `fit_tuned` trains them all and chooses. The list is the same for every
    representation and feature set, so that each has the same budget, and test rows choose nothing.

    Args:
        rates: learning rates of the MLPs.
        **arguments: those of `MLP`.

    Raises:
        LorabenchError: an argument is out of range.
    """

    def __init__(self, rates: Annotated[list[float | int], Above(0), Filled()], **arguments: Any) -> None:
        super().__init__(**arguments, rates=rates)


def fit_tuned(
    fit: Callable[..., list[Fitted]],
    factory: ClassifierFactory,
    problem: Problem,
    members: Sequence[Member],
    finish: Callable[[int, Fitted], T],
    on_epoch: OnEpoch | None = None,
) -> list[T]:
    """What `finish` makes of every member's best candidate, in order.

    Scikit-learn's candidates have no seed: members that read the same features and labels share them.

    Args:
        fit: trains members of a factory, as `fit_members` does.
        factory: of `Tuned`.
        problem: features, labels and rows.
        members: all that are wanted.
        finish: called with a member's number and the best of its candidates, as soon as it is known.
        on_epoch: called once a member that is finished.
    """
    rates: list[float] = factory(in_features=1, n_classes=2, seed=0).hparams["rates"]
    by_rate = [fit(functools.partial(factory, learning_rate=rate), problem, members, as_it_is) for rate in rates]
    names = [*CANDIDATES, *(f"mlp lr={rate:g}" for rate in rates)]
    of_data: dict[tuple[int, int], list[Fitted]] = {}
    results: list[T] = []
    chosen: Counter[str] = Counter()
    for number, member in enumerate(members):
        data = (member.features, member.labels)
        if data not in of_data:
            of_data[data] = [_fitted(*one, problem, member) for one in CANDIDATES.values()]
        candidates = [*of_data[data], *(fitted[number] for fitted in by_rate)]
        best = int(np.argmax([_validation(one, problem) for one in candidates]))
        chosen[names[best]] += 1
        results.append(finish(number, replace(candidates[best], member=member)))
        if on_epoch is not None:
            on_epoch(0, 1)
    _LOG.info("chosen on validation: %s", ", ".join(f"{name} {count}" for name, count in chosen.most_common()))
    return results


def tunes(fit: _Fit) -> _Fit:
    """An engine's `fit`, which for a factory of `Tuned` trains the candidates and chooses (`fit_tuned`)."""

    @functools.wraps(fit)
    def chooses(engine: Any, factory: ClassifierFactory, *arguments: Any, **named: Any) -> Any:
        train = functools.partial(fit, engine)
        tuned = isinstance(factory(in_features=1, n_classes=2, seed=0), Tuned)
        return fit_tuned(train, factory, *arguments, **named) if tuned else train(factory, *arguments, **named)

    return cast("_Fit", chooses)


def _fitted(path: str, arguments: Mapping[str, Any], problem: Problem, member: Member) -> Fitted:
    """A classifier of scikit-learn as a member of one epoch."""
    from sklearn.exceptions import ConvergenceWarning

    features, labels = problem.features(member.features).cpu().numpy(), problem.labels[member.labels].cpu()
    train, val = problem.train.cpu(), problem.val.cpu()
    if "n_neighbors" in arguments:
        arguments = {**arguments, "n_neighbors": min(arguments["n_neighbors"], len(train))}
    module, name = path.rsplit(".", 1)
    model = getattr(importlib.import_module(module), name)(**arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of steps is its budget
        model.fit(features[train], labels[train].numpy())
    logits = _logits(model, features, problem.n_classes)
    losses = {
        f"{part}_loss": float(F.cross_entropy(logits[rows], labels[rows]))
        for part, rows in (("train", train), ("val", val))
    }
    fitted = Fitted(member, {}, logits, 0)
    return replace(fitted, history=[{**losses, "val_accuracy": _validation(fitted, problem), "learning_rate": 0.0}])


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


def _validation(fitted: Fitted, problem: Problem) -> float:
    """Validation accuracy; −1 of a member that failed."""
    if fitted.error is not None:
        return -1.0
    rows, labels = problem.val.cpu(), problem.labels[fitted.member.labels].cpu()
    return float(accuracy(fitted.logits[rows], labels[rows], problem.n_classes))
