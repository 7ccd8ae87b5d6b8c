"""Members whose configuration is chosen on the validation rows: as many tries for every classifier."""

import functools
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lorabench.classifiers.base import Classifier, ClassifierFactory, OnEpoch, Train
from lorabench.classifiers.building import class_of, probe
from lorabench.classifiers.members import as_it_is
from lorabench.classifiers.metrics import accuracy
from lorabench.classifiers.problem import Fitted, Member, Problem
from lorabench.errors import LorabenchError
from lorabench.options import check_arguments

__all__ = ["as_the_class_says", "configurations", "fit_chosen", "in_one_epoch", "validation_accuracy"]

T = TypeVar("T")
_Fit = TypeVar("_Fit", bound=Callable[..., Any])

_LOG = logging.getLogger(__name__)


def configurations(model: Classifier) -> list[dict[str, Any]]:
    """What every try changes of a classifier's settings: nothing first, then the grid's combinations in order.

    The last setting of the grid changes fastest. A combination that is what the settings are already is left out.

    Raises:
        LorabenchError: the grid names what the classifier does not have, a value is not allowed, or there are fewer
            combinations than tries.
    """
    name, settings = type(model).__name__, dict(model.hparams)
    for option, values in model.grid.items():
        if option not in settings or option in ("grid", "tries", "seed", "in_features", "n_classes", "shapes"):
            raise LorabenchError(f"classifier.grid={option}: {name} has no such setting to try values of")
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise LorabenchError(f"classifier.grid.{option}={values}: a list of values is needed")
        for value in values:
            check_arguments(type(model), {option: value}, "classifier.grid.")
    tried = [dict(zip(model.grid, values, strict=True)) for values in itertools.product(*model.grid.values())]
    as_they_are = {option: settings[option] for option in model.grid}
    found = [{}, *(one for one in tried if one != as_they_are)]
    if model.tries > len(found):
        raise LorabenchError(
            f"classifier.tries={model.tries}: the grid of {name} makes {len(found)} configurations with its "
            "settings as they are; give classifier.grid more values, or fewer tries"
        )
    return found[: model.tries]


def fit_chosen(
    train: Train,
    factory: ClassifierFactory,
    problem: Problem,
    members: Sequence[Member],
    finish: Callable[[int, Fitted], T],
    on_epoch: OnEpoch | None = None,
) -> list[T]:
    """What `finish` makes of every member, in order, each under the configuration of the highest validation accuracy.

    Of equal ones the first is kept: what the class holds beside its grid (`Classifier.beside`), then its
    `configurations`. Test rows choose nothing. A single configuration is trained as it is.

    Args:
        train: the engine's way to train by gradient.
        factory: makes members.
        problem: features, labels and rows.
        members: all that are wanted.
        finish: called with a member's number and the member, as soon as its configuration is known.
        on_epoch: called as members go on; where there are several configurations, once a member.
    """
    kind, tries = class_of(factory), configurations(probe(factory))
    best: dict[int, Fitted] = {}
    names: dict[int, str] = {}

    def keep(name: str, settings: dict[str, Any], number: int, fitted: Fitted) -> None:
        if number not in best or validation_accuracy(fitted, problem) > validation_accuracy(best[number], problem):
            best[number], names[number] = replace(as_it_is(number, fitted), settings=settings), name

    shared: dict[tuple[int, int], dict[str, Fitted]] = {}  # what is beside the grid has no seed
    for number, member in enumerate(members):
        data = member.features, member.labels
        if data not in shared:
            shared[data] = kind.beside(problem, member)
        for name, fitted in shared[data].items():
            keep(name, {"candidate": name}, number, fitted)
    if len(tries) == 1 and not best:
        return kind.fit_members(train, factory, problem, members, finish, on_epoch)
    for settings in tries:
        name = " ".join(f"{option}={value}" for option, value in settings.items()) or "as it is"
        changed = functools.partial(factory, **settings)
        kind.fit_members(train, changed, problem, members, functools.partial(keep, name, settings))
    results = []
    for number, member in enumerate(members):
        results.append(finish(number, replace(best.pop(number), member=member)))
        if on_epoch is not None:
            on_epoch(0, 1)
    counted = Counter(names.values()).most_common()
    _LOG.info("chosen on validation: %s", ", ".join(f"{name} {count}" for name, count in counted))
    return results


def as_the_class_says(fit: _Fit) -> _Fit:
    """An engine's `fit`, which leaves to the classifier's class how its members are fitted and chosen."""

    @functools.wraps(fit)
    def chosen(engine: Any, *arguments: Any, **named: Any) -> Any:
        return fit_chosen(functools.partial(fit, engine), *arguments, **named)

    return cast("_Fit", chosen)


def in_one_epoch(
    member: Member, state: dict[str, Tensor], logits: Float[Tensor, "n classes"], problem: Problem, kept: int = 0
) -> Fitted:
    """A member that was fitted without steps, as one of a single epoch; `kept`: as `Fitted` has it."""
    labels = problem.labels[member.labels].cpu()
    found = Fitted(member, state, logits, 0, kept=kept)
    losses = {
        f"{part}_loss": float(F.cross_entropy(logits[rows.cpu()], labels[rows.cpu()]))
        for part, rows in (("train", problem.train), ("val", problem.val))
    }
    found.history = [{**losses, "val_accuracy": validation_accuracy(found, problem), "learning_rate": 0.0}]
    return found


def validation_accuracy(fitted: Fitted, problem: Problem) -> float:
    """Validation accuracy; −1 of a member that failed."""
    if fitted.error is not None:
        return -1.0
    rows, labels = problem.val.cpu(), problem.labels[fitted.member.labels].cpu()
    return float(accuracy(fitted.logits[rows], labels[rows], problem.n_classes))
