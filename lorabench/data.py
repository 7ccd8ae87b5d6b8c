"""The LightningDataModule: feature tensors of a zoo on the device, batches by index, no worker processes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from lorabench.classifiers import epoch_order

__all__ = ["FeatureData", "IndexBatches"]


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
    """Standardised features of N adapters, their classes and the split, all on one device.

    Every feature is shifted and scaled by the mean and the (population) standard deviation of the training rows;
    one that is constant there is only shifted. The units lie side by side in one tensor [N, Σf]; `unit` gives a
    view of one.

    Args:
        features: {unit: [N, f]}.
        labels: class of every adapter, [N].
        train: training rows.
        val: validation rows.
        test: test rows.
        n_classes: number of classes.
        device: where the tensors are kept.
        batch_size: adapters a training batch.
    """

    def __init__(
        self,
        features: Mapping[str, Float32[Tensor, "n _f"]],
        labels: Int64[Tensor, " n"],
        train: Int64[Tensor, " train"],
        val: Int64[Tensor, " val"],
        test: Int64[Tensor, " test"],
        n_classes: int,
        device: torch.device,
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        widths = {unit: values.shape[1] for unit, values in features.items()}
        self.inputs = torch.empty(len(labels), sum(widths.values()), device=device)
        self._columns: dict[str, slice] = {}
        start = 0
        for unit, width in widths.items():
            self._columns[unit] = slice(start, start + width)
            self.inputs[:, start : start + width] = _standardised(features[unit], train).to(device)
            start += width
        self.labels = labels.to(device)
        self.train, self.val, self.test = train.to(device), val.to(device), test.to(device)
        self.n_classes = n_classes

    def unit(self, name: str) -> Float[Tensor, "n f"]:
        """The standardised features of one unit, a view."""
        return self.inputs[:, self._columns[name]]

    @property
    def units(self) -> tuple[str, ...]:
        """Names of the units, in the order of their columns."""
        return tuple(self._columns)

    def train_batches(self, seed: int) -> IndexBatches:
        """The training rows in the order of one member."""
        return IndexBatches(self.inputs, self.labels, self.train, self.batch_size, seed)

    def train_dataloader(self) -> IndexBatches:
        """The training rows in the order of seed 0."""
        return self.train_batches(0)

    def val_dataloader(self) -> IndexBatches:
        """All validation rows as one batch."""
        return IndexBatches(self.inputs, self.labels, self.val, max(1, len(self.val)))

    def test_dataloader(self) -> IndexBatches:
        """All test rows as one batch."""
        return IndexBatches(self.inputs, self.labels, self.test, max(1, len(self.test)))


def _standardised(values: Float32[Tensor, "n f"], train: Int64[Tensor, " train"]) -> Float32[Tensor, "n f"]:
    known = values[train].double()
    mean, std = known.mean(0), known.std(0, correction=0)
    # Below float32's resolution of the mean, what varies is rounding.
    constant = std <= 1e-7 * mean.abs()
    return ((values.double() - mean) / torch.where(constant, 1.0, std)).float()
