"""Members from a factory: which class it makes, and what of a problem that class asks for."""

import functools
from typing import Any

import torch

from lorabench.classifiers.base import Classifier, ClassifierFactory
from lorabench.classifiers.problem import Member, Problem
from lorabench.zoo import ModuleShape

__all__ = ["build", "class_of", "probe", "settings_of"]

_SMALLEST = Problem(
    torch.zeros(1, 2), torch.zeros(1, 1, dtype=torch.int64), torch.arange(1), torch.arange(1), 2,
    shapes=((ModuleShape(1, 1, 1),),),
)  # fmt: skip


def class_of(factory: ClassifierFactory) -> type[Classifier]:
    """The class that a factory makes: it is that class, or a `functools.partial` of it.

    >>> from lorabench.classifiers.linear import Linear
    >>> class_of(functools.partial(Linear, learning_rate=0.1)).__name__
    'Linear'
    """
    while isinstance(factory, functools.partial):
        factory = factory.func
    return factory if isinstance(factory, type) else type(factory(in_features=2, n_classes=2, seed=0))


def settings_of(factory: ClassifierFactory) -> dict[str, Any]:
    """The arguments that a factory has for its class already.

    >>> from lorabench.classifiers.linear import Linear
    >>> settings_of(functools.partial(functools.partial(Linear, batch_size=8), learning_rate=0.1))
    {'batch_size': 8, 'learning_rate': 0.1}
    """
    return dict(factory.keywords) if isinstance(factory, functools.partial) else {}


def build(factory: ClassifierFactory, problem: Problem, member: Member) -> Classifier:
    """The untrained member, in the type of the problem's numbers.

    Raises:
        LorabenchError: the class reads what the problem does not have.
    """
    sizes = class_of(factory).sizes(problem, member.features)
    return factory(**sizes, seed=member.seed).to(problem.inputs.dtype)


def probe(factory: ClassifierFactory) -> Classifier:
    """A member of the smallest size, which says what its class and its settings are.

    Raises:
        LorabenchError: a setting is not allowed.
    """
    return build(factory, _SMALLEST, Member(0))
