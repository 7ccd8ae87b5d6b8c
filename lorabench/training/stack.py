"""Members trained together, each as it would be alone: what a stack of them holds, and the one loop over epochs."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from lorabench.training.adam import Adam, picked
from lorabench.training.schedule import Schedule

__all__ = ["Course", "Stack", "lost", "train"]


@runtime_checkable
class Course(Protocol):
    """How the training of one member goes.

    Attributes:
        history: a row an epoch: every loss, and the learning rate.
        best_epoch: the one with the lowest validation loss (or what else the schedule judges by), from 0; -1 for none.
        error: why it failed, or None.
    """

    history: list[dict[str, float]]
    best_epoch: int
    error: str | None


One = TypeVar("One", bound=Course)


class Stack(ABC):
    """The members still at work: parameters [members, ...], their optimiser, schedules and best weights.

    Args:
        network: whose structure all have.
        params: stacked parameters; they are moved in place.
        buffers: stacked buffers.
        schedule: of every member.
    """

    def __init__(
        self, network: nn.Module, params: dict[str, Tensor], buffers: dict[str, Tensor], schedule: Schedule
    ) -> None:
        self.params, self.buffers, self.schedule = params, buffers, schedule
        self.device = next(iter(params.values())).device
        self._persistent = [name for name in network.state_dict() if name not in params]
        self.best = {name: value.clone() for name, value in self._state().items()}
        self.adam = Adam(params, schedule.rates)

    @abstractmethod
    def epoch(self, number: int) -> dict[str, Float[Tensor, " members"]]:
        """Steps of every member over its own order of the training rows; the mean losses."""

    @abstractmethod
    def validate(self) -> dict[str, Float[Tensor, " members"]]:
        """What every member is judged by: `val_loss`, and `val_accuracy` where the schedule is on it."""

    def remember(self, improved: Bool[Tensor, " members"]) -> None:
        """Copy the weights of the members that improved."""
        rows = torch.nonzero(improved).flatten().to(self.device)
        for name, value in self._state().items():
            if len(rows) == len(improved):
                self.best[name].copy_(value)
            elif len(rows):
                self.best[name][rows] = value[rows]

    def keep(self, left: Int64[Tensor, " kept"]) -> None:
        """Drop all members but these, and take them in this order."""
        rows = left.to(self.device)
        for group in (self.params, self.buffers, self.best):
            for name in group:  # one tensor at a time: the old one goes before the next is made
                group[name] = picked(group[name], rows)
        self.adam.keep(rows)
        self.schedule.keep(left)

    def _state(self) -> dict[str, Tensor]:
        return {**self.params, **{name: self.buffers[name] for name in self._persistent}}


def train(
    stack: Stack,
    courses: Sequence[One],
    epochs: int,
    close: Callable[[list[int], list[One]], None],
    on_epoch: Callable[[int, int], None] | None = None,
    stopped: Callable[[], bool] = bool,
) -> None:
    """Train every member to its early stop, or its last epoch.

    Args:
        stack: the members.
        courses: of each, in the stack's order; filled in.
        epochs: at most.
        close: takes members that are done, by their places in the stack and their courses; `stack.best` has their
            weights until it returns.
        on_epoch: called after every epoch with its number, from 0, and how many members have just stopped.
        stopped: whether nobody waits any more; asked before every epoch.
    """
    standing = list(courses)
    for epoch in range(epochs):
        if stopped():
            return
        rates = stack.schedule.rates.clone()
        found = {name: value.double().cpu() for name, value in {**stack.epoch(epoch), **stack.validate()}.items()}
        improved, stop = stack.schedule.update(found[f"val_{stack.schedule.on}"])
        stop |= ~torch.isfinite(found["val_loss"])
        stack.remember(improved)
        _record(standing, {**found, "learning_rate": rates}, improved, epoch)
        if epoch + 1 == epochs:
            stop = torch.ones_like(stop)
        done: list[int] = torch.nonzero(stop).flatten().tolist()
        for k in done:
            standing[k].error = lost(standing[k].history)  # what is not finite stops at once
        if done:
            close(done, [standing[k] for k in done])
        if on_epoch is not None:
            on_epoch(epoch, len(done))
        if len(done) == len(standing):
            return
        left = torch.nonzero(~stop).flatten()
        rates = stack.schedule.rates[left]
        if done or (rates.diff() > 0).any():  # neighbours of one learning rate are moved in one go
            left = left[torch.argsort(rates, descending=True, stable=True)]
            stack.keep(left)
            standing = [standing[k] for k in left.tolist()]


def lost(history: Sequence[dict[str, float]]) -> str | None:
    """Why a training with this history failed; None if its validation loss was always finite.

    >>> lost([{"val_loss": 1.0}, {"val_loss": float("nan")}])
    'the validation loss became nan in epoch 1'
    """
    for epoch, row in enumerate(history):
        if not math.isfinite(row["val_loss"]):
            return f"the validation loss became {row['val_loss']} in epoch {epoch}"
    return None


def _record(
    courses: Sequence[Course], columns: dict[str, Tensor], improved: Bool[Tensor, " members"], epoch: int
) -> None:
    rows = {name: values.tolist() for name, values in columns.items()}
    for k, (course, better) in enumerate(zip(courses, improved.tolist(), strict=True)):
        course.history.append({name: values[k] for name, values in rows.items()})
        if better:
            course.best_epoch = epoch
