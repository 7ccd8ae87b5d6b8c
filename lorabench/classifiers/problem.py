"""What members learn from: features side by side, classes, and the rows to train and to stop by."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lorabench.classifiers.streamed import Streamed
from lorabench.errors import LorabenchError
from lorabench.training import epoch_order
from lorabench.zoo import ModuleShape

__all__ = ["Columns", "Fitted", "Member", "Pool", "Problem", "gather"]

_FEW = 1024  # zero columns; a step that goes through fewer loses little by it

Columns = slice | Int64[Tensor, " _f"]
"""Which columns of the joined features a member reads."""


@dataclass(frozen=True)
class Member:
    """One classifier among many.

    Attributes:
        seed: of its initial weights, shuffling and dropout.
        features: number of the feature set that it reads.
        labels: number of the labels that it learns.
    """

    seed: int
    features: int = 0
    labels: int = 0


@dataclass
class Fitted:
    """A trained member.

    Attributes:
        member: which one.
        state: weights of the best epoch by `Classifier.stop_on`, as a `Classifier.network` state dict.
        logits: of every adapter under these weights, [N, classes], on the CPU.
        best_epoch: that epoch, from 0.
        history: a row an epoch: train_loss, val_loss, val_accuracy, learning_rate.
        error: why the member failed, or None.
        settings: what of the classifier's settings the grid has changed, or the candidate that was chosen beside it
            (`lorabench.classifiers.choosing`).
        kept: numbers that a member without a network keeps.
    """

    member: Member
    state: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)
    error: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    kept: int = 0

    @property
    def parameters(self) -> int:
        """Numbers in its weights, or in what it keeps of the training adapters."""
        return self.kept + sum(value.numel() for value in self.state.values())


@dataclass(frozen=True)
class Pool:
    """Training rows that are at hand at one time, and the order in which members of some seeds see them.

    Attributes:
        inputs: features.
        rows: which adapters they are of.
        order: places in `inputs` of the training rows, for every member.
    """

    inputs: Float[Tensor, "p f"]
    rows: Int64[Tensor, " p"]
    order: Int64[Tensor, "members m"]


@dataclass(frozen=True)
class Problem:
    """Everything that members are trained on, on one device.

    Attributes:
        inputs: standardised features of N adapters, side by side, [N, F]; in memory, or in a file.
        labels: one class for every adapter, [targets, N]; a member learns one row of it.
        train: rows to train on.
        val: rows that decide when to stop.
        n_classes: number of classes.
        columns: the feature sets, which may share columns.
        shapes: of every feature set, those of its modules, where features are their factors; else none.
    """

    inputs: Float[Tensor, "n f"] | Streamed
    labels: Int64[Tensor, "targets n"]
    train: Int64[Tensor, " train"]
    val: Int64[Tensor, " val"]
    n_classes: int
    columns: tuple[Columns, ...] = (slice(None),)
    shapes: tuple[tuple[ModuleShape, ...], ...] = ()

    def width(self, number: int) -> int:
        """Length f of feature set `number`."""
        columns = self.columns[number]
        if isinstance(columns, slice):
            return len(range(*columns.indices(self.inputs.shape[1])))
        return len(columns)

    def features(self, number: int) -> Float[Tensor, "n _f"]:
        """Feature set `number` of every adapter; a view where its columns are neighbours.

        Raises:
            LorabenchError: they lie in a file, since memory is too small for them.
        """
        if isinstance(self.inputs, Streamed):
            n, f = self.inputs.shape
            raise LorabenchError(
                f"{f} features of {n} adapters are read from a file, block by block, and what is asked for needs all "
                "of them in memory (classifier=tuned and nearest do). Take classifier=mlp or linear, a shorter "
                "representation, or a larger trainer.memory_gb"
            )
        return self.picked(self.inputs, number)

    def picked(self, inputs: Float[Tensor, "m f"], number: int) -> Float[Tensor, "m _f"]:
        """Feature set `number` of these adapters; a view where its columns are neighbours."""
        columns = self.columns[number]
        return inputs[:, columns] if isinstance(columns, slice) else inputs.index_select(1, columns)

    def of_rows(self, number: int, rows: Int64[Tensor, " m"]) -> Float[Tensor, "m _f"]:
        """Feature set `number` of the adapters `rows`, in their order."""
        if not isinstance(self.inputs, Streamed):
            return self.features(number)[rows]
        found = torch.empty(len(rows), self.width(number), dtype=self.inputs.dtype, device=self.inputs.device)
        for part, among in self.inputs.walk(rows, len(rows)):
            found[among] = self.picked(part, number)
        return found

    def varying(self, number: int) -> Int64[Tensor, " _v"] | None:
        """The columns of feature set `number` that are not zero in every row; None where there are few others.

        A feature that is constant in the training rows is zero once it is standardised, as it is in all rows where it
        is constant there too: all but a few singular values of rank 1, for instance. A weight for it has no gradient,
        and Adam leaves it where it was.
        """
        width = self.width(number)
        if width < _FEW:
            return None
        if isinstance(self.inputs, Streamed):
            varies = self.inputs.varies.to(self.inputs.device)[self.columns[number]]
        else:
            varies = (self.features(number) != 0).any(0)
        found = torch.nonzero(varies).flatten()
        return found if width - len(found) >= max(_FEW, width // 2) else None

    def pools(self, epoch: int, seeds: list[int], batch_size: int) -> Iterator[Pool]:
        """The training rows of one epoch for members of some seeds: all at once, or (`Streamed`) pool after pool."""
        orders = {seed: epoch_order(seed, epoch, len(self.train)) for seed in set(seeds)}
        order = torch.stack([orders[seed] for seed in seeds])
        if not isinstance(self.inputs, Streamed):
            everyone = torch.arange(len(self.inputs), device=self.inputs.device)
            yield Pool(self.inputs, everyone, self.train[order.to(self.inputs.device)])
            return
        start = 0
        for inputs, rows in self.inputs.pools(epoch, batch_size):
            drawn = order[:, start : start + len(rows)].argsort(1)  # of a permutation's part, again a permutation
            yield Pool(inputs, rows, drawn.to(self.inputs.device))
            start += len(rows)

    def index(self, numbers: list[int]) -> slice | Int64[Tensor, "sets _f"]:
        """The columns of several feature sets of one length, as `gather` takes them."""
        if len(set(numbers)) == 1 and isinstance(self.columns[numbers[0]], slice):
            return self.columns[numbers[0]]
        everything = torch.arange(self.inputs.shape[1], device=self.inputs.device)
        return torch.stack([everything[self.columns[number]] for number in numbers])


def gather(
    inputs: Float[Tensor, "n f"], index: slice | Int64[Tensor, "sets _f"], rows: Int64[Tensor, "sets rows"]
) -> Float[Tensor, "sets rows _f"]:
    """Other rows of `inputs` for every set, and its columns (`Problem.index`)."""
    if isinstance(index, slice):
        return inputs[:, index][rows]
    return inputs[rows[:, :, None], index[:, None, :]]
