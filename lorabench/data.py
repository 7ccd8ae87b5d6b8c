"""Features as classifiers take them: standardised, side by side on one device or in a file, in batches by index."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from lorabench.classifiers import Member, Problem, Streamed
from lorabench.errors import explain_disk_errors
from lorabench.training import Scaling, epoch_order

__all__ = ["CLIP", "FeatureData", "IndexBatches", "UnitsOfFile", "as_taken", "side_by_side", "streamed"]

CLIP = 10.0
"""Standard deviations from the training mean beyond which a standardised feature does not go."""


def side_by_side(
    features: Mapping[str, Float32[Tensor, "n _f"]], train: Int64[Tensor, " train"] | None, device: torch.device
) -> tuple[Float32[Tensor, "n f"], dict[str, slice]]:
    """Standardised features of all units in one tensor [N, Σf] on the device, and every unit's columns.

    Every feature is shifted and scaled by the mean and the (population) standard deviation of the training rows;
    one that is constant there is only shifted. What is then beyond ±`CLIP` is set to it: a ratio such as a factor's
    `variation` has no variance, and single adapters would be thousands of deviations away.

    Args:
        features: of every unit.
        train: the training rows; None: the features stay as they are (`Representation.standardised`).
        device: where the tensor is.
    """
    widths = {unit: values.shape[1] for unit, values in features.items()}
    rows = len(next(iter(features.values())))
    inputs = torch.empty(rows, sum(widths.values()), device=device)
    columns: dict[str, slice] = {}
    start = 0
    for unit, width in widths.items():
        columns[unit] = slice(start, start + width)
        inputs[:, start : start + width] = _by_rows(features[unit], train).to(device)
        start += width
    return inputs, columns


def as_taken(features: Float32[Tensor, "n f"], scaling: Scaling | None) -> Float32[Tensor, "n f"]:
    """Features as classifiers take them: standardised and not beyond ±`CLIP`; as they are where nothing scales."""
    return features if scaling is None else scaling.applied(features).clamp(-CLIP, CLIP).float()


def _by_rows(features: Float32[Tensor, "n f"], train: Int64[Tensor, " train"] | None) -> Float32[Tensor, "n f"]:
    return as_taken(features, None if train is None else Scaling.of(features[train]))


@contextmanager
def streamed(
    features: Iterable[tuple[str, Float32[Tensor, "n _f"]]],
    columns: Mapping[str, slice],
    rows: tuple[Int64[Tensor, " train"], Int64[Tensor, " rest"]],
    folder: Path,
    device: torch.device,
    pool_bytes: int,
    scaled: bool = True,
) -> Iterator[Streamed]:
    """What `side_by_side` gives, to the bit, written once into a file that is read while members train.

    The file has no name: it takes its room on the disk until the end, and is gone then, whatever happens.

    Args:
        features: of one unit after another, in any order; one is in memory at a time, and `pool_bytes` of what is
            not written yet.
        columns: of every unit; all of 0 to F.
        rows: the training rows, and all others in the order that the file is to have.
        folder: where the file is made.
        device: where what is read is put.
        pool_bytes: see `Streamed`.
        scaled: whether they are standardised, or stay as they are.

    Raises:
        LorabenchError: the disk is full.
    """
    train, rest = rows
    # Neighbours in the file are strangers: however the zoo is sorted, a block is a draw of the training rows.
    order = torch.cat([train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))], rest])
    width = max(part.stop for part in columns.values())
    remedy = "Free some space, or set cache_dir=DIR (or LORABENCH_CACHE) to a roomier place."
    with explain_disk_errors(folder, remedy):
        folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (what reads it is not to be explained)
    with file:
        with explain_disk_errors(folder, remedy):
            _allocate(file.fileno(), 4 * len(order) * width)
        waiting: dict[int, Tensor] = {}
        varies = torch.zeros(width, dtype=torch.bool)
        for unit, values in features:
            taken = _by_rows(values, train if scaled else None)[order]
            waiting[columns[unit].start], varies[columns[unit]] = taken, (taken != 0).any(0)
            if sum(map(Tensor.numel, waiting.values())) * 4 > pool_bytes:
                _write_columns(file.fileno(), waiting, width)
        _write_columns(file.fileno(), waiting, width)
        yield Streamed(file, order, varies, len(train), device, pool_bytes)


def _write_columns(descriptor: int, waiting: dict[int, Float32[Tensor, "n _f"]], width: int) -> None:
    """Write columns by the first of each into the rows of a file, neighbours in one go, and forget them."""
    starts = sorted(waiting)
    while starts:
        together = [starts.pop(0)]
        while starts and starts[0] == together[-1] + waiting[together[-1]].shape[1]:
            together.append(starts.pop(0))
        part = torch.cat([waiting.pop(start) for start in together], 1).numpy()
        for place, row in enumerate(part):
            _write(descriptor, row.data.cast("B"), 4 * (place * width + together[0]))


def _allocate(descriptor: int, size: int) -> None:
    """Make a file as large as it will be: a full disk is told now, where the system can say so."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    """All of it: a system may take a part at a time."""
    while data.nbytes:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


@dataclass(frozen=True)
class UnitsOfFile(Mapping[str, Tensor]):
    """Standardised features {unit: [N, f]} of a file, each read when it is asked for.

    Attributes:
        inputs: the file.
        columns: of every unit.
    """

    inputs: Streamed
    columns: Mapping[str, slice]

    def __getitem__(self, unit: str) -> Float32[Tensor, "n f"]:
        return self.inputs.columns(self.columns[unit])

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)


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
