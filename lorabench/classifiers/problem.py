"""What members learn from: features side by side, classes, and the rows to train and to stop by."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["Columns", "Member", "Problem"]

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


@dataclass(frozen=True)
class Problem:
    """Everything that members are trained on, on one device.

    Attributes:
        inputs: standardised features of N adapters, side by side, [N, F].
        labels: one class for every adapter, [targets, N]; a member learns one row of it.
        train: rows to train on.
        val: rows that decide when to stop.
        n_classes: number of classes.
        columns: the feature sets, which may share columns.
    """

    inputs: Float[Tensor, "n f"]
    labels: Int64[Tensor, "targets n"]
    train: Int64[Tensor, " train"]
    val: Int64[Tensor, " val"]
    n_classes: int
    columns: tuple[Columns, ...] = (slice(None),)

    def width(self, number: int) -> int:
        """Length f of feature set `number`."""
        columns = self.columns[number]
        if isinstance(columns, slice):
            return len(range(*columns.indices(self.inputs.shape[1])))
        return len(columns)

    def features(self, number: int) -> Float[Tensor, "n _f"]:
        """Feature set `number` of every adapter; a view where its columns are neighbours."""
        columns = self.columns[number]
        return self.inputs[:, columns] if isinstance(columns, slice) else self.inputs.index_select(1, columns)

    def index(self, numbers: list[int]) -> slice | Int64[Tensor, "sets _f"]:
        """The columns of several feature sets of one length, as `gather` takes them."""
        if len(set(numbers)) == 1 and isinstance(self.columns[numbers[0]], slice):
            return self.columns[numbers[0]]
        everything = torch.arange(self.inputs.shape[1], device=self.inputs.device)
        return torch.stack([everything[self.columns[number]] for number in numbers])

    def gather(
        self, index: slice | Int64[Tensor, "sets _f"], rows: Int64[Tensor, "sets rows"]
    ) -> Float[Tensor, "sets rows _f"]:
        """Features of other rows for every set."""
        if isinstance(index, slice):
            return self.inputs[:, index][rows]
        return self.inputs[rows[:, :, None], index[:, None, :]]
