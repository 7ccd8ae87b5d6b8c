"""Features as classifiers take them: standardised, side by side on one device, in batches by index."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from lorabench.classifiers import Member, Problem
from lorabench.training import epoch_order, standardised

__all__ = ["CLIP", "FeatureData", "IndexBatches", "side_by_side"]

CLIP = 10.0
"""Standard deviations from the training mean beyond which a standardised feature does not go."""


def side_by_side(
    features: Mapping[str, Float32[Tensor, "n _f"]], train: Int64[Tensor, " train"], device: torch.device
) -> tuple[Float32[Tensor, "n f"], dict[str, slice]]:
    """Standardised features of all units in one tensor [N, Σf] on the device, and every unit's columns.

    Every feature is shifted and scaled by the mean and the (population) standard deviation of the training rows;
    one that is constant there is only shifted. What is then beyond ±`CLIP` is set to it: a ratio such as a factor's
    `variation` has no variance, and single adapters would be thousands of deviations away.
    """
    widths = {unit: values.shape[1] for unit, values in features.items()}
    rows = len(next(iter(features.values())))
    inputs = torch.empty(rows, sum(widths.values()), device=device)
    columns: dict[str, slice] = {}
    start = 0
    for unit, width in widths.items():
        columns[unit] = slice(start, start + width)
        values = standardised(features[unit], features[unit][train]).clamp(-CLIP, CLIP)
        inputs[:, start : start + width] = values.float().to(device)
        start += width
    return inputs, columns


@dataclass
class IndexBatches:
    """Batches (x, y) of given rows, gathered on the device; shuffled afresh every epoch where a seed is given."""

    inputs: Float[Tensor, "n f"]
    labels: Int64[Tensor, " n"]
    rows: Int64[Tensor, " m"]
    batch_size: int
    seed: int | None = None
    epoch: int = 0
    batch_sampler: None = None  # Lightning looks for one where there is a sampler

    @property
    def sampler(self) -> "IndexBatches":
        """What Lightning tells the number of an epoch before it starts."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Shuffle as in this epoch from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "batch f"], Int64[Tensor, " batch"]]]:
        rows = self.rows
        if self.seed is not None:
            rows = rows[epoch_order(self.seed, self.epoch, len(rows)).to(rows.device)]
        for batch in torch.split(rows, self.batch_size):
            yield self.inputs[batch], self.labels[batch]


class FeatureData(pl.LightningDataModule):
    """What one member sees of a problem, for a `pl.Trainer`; no worker processes, the data are on the device.

    Args:
        problem: features, labels and rows of all members.
        member: whose feature set, labels and order these are.
        batch_size: adapters a training batch.
        test: test rows, where there are any to be read.
    """

    def __init__(
        self, problem: Problem, member: Member, batch_size: int = 32, test: Int64[Tensor, " test"] | None = None
    ) -> None:
        super().__init__()
        self.inputs, self.labels = problem.features(member.features), problem.labels[member.labels]
        self._problem, self._seed, self._batch_size, self._test = problem, member.seed, batch_size, test

    def train_dataloader(self) -> IndexBatches:
        """The training rows, in the member's order."""
        return IndexBatches(self.inputs, self.labels, self._problem.train, self._batch_size, self._seed)

    def val_dataloader(self) -> IndexBatches:
        """All validation rows as one batch."""
        return self._whole(self._problem.val)

    def test_dataloader(self) -> IndexBatches:
        """All test rows as one batch.

        Raises:
            ValueError: none were given.
        """
        if self._test is None:
            raise ValueError("this FeatureData was made without test rows")
        return self._whole(self._test)

    def _whole(self, rows: Int64[Tensor, " m"]) -> IndexBatches:
        return IndexBatches(self.inputs, self.labels, rows, max(1, len(rows)))
