"""Factor classifiers that no gradient trains: their networks take in all training adapters at once."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lorabench.classifiers.base import ClassifierFactory, OnEpoch, Train
from lorabench.classifiers.building import build
from lorabench.classifiers.choosing import in_one_epoch
from lorabench.classifiers.factors import FactorClassifier
from lorabench.classifiers.problem import Fitted, Member, Problem

__all__ = ["AtOnce", "Keeper"]

T = TypeVar("T")
_CHUNK = 128  # adapters that are looked at in one go


class Keeper(nn.Module):
    """A network without weights: what it keeps of the training adapters are its buffers, and so its state dict."""

    @abstractmethod
    def learn(self, x: Float[Tensor, "n f"], y: Int64[Tensor, " n"]) -> None:
        """Keep what is needed of the training adapters and their classes."""

    def keep(self, name: str, values: Tensor) -> None:
        """Keep a tensor under a name."""
        self.register_buffer(name, values)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        for name in dict(self.named_buffers()):  # as long as what was kept, not as before it
            self.keep(name, torch.empty_like(state_dict[f"{prefix}{name}"], device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *more)


class AtOnce(FactorClassifier):
    """A classifier whose network is a `Keeper`. Nothing is drawn: members that read the same are the same.

    A rule that looks at each training adapter as a neighbour of itself names it right, so training accuracies say
    nothing. The settings of the optimiser are of no account.
    """

    @classmethod
    def fit_members(
        cls,
        train: Train,
        factory: ClassifierFactory,
        problem: Problem,
        members: Sequence[Member],
        finish: Callable[[int, Fitted], T],
        on_epoch: OnEpoch | None = None,
    ) -> list[T]:
        """See `Classifier.fit_members`; the engine is not asked.

        Raises:
            LorabenchError: the factors lie in a file, since memory is too small for them.
        """
        del train
        shared: dict[tuple[int, int], Fitted] = {}
        results = []
        for number, member in enumerate(members):
            data = member.features, member.labels
            if data not in shared:
                shared[data] = _fitted(factory, problem, member)
            results.append(finish(number, replace(shared[data], member=member)))
            if on_epoch is not None:
                on_epoch(0, 1)
        return results


def _fitted(factory: ClassifierFactory, problem: Problem, member: Member) -> Fitted:
    network: Any = build(factory, problem, member).network.to(problem.inputs.device)
    x = problem.features(member.features)
    with torch.no_grad():
        network.learn(x[problem.train], problem.labels[member.labels, problem.train])
        logits = torch.cat([network(part) for part in torch.split(x, _CHUNK)]).cpu()
    return in_one_epoch(member, network.state_dict(), logits, problem)
